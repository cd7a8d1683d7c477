"""One page from a run: question, answer, figures, tables, how it was computed and how to do it again.

The page needs nothing beside itself: no net, no model, no other file. What comes from files (names, prompts) is shown
as text, and scripts are allowed by their digest alone, so that nothing else could run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import tomli_w
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from ivlens.errors import RunError, as_ivlens_error
from ivlens.explorer.kept_page import read_kept
from ivlens.explorer.page import asset, data_text, page_script, script_digest
from ivlens.plots.notebook import figure_json
from ivlens.reports import findings
from ivlens.reports import page as pages
from ivlens.storage import run_folder
from ivlens.storage.atomic_files import write_whole
from ivlens.storage.json_files import read_json
from ivlens.storage.run_record import RunRecord, flat
from ivlens.tables import plain

NAME = "report.html"
BUNDLE = "figures/plotly.min.js"
"""Beside the pages of single figures, which need it, too."""


@as_ivlens_error()
def report(folder: str | Path, *, single_file: bool = True) -> Path:
    """Write `report.html` into a complete run folder, from saved numbers; whole or not at all.

    The same run makes the same page.

    Args:
        folder: Of an audit, a comparison or a study.
        single_file: Put all that the page needs into it, so that it can be sent to somebody; else plotly.js (4.8 MB)
            lies in `figures`, once for all pages of the folder, and the page shows no figures without it.

    Returns:
        Where the page is.

    Raises:
        RunError: no run, unfinished, damaged, or the disk refuses.

    >>> ivlens.report("runs/antonym").name
    'report.html'
    """
    run = run_folder.read_run(folder)
    path = run.path(NAME)
    page = findings.page_of(findings.read_findings(folder))
    try:
        content = _render(page, run, single_file)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder} does not record how it was made ({error}); run again into a new --out") from error
    if not single_file:
        write_whole(run.path(BUNDLE), get_plotlyjs().encode())
    write_whole(path, content.encode(errors="replace"))
    return path


def _render(page: pages.Page, run: run_folder.Run, single_file: bool) -> str:
    loader = jinja2.PackageLoader("ivlens.reports", "page_template")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_as_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": _moment, "written": _write_lines}
    style, script = (_part(loader, environment, f"report.{suffix}") for suffix in ("css", "js"))
    plotly, kept = Markup(get_plotlyjs() if single_file else ""), read_kept(run)
    explorer = Markup(page_script()) if kept else Markup()
    return environment.get_template("report.html").render(
        page=page,
        record=run.record,
        settings=_settings(run.record),
        prompts=_prompts(run),
        again=_again(run.record),
        plan=_plan(run.record),
        data=_data(page),
        style=style + Markup(asset("explorer.css")) if kept else style,
        explorer=explorer,
        heads=data_text(kept) if kept else "",
        plotly=plotly,
        script=script,
        bundle=BUNDLE,
        # Of a file beside a page browsers compare no digest: what lies in the folder is trusted then.
        allowed=" ".join(
            [script_digest(plotly) if single_file else "'self'", *map(script_digest, filter(None, (script, explorer)))]
        ),
        versions={**run.record.versions, "plotly.js (figures)": get_plotlyjs_version()},
    )


def _as_text(value: object) -> object:
    """What a template writes: markup of our own as it is, all else on one line and printable."""
    return value if isinstance(value, Markup) else plain(value)


def _write_lines(text: str) -> Markup:
    """Text of several lines, for a `pre`."""
    return Markup("\n").join(escape(plain(line)) for line in text.split("\n"))


def _moment(when: datetime) -> str:
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _part(loader: jinja2.PackageLoader, environment: jinja2.Environment, name: str) -> Markup:
    return Markup(loader.get_source(environment, name)[0])


def _data(page: pages.Page) -> dict[str, Any]:
    """What the page's script draws and offers for download; the template escapes it."""
    return {
        "title": page.title,
        **{
            key: {name: json.loads(figure_json(figure)) for name, figure in figures.items()}
            for key, figures in (("figures", page.figures), ("narrow", page.narrow))
        },
        "tables": {name: frame.to_csv(index=False) for name, frame in page.data.items()},
    }


def _settings(record: RunRecord) -> dict[str, str]:
    """Of an audit or a comparison; those of a study are its plan."""
    if record.command == "study":
        return {}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in flat({**record.settings, "seed": record.seed})}


def _prompts(run: run_folder.Run) -> dict[str, dict[str, str]]:
    """An example of each kind, where the run kept some."""
    if not run.has("prompts.json"):
        return {}
    path = run.path("prompts.json")
    try:
        found = read_json(path)
        return {kind: {key: str(one[key]) for key in ("text", "answer")} for kind, one in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it to have a page without prompts") from error


def _plan(record: RunRecord) -> str:
    """A study's plan as a file that `ivlens study` reads."""
    if record.command != "study":
        return ""
    return tomli_w.dumps(_set({"model": record.sources["model"].name, **record.settings}))


def _set(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not set, for which TOML has no word."""
    tables = {key: _set(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in tables.items() if value is not None}


def _again(record: RunRecord) -> str:
    """What makes the same run: the command line, or a call where it was made from Python."""
    if record.typed:
        return shlex.join(["ivlens", *record.typed])
    names = {role: source.name for role, source in record.sources.items()}
    if record.command == "study":
        return 'import ivlens\n\nivlens.study("plan.toml", out="run")'
    settings: dict[str, Any] = {**record.settings, "seed": record.seed}
    if record.command == "audit":
        first = f"ivlens.load({names['model']!r})"
    elif record.command == "experiment":
        first = f"{settings.pop('name')!r}, {names['model']!r}"
        settings |= {"tuned": names["tuned"]} if "tuned" in names else {}
    else:
        first = f"{names['base']!r}, {names['tuned']!r}"
    layout = settings.pop("template")
    template = ", ".join(f"{key}={value!r}" for key, value in layout.items())
    is_chat = "jinja" in layout
    kind = "ChatTemplate" if is_chat else "ivlens.Template"
    more = "from ivlens.prompts import ChatTemplate\n" if is_chat else ""
    lines = [f"{first}, {names['task']!r}", "out='run'", *(f"{key}={value!r}" for key, value in settings.items())]
    lines.append(f"template={kind}({template})")
    return f"import ivlens\n{more}\nivlens.{record.command}(\n" + "".join(f"    {line},\n" for line in lines) + ")"
