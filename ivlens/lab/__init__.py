"""The lab model: a small model organism that the package trains itself and ships.

It knows a few thousand facts, follows written instructions and learns in context, so that every measurement can be
tried offline, in seconds. It is not evidence about large models.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""The shipped Hugging Face folder."""
RECORD = Path(__file__).parent / "record.json"
"""What the shipped model can do, written by `python -m ivlens.lab.evaluate`."""
TRAINING = Path(__file__).parent / "training.csv"
"""The log of the training of the shipped model."""
SETTINGS = Path(__file__).parent / "training.json"
"""What the shipped model was trained with, and for how long."""
