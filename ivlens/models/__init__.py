"""Who is asked: models read from checkpoints and checked; LoRA and PEFT's adapters."""

from ivlens.models.peft import read_adapter as read_adapter
from ivlens.models.peft import write_adapter as write_adapter
