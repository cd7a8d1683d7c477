"""The tasks that come with ivlens, read once for all test files that go through them."""

from __future__ import annotations

from ivlens.datasets.task import task, tasks

SHIPPED = tuple(task(name) for name in tasks())
