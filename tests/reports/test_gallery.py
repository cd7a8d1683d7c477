"""The figures that lie in `figures` are those of the numbers beside them."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ivlens.errors import RunError
from ivlens.plots.export import FORMATS, Exported
from ivlens.reports import gallery

FOLDER = Path(__file__).parents[2] / "figures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@pytest.fixture(scope="module")
def drawn() -> dict[str, gallery.Drawn]:
    return gallery.draw(FOLDER)


def record(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def on_page(name: str) -> str:
    """Data and layout of the figure that a committed page draws, as written there."""
    page = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    decoder, parts, end = json.JSONDecoder(), [], page.rindex("Plotly.newPlot(") + len("Plotly.newPlot(")
    for _ in range(3):
        start = re.compile(r"[\s,]*").match(page, end).end()
        _, end = decoder.raw_decode(page, start)
        parts.append(page[start:end])
    return f'{{"data":{parts[1]},"layout":{parts[2]}}}'


def assert_alike(one: object, other: object) -> None:
    """Equal but for the last digits of numbers, which another processor rounds otherwise."""
    if isinstance(one, dict) and "bdata" in one:
        arrays = [np.frombuffer(base64.b64decode(part["bdata"]), part["dtype"]) for part in (one, other)]
        np.testing.assert_allclose(*arrays, rtol=1e-4, atol=1e-6)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_alike(*pair)
    elif isinstance(one, str):
        assert NUMBER.sub("", one) == NUMBER.sub("", other)
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (one, other)]
        np.testing.assert_allclose(*numbers, rtol=2e-3, atol=2e-3)
    else:
        assert one == (other if other is None else pytest.approx(other, rel=1e-4, abs=1e-6))


def test_every_figure_of_the_numbers_is_there_and_no_other(drawn):
    assert sorted(drawn) == NAMES
    there = {path.name for path in FOLDER.iterdir() if path.suffix[1:] in FORMATS}
    assert there == {f"{name}.{suffix}" for name in drawn for suffix in FORMATS}
    assert (FOLDER / "plotly.min.js").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_record_matches_its_figure_and_its_files(name, drawn):
    found = record(name)
    assert found["drawn"] == gallery.digest(on_page(name).encode())
    assert found["files"] == {
        suffix: gallery.digest((FOLDER / f"{name}.{suffix}").read_bytes()) for suffix in sorted(FORMATS)
    }
    origin = {key: value for key, value in found.items() if key not in ("drawn", "files")}
    assert origin == json.loads(json.dumps(drawn[name].origin))


@pytest.mark.parametrize("name", NAMES)
def test_drawing_again_gives_the_same_figure(name, drawn):
    assert_alike(json.loads(gallery.data(drawn[name].figure)), json.loads(on_page(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_where_the_numbers_are_from(name):
    found = record(name)
    assert {"command", "settings", "seed", "sources", "versions", "n", "numbers", "figure"} <= found.keys()
    assert (FOLDER / found["numbers"]).is_dir() and found["command"].startswith("ivlens") and all(found["n"].values())
    models = [source for role, source in found["sources"].items() if role in ("model", "base", "tuned")]
    assert models and all(re.fullmatch(r"[0-9a-f]{64}", source["digest"]) for source in models)
    assert {"ivlens", "torch", "transformer-lens"} <= found["versions"].keys()


def test_other_numbers_are_another_figure(tmp_path, drawn):
    shutil.copytree(FOLDER / "numbers" / "lab-tasks", tmp_path / "numbers" / "lab-tasks")
    (tmp_path / "numbers" / "lab-tasks" / "antonym.safetensors").unlink()
    for name, (figure, _) in gallery.draw(tmp_path).items():
        assert gallery.data(figure) != gallery.data(drawn[name].figure)


def test_a_folder_is_drawn_with_its_records(tmp_path, monkeypatch):
    export = gallery.export.export
    monkeypatch.setattr(gallery.export, "export", lambda *given, **others: export(*given, ["html"], **others))
    shutil.copytree(FOLDER / "numbers" / "lab-tasks", tmp_path / "numbers" / "mine")
    exported = gallery.draw_folder(tmp_path)
    assert isinstance(exported, Exported) and exported.notice is None
    written = {f"mine-{name}.{suffix}" for name in ("overlap", "similarity") for suffix in ("html", "json")}
    assert {path.name for path in tmp_path.iterdir()} == {"numbers", "plotly.min.js", *written}
    found = json.loads((tmp_path / "mine-overlap.json").read_text())
    page = (tmp_path / "mine-overlap.html").read_bytes()
    assert found["files"] == {"html": gallery.digest(page)} and b'src="plotly.min.js"' in page and len(page) < 50_000


def test_folders_without_numbers_or_of_several_models_are_refused(tmp_path):
    with pytest.raises(RunError, match="has no folders in it"):
        gallery.draw(tmp_path)
    (tmp_path / "numbers" / "empty").mkdir(parents=True)
    with pytest.raises(RunError, match="of several models, or none"):
        gallery.draw(tmp_path)
