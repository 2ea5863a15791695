"""Groups of pictures, a row a subject: as PNG files with pictures.json beside them, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.files import write_whole, writing
from students.errors import UserError

INDEX = "pictures.json"

_SIDE, _LEAST = 240, 128


@dataclass(frozen=True)
class Cell:
    """A picture, RGB (H, W, 3) uint8, or a text, or a picture with a text below it."""

    picture: NDArray[np.uint8] | None = None
    text: str = ""


@dataclass(frozen=True)
class Group:
    """Rows of cells in columns of the same titles, notes on what is to be seen, and what its
    colours mean, as (name, #rrggbb)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    legend: Sequence[tuple[str, str]] = field(default=())


def rgb_array(picture: Tensor) -> NDArray[np.uint8]:
    """A picture as sources give it, (3, H, W) uint8, as (H, W, 3)."""
    return np.ascontiguousarray(picture.detach().cpu().numpy().transpose(1, 2, 0))


def write_pictures(groups: Sequence[Group], folder: Path) -> Path:
    """Write every picture as a PNG file, and pictures.json, into `folder`; its path is returned.

    pictures.json is {"groups": [{"title", "columns": [str], "rows": [[cell]], "notes": [str],
    "legend": [{"name", "colour"}]}]}; a cell is {"file"}, {"text"} or both. Pictures of more than
    240 pixels on the shorter side are made smaller; those of few pixels are magnified by a whole
    number.

    Raises:
        ValueError: if a row has more or fewer cells than its group has columns.
        UserError: if the disk will not take them.
    """
    folder = Path(folder)
    content = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for g, group in enumerate(groups):
            rows = []
            for r, row in enumerate(group.rows):
                if len(row) != len(group.columns):
                    raise ValueError(
                        f"row {r} of {group.title!r} has {len(row)} cells for "
                        f"{len(group.columns)} columns"
                    )
                # Named by place: a model's name may hold anything.
                rows.append([_write(c, folder, f"{g}-{r}-{i}.png") for i, c in enumerate(row)])
            content.append(
                {
                    "title": group.title,
                    "columns": list(group.columns),
                    "rows": rows,
                    "notes": list(group.notes),
                    "legend": [{"name": name, "colour": colour} for name, colour in group.legend],
                }
            )
    index = folder / INDEX
    write_whole(index, json.dumps({"groups": content}, indent=1) + "\n")
    return index


def read_pictures(folder: Path) -> list[dict[str, Any]]:
    """The groups of `folder`/pictures.json, as written; none if it is not there.

    Raises:
        UserError: if it is not JSON, or names a file that does not lie beside it.
    """
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        groups = json.loads(index.read_text(encoding="utf-8"))["groups"]
        files = [c["file"] for g in groups for row in g["rows"] for c in row if "file" in c]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{index} does not hold groups of pictures ({error!r}); remove it, or draw it again"
        ) from None
    for file in files:
        path = folder / file
        if path.resolve().parent != folder.resolve() or not path.is_file():
            raise UserError(f"{index} names {file!r}, which is not a file beside it")
    return groups


def _write(cell: Cell, folder: Path, name: str) -> dict[str, str]:
    out = {}
    if cell.picture is not None:
        picture = Image.fromarray(cell.picture)
        shorter = min(picture.size)
        if shorter > _SIDE:
            width, height = (max(1, round(side * _SIDE / shorter)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BOX)
        elif shorter < _LEAST:
            times = math.ceil(_LEAST / shorter)
            width, height = (side * times for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
        picture.save(folder / name, optimize=True)
        out["file"] = name
    if cell.text or cell.picture is None:
        out["text"] = cell.text
    return out
