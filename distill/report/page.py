"""report.html: one self-contained page on a run, which loads nothing and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distill.files import write_whole
from distill.report.compare_page import compare_section
from distill.report.contents import RunContents
from distill.report.curves import charts, probe_charts, probe_sizes
from distill.report.latency_section import latency_section
from distill.report.score_table import score_tables
from students.errors import UserError

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the files of the run, and return its path.

    What is not there (no validation, no pictures, no log, no student exported yet) is left out.
    All text from the recipe, the data or the machine is escaped by the template.

    Raises:
        UserError: if the folder is not a run's, or its pictures.json names a file outside it.
    """
    run = RunContents.read(Path(run_dir))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "size": file_size, "breakable": breakable}
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        comparison=compare_section(run.comparison) if run.comparison else "",
        facts=_facts(run.environment),
        tables=score_tables(run.validation) if run.validation else [],
        curves={stage: charts(log) for stage, log in run.logs.items() if log},
        watched=_watched(run),
        pictures=_pictures(run),
        latency=latency_section(run.path, run.benches) if run.benches else "",
        legends=(run.pictures or {}).get("legends", {}),
        picture_notes=(run.pictures or {}).get("notes", []),
        style=style(),
    )
    path = run.path / "report.html"
    write_whole(path, page)
    return path


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup(_TEMPLATE.with_name("style.css").read_text(encoding="utf-8"))


def count(number: int) -> str:
    """A number of parameters in three figures: 512, 97.3k, 4.02M, 1.9B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def file_size(size: int) -> str:
    """A number of bytes for a reader: 812 B, 4.1 MB."""
    for base, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= base:
            return f"{size / base:.3g} {unit}"
    return f"{size} B"


def breakable(name: str) -> Markup:
    """A name, escaped, that may be broken over lines after each slash."""
    return Markup("/<wbr>").join(name.split("/"))


def duration(seconds: float) -> str:
    """Seconds for a reader: 42 s, 5 min 41 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """environment.json as (term, text) pairs in its own order; nested mappings on one line."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {text(inner)}" for key, inner in value.items())
        if isinstance(value, list):
            return " ".join(text(inner) for inner in value)
        return str(value)

    facts = []
    for key, value in environment.items():
        if value is None or value in ({}, []):
            continue
        if key == "seconds":
            facts.append(("time", _times(value)))
        else:
            facts.append((str(key).replace("_", " "), text(value)))
    return facts


def _times(seconds: float | Mapping[str, float]) -> str:
    """The time of a run in all, and by part where it was taken by part."""
    if not isinstance(seconds, Mapping):
        return duration(seconds)
    parts = ", ".join(f"{part} {duration(value)}" for part, value in seconds.items())
    return f"{duration(sum(seconds.values()))} ({parts})"


def _watched(run: RunContents) -> dict[str, dict[str, Any]]:
    """For each stage whose students were probed while they trained: at which `sizes`, `drawn`."""
    found = {}
    for stage, lines in run.watched.items():
        drawn = probe_charts(lines, [str(line["student"]) for line in run.logs[stage]])
        if drawn:
            found[stage] = {"sizes": probe_sizes(lines), "drawn": drawn}
    return found


def _pictures(run: RunContents) -> list[dict[str, Any]]:
    """The rows of pictures.json with cells gathered in groups and files as data URIs."""
    rows = []
    for row in (run.pictures or {}).get("rows", []):
        groups: dict[str, list[dict[str, str]]] = {}
        for cell in row["cells"]:
            shown = {"title": cell["title"], "uri": _data_uri(run.path / "pictures", cell["file"])}
            groups.setdefault(cell.get("group", ""), []).append(shown)
        rows.append({"caption": row["caption"], "groups": groups})
    return rows


def _data_uri(folder: Path, file: str) -> str:
    path = folder / file
    if path.resolve().parent != folder.resolve():
        raise UserError(f"{folder / 'pictures.json'} names {file!r}, which is not a file beside it")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
