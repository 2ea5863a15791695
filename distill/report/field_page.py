"""report.html of `distill validate`: several models on public data sets, side by side.

One self-contained page, which loads nothing and runs no script.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from distill.files import write_whole
from distill.report.field_table import (
    dataset_tables,
    published,
    read_results,
    render_field_table,
    score_table,
)
from distill.report.gallery import read_pictures
from distill.report.page import breakable, count, style
from distill.report.resolution import resolution_charts

__all__ = ["render_field_table", "write_field_page"]

_TEMPLATE = Path(__file__).with_name("field.html.jinja")
_WIDE = 1.6


@dataclass(frozen=True)
class _Protocol:
    """A task as it was done on a data set."""

    task: str
    dataset: str
    samples: str
    sizes: str
    protocol: str


def write_field_page(folder: Path) -> Path:
    """Write `folder`/report.html from its results.json and pictures/pictures.json; its path.

    Without pictures, or with images of one size only, that part is left out. All text from names,
    data or protocols is escaped by the template.

    Raises:
        UserError: if there is no results.json, or one of the files is not what it should be.
    """
    folder = Path(folder)
    results = read_results(folder / "results.json")
    tables = dataset_tables(results)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count, "breakable": breakable}
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        style=style(),
        name=results.get("name") or folder.resolve().name,
        created=_moment(str(results.get("created", ""))),
        models=results["models"],
        tables=[(score_table(table), published(table)) for table in tables],
        charts=resolution_charts(results),
        groups=[_group(group, folder / "pictures") for group in read_pictures(folder / "pictures")],
        protocols=_protocols(results),
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def _moment(created: str) -> str:
    """An ISO time for a reader: 2026-11-21 13:08; anything else as it is."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)", created)
    return f"{found[1]} {found[2]}" if found else created


def _group(group: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A group of pictures with files as data URIs; a row's first cell is its heading if it is a
    text."""
    rows = []
    for row in group["rows"]:
        cells = [
            {"title": title, "text": cell.get("text", ""), **_picture(folder, cell)}
            for title, cell in zip(group["columns"], row, strict=True)
        ]
        heading = "" if cells[0]["uri"] else cells.pop(0)["text"]
        rows.append({"heading": heading, "cells": [c for c in cells if c["uri"] or c["text"]]})
    return {**group, "rows": rows}


def _picture(folder: Path, cell: Mapping[str, str]) -> dict[str, Any]:
    if "file" not in cell:
        return {"uri": "", "wide": False}
    data = (folder / cell["file"]).read_bytes()
    with Image.open(folder / cell["file"]) as image:
        wide = image.width > _WIDE * image.height
    return {
        "uri": "data:image/png;base64," + base64.b64encode(data).decode("ascii"),
        "wide": wide,
    }


def _protocols(results: Mapping[str, Any]) -> list[_Protocol]:
    """A line for each task and data set, in the order of the rows."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        key = row["task"], row["dataset"], row.get("protocol", "")
        found.setdefault(key, []).append(row)
    out = []
    for (task, dataset, protocol), rows in found.items():
        samples = max(row.get("samples") or 0 for row in rows)
        sizes = sorted({row["image_size"] for row in rows})
        out.append(
            _Protocol(
                task.replace("_", " "),
                dataset,
                f"{samples:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if samples else "",
                ", ".join(map(str, sizes)),
                protocol,
            )
        )
    return out
