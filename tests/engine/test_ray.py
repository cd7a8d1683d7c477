"""On a Ray cluster of two machines, here two processes of one, jobs give the numbers of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tried_jobs
from small import plan_text, small_plan
from tried_jobs import job

import ivlens
from ivlens.cli.app import main
from ivlens.engine import ray_address
from ivlens.engine.options import Engine
from ivlens.engine.run_jobs import run_jobs
from ivlens.errors import EngineError, TrainingError
from ivlens.forgetting.plan import read_plan
from ivlens.training.settings import Training

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ivlens[ray]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.command,
    pytest.mark.skipif(sys.platform == "win32", reason="Ray's machines are processes here, which signals end"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


MACHINE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two machines of one CPU each, on which what tests import can be imported."""
    from ray.cluster_utils import Cluster

    folders = [Path(ivlens.__file__).parents[1], Path(__file__).parent, Path(__file__).parents[1]]
    # Not pytest's folder: paths of sockets have 107 letters at most.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as place:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TMPDIR", place)
        patch.setenv("JAXTYPING_DISABLE", "1")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = {**MACHINE, "include_dashboard": False, "ray_client_server_port": port}
        try:
            found = Cluster(initialize_head=True, head_node_args=head)
            found.add_node(**MACHINE)
        except Exception as error:  # Without shared memory, or ports that may be listened on.
            pytest.skip(f"Ray starts no cluster on this machine: {error}")
        found.client_address, found.place = f"ray://127.0.0.1:{port}", Path(place)
        yield found
        found.shutdown()


@pytest.fixture
def engine(cluster: Any) -> Engine:
    return Engine(engine="ray", address=cluster.address)


def pieces_of(jobs: list[Any], engine: Engine, *, threads: int = 1) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {one.name: [] for one in jobs}
    for piece in run_jobs(jobs, engine, workers=1, threads=threads):
        found[piece.job.name].append(piece.content)
    return found


def test_a_cluster_gives_the_bits_of_one_process(engine: Engine) -> None:
    jobs = [job(str(seed), tried_jobs.multiply, seed) for seed in range(4)]
    assert pieces_of(jobs, engine) == pieces_of(jobs, Engine())
    assert not ray.is_initialized(), "the connection is given back"


def test_a_job_that_raises_is_named_and_the_others_are_done(engine: Engine, tmp_path: Path) -> None:
    jobs = [job("bad", tried_jobs.diverge, 2)]
    jobs += [job(name, tried_jobs.mark, tmp_path, name) for name in ("one", "two")]
    with pytest.raises(TrainingError, match=r"^bad: the loss of stage 2 is not finite; the other 2 are done and kept$"):
        pieces_of(jobs, engine)
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.long
def test_a_matrix_on_a_cluster_is_that_of_one_process_to_the_bit(engine: Engine, tmp_path: Path) -> None:
    about: dict[str, Any] = {"shots": 3, "clean_prompts": 6, "prompts": 4, "draws": 1, "queries": 6, "other_tasks": 0}
    here = ivlens.audit_many("lab", ["antonym", "synonym"], out=tmp_path / "here", workers=1, **about)
    on = {"engine": "ray", "address": engine.address}
    there = ivlens.audit_many("lab", ["antonym", "synonym"], out=tmp_path / "there", **on, **about)
    for one, other in zip(here.folders, there.folders, strict=True):
        records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
        assert records[0]["files"] == records[1]["files"] and len(records[0]["files"]) > 5
    assert there.recurring.equals(here.recurring)


def wait_for_end(*processes: int) -> None:
    deadline = time.monotonic() + 60
    while any(map(psutil.pid_exists, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_a_machine_that_is_lost_midway_costs_one_retry(cluster: Any, engine: Engine, tmp_path: Path) -> None:
    lost, names, got = cluster.add_node(**MACHINE), ["one", "two", "three"], list[tuple[str, int]]()
    jobs = [job(name, tried_jobs.wait_for_sign, tmp_path, name) for name in names]
    for piece in run_jobs(jobs, engine, workers=1, threads=1):
        got.append((piece.job.name, piece.number))
        if piece.content == lost.node_id.encode():
            (mark,) = tmp_path.glob(f"{piece.job.name}-*")
            cluster.remove_node(lost, allow_graceful=False)
            wait_for_end(int(mark.name.split("-")[1]))
            (tmp_path / "go on").touch()
    begun = [path.name.partition("-")[0] for path in tmp_path.glob("*-*")]
    assert len(begun) == 4 and set(begun) == set(names)
    assert sorted(got) == sorted([(name, 0) for name in begun] + [(name, 1) for name in names])


def test_ctrl_c_ends_the_workers_and_gives_the_cluster_back(engine: Engine, tmp_path: Path) -> None:
    jobs = [job(str(number), tried_jobs.wait_for_ever, tmp_path) for number in range(2)]
    with pytest.raises(KeyboardInterrupt), closing(run_jobs(jobs, engine, workers=1, threads=1)) as pieces:
        assert next(pieces).content == next(pieces).content == b"begun"
        workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("waiting-*")]
        raise KeyboardInterrupt
    wait_for_end(*workers)
    assert len(workers) == 2 and not ray.is_initialized()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"gpus": 1},
            "a job needs 1 CPUs and 1 GPUs of one machine, and none of the cluster has them (1 CPUs and 0 GP",
        ),
        ({"cpus": 2}, "a job needs 2 CPUs of one machine, and none of the cluster has them (1 CPUs and 0 GPUs; 1 "),
    ],
)
def test_a_job_that_fits_on_no_machine_is_refused(cluster: Any, asked: dict[str, int], said: str) -> None:
    with pytest.raises(EngineError) as refused:
        pieces_of([job("one", tried_jobs.count, 1)], Engine(engine="ray", address=cluster.address, **asked))
    assert said in str(refused.value) and not ray.is_initialized()


def test_a_study_on_a_cluster_is_that_of_one_process_to_the_bit(cluster: Any, engine: Engine, tmp_path: Path) -> None:
    asked = small_plan(methods=("lora", "lora+iv"), training=Training(steps=2, batch=4, warmup=1))
    ivlens.study(asked, out=tmp_path / "here", workers=1)
    ivlens.study(asked, out=tmp_path / "there", engine="ray", address=engine.address)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("here", "there")]
    assert records[0]["files"] == records[1]["files"] and len(records[0]["files"]) > 10
    assert not list(cluster.place.glob("ivlens-*")), "machines keep nothing of it"
    assert not ray.is_initialized()


def working() -> set[int]:
    """Ray's processes that are at work, on this machine: their titles say it."""
    titles = {one.pid: "".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])}
    return {pid for pid, title in titles.items() if title.startswith("ray::") and not title.startswith("ray::IDLE")}


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_study_frees_the_cluster_and_the_same_command_goes_on(
    engine: Engine, tmp_path: Path, sent: signal.Signals
) -> None:
    (tmp_path / "mine.toml").write_text(plan_text("class-letter", "last-capital"))
    before, out = working(), tmp_path / "there"
    line = ["study", str(tmp_path / "mine.toml"), "--out", str(out), "--engine", "ray", "--address", engine.address]
    command = [sys.executable, "-m", "ivlens.cli", *line]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + 600
        while not list(out.glob("cells/*/stage-1.parquet")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        begun = working() - before
        process.send_signal(sent)
    assert process.returncode in (130, -sent), (tmp_path / "log").read_text()
    assert begun
    deadline = time.monotonic() + 180
    while begun & working():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/stage-1.parquet")}
    assert main(line) == 0 and kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()
    ivlens.study(read_plan(tmp_path / "mine.toml"), out=tmp_path / "here", workers=1)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("here", "there")]
    assert records[0]["files"] == records[1]["files"]


def test_a_cluster_is_reached_from_outside_too(cluster: Any) -> None:
    jobs = [job(str(seed), tried_jobs.multiply, seed) for seed in range(2)]
    assert pieces_of(jobs, Engine(engine="ray", address=cluster.client_address)) == pieces_of(jobs, Engine())
    assert not ray.is_initialized()


@contextmanager
def answering(reply: Callable[[socket.socket], object]) -> Iterator[str]:
    """Somebody who answers at a port of this machine, and is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    reply(held[-1])

        held: list[socket.socket] = []
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for one in held:
            one.close()


def garbage(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nwelcome")
    connection.close()


@pytest.mark.long
@pytest.mark.parametrize("way", ["", "ray://"])
@pytest.mark.parametrize("reply", [garbage, lambda connection: None], ids=["garbage", "silence"])
def test_somebody_else_at_the_address_is_one_line_within_seconds(
    way: str, reply: Callable[[socket.socket], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "SECONDS", {"ray": 6.0, "": 6.0})
    begun = time.monotonic()
    with answering(reply) as address, pytest.raises(EngineError) as refused:
        pieces_of([job("one", tried_jobs.count, 1)], Engine(engine="ray", address=way + address))
    assert time.monotonic() - begun < 30 and not ray.is_initialized()
    said = str(refused.value)
    assert said.startswith(f"there is no Ray cluster to be used at {way}{address} (") and "\n" not in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-machine.invalid:6379", "." * 99 + ":1"])
def test_nobody_at_the_address_is_one_line_at_once(address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(EngineError) as refused:
        pieces_of([job("one", tried_jobs.count, 1)], Engine(engine="ray", address=address))
    said = str(refused.value)
    assert said.startswith(f"nothing answers at {address} (") and "\n" not in said
    assert time.monotonic() - begun < 10


def test_a_study_without_its_cluster_ends_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivlens.models.loader.load", None)
    line = ["study", "lab-func", "--out", str(tmp_path / "run"), "--engine", "ray", "--address", "127.0.0.1:1"]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert said.startswith("ivlens: nothing answers at 127.0.0.1:1 (") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_ray_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"^engine is 'ray', but Ray is not installed; pip install 'ivlens.ray.'$"):
        pieces_of([job("one", tried_jobs.count, 1)], Engine(engine="ray"))
