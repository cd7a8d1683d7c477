"""A notebook whose model was not fetched is skipped, with the reason."""

from __future__ import annotations

import pytest

from ivlens.checkpoints import known_models

NEEDS_SMOLLM2 = "05_your_own_model.ipynb"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if known_models.find("smollm2") is None:
        skip = pytest.mark.skip(reason=f"smollm2 is not there; {known_models.how_to_fetch('smollm2')}")
        for item in items:
            if item.path.name == NEEDS_SMOLLM2:
                item.add_marker(skip)
