"""bench.json as its tables have it: a line for each model and format, a column for each way that it
was timed. Without torch, for the report and the card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Bench = Mapping[str, Any]
"""The content of bench.json: `machine` and `rows`, see distill.formats.bench."""

_COLUMN = ("size", "batch", "threads")


@dataclass(frozen=True)
class Column:
    """How something was timed: image side in pixels, images at once, threads."""

    size: int
    batch: int
    threads: int

    @property
    def words(self) -> str:
        """batch 8, 1 thread."""
        return f"batch {self.batch}, {self.threads} thread{'' if self.threads == 1 else 's'}"


@dataclass(frozen=True)
class Line:
    """What one model in one format takes: `ms` for each column, None where it was not timed, and
    the largest memory of a process of its own and that of its libraries alone, in 10^6 bytes."""

    model: str
    form: str
    ms: tuple[float | None, ...]
    peak_mb: float | None
    library_mb: float | None


def read_bench(folder: Path) -> Bench | None:
    """bench.json of a student's folder; None without one that can be read."""
    try:
        content = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        for row in content["rows"]:
            Column(*(int(row[key]) for key in _COLUMN))
            str(row["model"]), str(row["format"]), float(row["median_ms"])
        dict(content["machine"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return dict(content) if content["rows"] else None


def columns(bench: Bench) -> list[Column]:
    """By size, threads and batch."""
    found = {_column(row) for row in bench["rows"]}
    return sorted(found, key=lambda column: (column.size, column.threads, column.batch))


def lines(bench: Bench) -> list[Line]:
    """In the order of the rows, those of one model together."""
    rows, order = bench["rows"], columns(bench)
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        for form in dict.fromkeys(row["format"] for row in mine):
            found.append(_line(model, form, [r for r in mine if r["format"] == form], order))
    return found


def machine_words(machine: Mapping[str, Any]) -> str:
    """AMD EPYC, 2 cores, Linux-6.1, python 3.11, torch 2.9, onnxruntime 1.23."""
    words = [str(machine.get("processor", ""))]
    if machine.get("cores"):
        words.append(f"{machine['cores']} cores")
    words.append(str(machine.get("platform", "")))
    versions = dict(machine.get("versions") or {})
    if machine.get("python"):
        versions = {"python": machine["python"], **versions}
    return ", ".join([*filter(None, words), *(f"{name} {one}" for name, one in versions.items())])


def _column(row: Mapping[str, Any]) -> Column:
    return Column(*(int(row[key]) for key in _COLUMN))


def _line(
    model: str, form: str, rows: Sequence[Mapping[str, Any]], order: Sequence[Column]
) -> Line:
    by_column = {_column(row): float(row["median_ms"]) for row in rows}
    known = [row for row in rows if row.get("peak_mb") is not None]
    most = max(known, key=lambda row: row["peak_mb"], default={})
    return Line(
        model,
        form,
        tuple(by_column.get(column) for column in order),
        most.get("peak_mb"),
        most.get("library_mb"),
    )
