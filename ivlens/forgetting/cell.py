"""What of a cell, one method with one seed, is done and whole?

`stage-N.json` in its folder lists the files of a stage with their digests, and those of others that it rests on: the
universal heads and the adapters of the stages before it. What is missing, changed, or of another run is done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pydantic

from ivlens.forgetting.plan import Plan
from ivlens.kept_batches import keeping
from ivlens.storage.atomic_files import LARGEST_TEXT, as_run_error, is_inside, refuse_unusual, write_whole
from ivlens.storage.run_files import Home, describe_file, find_changed
from ivlens.storage.run_folder import PARTS
from ivlens.storage.run_record import KeptFile
from ivlens.storage.run_tables import batch_keeper

Files = dict[str, KeptFile]
MEASURES, GRIDS, STEPS, ADAPTER = ".parquet", "-aie.parquet", "-steps.parquet", ".safetensors"
"""What files of a stage end with, behind `stage-N`."""
BASE = "base"
"""What the base model is asked, among the parts of a run."""


class StageRecord(pydantic.BaseModel):
    """What `stage-N.json` holds."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    cell: str
    """Digest of the run's configuration, the cell and the stage."""
    rests_on: dict[str, str]
    """Digests of the files of others that it was computed from."""
    learned: Files = {}
    """The adapter and its steps."""
    measured: Files = {}


@dataclass(frozen=True, kw_only=True)
class MethodRun:
    """What is run, and where it is kept."""

    plan: Plan
    method: str
    seed: int
    home: Home
    """The folder of the run."""
    configuration: str
    """Digest of everything that decides the run's numbers."""
    universal: str
    """Name of the file of its universal heads, in the folder of the run."""

    @property
    def name(self) -> str:
        """Of its folder in that of the run."""
        return f"cells/{self.method}-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.home.folder / self.name

    @property
    def where(self) -> dict[str, Any]:
        return {"method": self.method, "seed": self.seed}

    @property
    def stages(self) -> range:
        """Numbers of all stages; 0 is the base model."""
        return range(len(self.plan.tasks) + 1)

    def path(self, stage: int, suffix: str) -> Path:
        return self.folder / f"stage-{stage}{suffix}"

    def has(self, stage: int, suffix: str) -> bool:
        """Whether the plan asks for such a file of a stage."""
        if suffix == GRIDS:  # Of the base model, and after the last stage.
            return bool(self.plan.evaluation.probes) and stage in (0, self.stages[-1])
        return stage > 0 or suffix not in (ADAPTER, STEPS)

    def tables(self, suffix: str) -> list[Path]:
        """Its tables of a kind, stage by stage."""
        return [self.path(stage, suffix) for stage in self.stages if self.has(stage, suffix)]

    def is_learned(self, stage: int) -> bool:
        """Whether its adapter and its steps are there and whole."""
        record = self._read(stage)
        return stage == 0 or (record is not None and self._are_whole(record.learned, stage, (ADAPTER, STEPS)))

    def is_done(self, stage: int) -> bool:
        """Whether everything that the plan asks of a stage is there and whole."""
        record = self._read(stage)
        return (
            record is not None and self.is_learned(stage) and self._are_whole(record.measured, stage, (MEASURES, GRIDS))
        )

    def files_of(self, stage: int) -> list[str]:
        """Names, in the folder of the run, of the files that a stage lists, and last of the list."""
        record = self._read(stage)
        listed = {} if record is None else record.learned | record.measured
        return [f"{self.name}/{name}" for name in [*listed, self.path(stage, ".json").name]]

    def files(self) -> Files:
        """All files that its stages list, and their lists, by their names in the folder of the run."""
        found = {f"stage-{stage}.json": describe_file(self.path(stage, ".json")) for stage in self.stages}
        for record in map(self._read, self.stages):
            found |= {} if record is None else record.learned | record.measured
        return {f"{self.name}/{name}": file for name, file in found.items()}

    def keep_learned(self, stage: int) -> None:
        """List the adapter and the steps of a stage. What was measured of another adapter counts no more."""
        before, files = self._read(stage), self._describe(stage, (ADAPTER, STEPS))
        measured = before.measured if before is not None and before.learned == files else {}
        self._write(stage, learned=files, measured=measured)

    def keep_measured(self, stage: int, more: Sequence[Path]) -> None:
        """List the tables of a stage, and more files."""
        before = self._read(stage)
        files = self._describe(stage, (MEASURES, GRIDS), more)
        self._write(stage, learned={} if before is None else before.learned, measured=files)
        self.clear_up(stage)

    def clear_up(self, stage: int) -> None:
        """Remove what was kept to go on from, of a stage that is done."""
        self.path(stage, ".checkpoint").unlink(missing_ok=True)
        shutil.rmtree(self.path(stage, "-batches"), ignore_errors=True)

    def take(self, other: MethodRun) -> None:
        """The files of another run's cell of the same method and seed, copied and listed as this run's own.

        Raises:
            RunError: they cannot be read or written.
        """
        for stage in self.stages:
            found = other._read(stage)
            assert found is not None, "only what is done is taken"
            for name in found.learned | found.measured:
                with as_run_error(other.folder / name):
                    content = (other.folder / name).read_bytes()
                write_whole(self.folder / name, content)
            self._write(stage, learned=found.learned, measured=found.measured)

    @contextmanager
    def keeping(self, stage: int, model: str) -> Iterator[None]:
        """Inside the `with` block, batches are kept until the stage is done.

        Args:
            model: What tells the model that is asked from others that are asked in this stage.
        """
        record = self._read(stage)
        whose = f"{self.digest(stage)} {self._rests_on(stage)} {record and record.learned} {model}"
        keeper = batch_keeper(self.path(stage, "-batches") / model, sha256(whose.encode()).hexdigest())
        with keeping(keeper):
            yield

    @contextmanager
    def keeping_base(self) -> Iterator[None]:
        """The same of what the base model is asked, which all cells share, until the run is complete."""
        with keeping(batch_keeper(self.home.folder / PARTS / BASE, f"{self.configuration} {BASE}")):
            yield

    def digest(self, stage: int) -> str:
        """What tells a stage from those of other cells and of other runs."""
        return sha256(f"{self.configuration} {self.method} {self.seed} {stage}".encode()).hexdigest()

    def _rests_on(self, stage: int) -> dict[str, str]:
        universal = self.home.folder / self.universal
        found = {universal.name: describe_file(universal).sha256 if universal.is_file() else ""}
        for one in range(1, stage):
            record, name = self._read_any(one), self.path(one, ADAPTER).name
            listed = record.learned.get(name) if record else None
            found[name] = listed.sha256 if listed else ""
        return found

    def _are_whole(self, files: Files, stage: int, suffixes: Sequence[str]) -> bool:
        wanted = {self.path(stage, suffix).name for suffix in suffixes if self.has(stage, suffix)}
        return wanted <= files.keys() and not find_changed(self._place, files)

    def _place(self, name: str) -> Path:
        path = self.folder / name
        return path if is_inside(path, self.folder) else self.folder / "outside"

    def _describe(self, stage: int, suffixes: Sequence[str], more: Sequence[Path] = ()) -> Files:
        paths = [*(self.path(stage, suffix) for suffix in suffixes if self.has(stage, suffix)), *more]
        return {path.relative_to(self.folder).as_posix(): describe_file(path) for path in paths}

    def _read(self, stage: int) -> StageRecord | None:
        """None where there is none of this run, or it rests on other files than those that are listed."""
        found = self._read_any(stage)
        ours = found is not None and (found.cell, found.rests_on) == (self.digest(stage), self._rests_on(stage))
        return found if ours else None

    def _read_any(self, stage: int) -> StageRecord | None:
        path = self.path(stage, ".json")
        try:
            refuse_unusual(path, LARGEST_TEXT)
            return StageRecord.model_validate_json(path.read_bytes())
        except (OSError, ValueError):  # pydantic's is one.
            return None

    def _write(self, stage: int, *, learned: Files, measured: Files) -> None:
        record = StageRecord(
            cell=self.digest(stage), rests_on=self._rests_on(stage), learned=learned, measured=measured
        )
        write_whole(self.path(stage, ".json"), f"{record.model_dump_json(indent=1)}\n".encode())
