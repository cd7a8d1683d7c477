"""The records in `figures` are those of the numbers beside them, and so are the images that documents show."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ivlens.errors import RunError
from ivlens.plots.export import FORMATS, Exported
from ivlens.plots.notebook import figure_json
from ivlens.reports import gallery

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "figures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@pytest.fixture(scope="module")
def drawn() -> dict[str, gallery.Drawn]:
    return gallery.draw(FOLDER)


def record(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def shown() -> Iterator[str]:
    """Names of the figures that documents and notebooks show, or lead to."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]:
        yield from re.findall(r"figures/([\w-]+)\.(?:png|svg)", path.read_text(encoding="utf-8"))


def on_page(page: str) -> dict:
    """Data and layout of the figure that a page draws."""
    decoder, parts, end = json.JSONDecoder(), [], page.rindex("Plotly.newPlot(") + len("Plotly.newPlot(")
    for _ in range(3):
        start = re.compile(r"[\s,]*").match(page, end).end()
        part, end = decoder.raw_decode(page, start)
        parts.append(part)
    return {"data": parts[1], "layout": parts[2]}


def assert_alike(one: object, other: object) -> None:
    """Equal but for the last digits of numbers, which another processor rounds otherwise."""
    if one == other:
        return
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


@pytest.mark.long
def test_every_figure_of_the_numbers_has_a_record_and_no_other(drawn):
    assert sorted(drawn) == NAMES


def test_the_images_that_documents_show_are_there_and_no_others():
    there = {path.name for path in FOLDER.iterdir() if path.suffix[1:] in FORMATS}
    assert there == {f"{name}.{suffix}" for name in shown() for suffix in ("png", "svg")}


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_that_of_its_numbers_and_of_its_images(name, drawn):
    found = record(name)
    images = {suffix: FOLDER / f"{name}.{suffix}" for suffix in FORMATS}
    assert found["files"] == {
        suffix: gallery.digest(path.read_bytes()) for suffix, path in images.items() if path.is_file()
    }
    origin = {key: value for key, value in found.items() if key not in ("drawn", "files")}
    assert origin == json.loads(json.dumps(drawn[name].origin))


@pytest.mark.parametrize("name", NAMES)
def test_drawing_again_gives_the_same_figure(name, drawn):
    assert_alike(json.loads(figure_json(drawn[name].figure)), record(name)["drawn"])


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_where_the_numbers_are_from(name):
    found = record(name)
    assert {"command", "settings", "seed", "sources", "versions", "n", "numbers", "figure"} <= found.keys()
    assert (
        (FOLDER / found["numbers"]).is_dir()
        and re.match("(python -m )?ivlens", found["command"])
        and all(found["n"].values())
    )
    models = [source for role, source in found["sources"].items() if role in ("model", "base", "tuned")]
    assert models and all(re.fullmatch(r"[0-9a-f]{64}", source["digest"]) for source in models)
    assert {"ivlens", "torch", "transformer-lens"} <= found["versions"].keys()


def test_other_numbers_are_another_figure(tmp_path, drawn):
    shutil.copytree(FOLDER / "numbers" / "lab-tasks", tmp_path / "numbers" / "lab-tasks")
    (tmp_path / "numbers" / "lab-tasks" / "antonym.safetensors").unlink()
    for name, (figure, _) in gallery.draw(tmp_path).items():
        assert figure_json(figure) != figure_json(drawn[name].figure)


@pytest.fixture
def pages_only(monkeypatch) -> None:
    export = gallery.export.export
    monkeypatch.setattr(gallery.export, "export", lambda *given, **others: export(*given, ["html"], **others))


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_folder_is_drawn_with_its_records(tmp_path, pages_only):
    shutil.copytree(FOLDER / "numbers" / "lab-tasks", tmp_path / "numbers" / "mine")
    exported = gallery.draw_folder(tmp_path)
    assert isinstance(exported, Exported) and exported.notice is None
    assert files_of(tmp_path) == {"mine-overlap.json", "mine-similarity.json"}
    assert files_of(tmp_path / "drawn") == {"mine-overlap.html", "mine-similarity.html", "plotly.min.js"}
    found = json.loads((tmp_path / "mine-overlap.json").read_text())
    page = (tmp_path / "drawn" / "mine-overlap.html").read_text()
    assert found["drawn"] == on_page(page) and not found["files"]
    assert 'src="plotly.min.js"' in page and len(page) < 50_000


def test_an_image_that_lies_beside_the_records_is_replaced_and_in_its_record(tmp_path, pages_only):
    shutil.copytree(FOLDER / "numbers" / "lab-tasks", tmp_path / "numbers" / "mine")
    (tmp_path / "mine-overlap.html").write_text("an old one")
    gallery.draw_folder(tmp_path)
    assert files_of(tmp_path) == {"mine-overlap.html", "mine-overlap.json", "mine-similarity.json"}
    page = (tmp_path / "mine-overlap.html").read_bytes()
    assert page == (tmp_path / "drawn" / "mine-overlap.html").read_bytes()
    assert json.loads((tmp_path / "mine-overlap.json").read_text())["files"] == {"html": gallery.digest(page)}


def test_folders_without_numbers_or_of_several_models_are_refused(tmp_path):
    with pytest.raises(RunError, match="has no folders in it"):
        gallery.draw(tmp_path)
    (tmp_path / "numbers" / "empty").mkdir(parents=True)
    with pytest.raises(RunError, match="of several models, or none"):
        gallery.draw(tmp_path)
