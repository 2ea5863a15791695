"""Retrieval as rows: the query, then the first answers, framed green where right, red where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distill.report.colours import rgb
from distill.report.correspondences import RIGHT, WRONG
from distill.report.gallery import Cell, Group, rgb_array

SHOWN = 5

_UNCOUNTED = "#9aa0a6"
_FRAME = 1 / 20


@dataclass(frozen=True)
class Answer:
    """A picture (3, H, W) uint8 or a caption, and whether it is right; None where it counts
    neither way."""

    found: Tensor | str
    right: bool | None


def framed(picture: NDArray[np.uint8], right: bool | None) -> NDArray[np.uint8]:
    """A picture (H, W, 3) in a frame (a twentieth of its shorter side) outside of it: green where
    right, red where wrong, grey where it does not count."""
    edge = max(2, round(min(picture.shape[:2]) * _FRAME))
    height, width = picture.shape[:2]
    out = np.empty((height + 2 * edge, width + 2 * edge, 3), dtype=np.uint8)
    out[:] = rgb(_UNCOUNTED if right is None else RIGHT if right else WRONG)
    out[edge:-edge, edge:-edge] = picture
    return out


def retrieval_group(
    title: str,
    queries: Sequence[Tensor | str],
    answers: Mapping[str, Sequence[Sequence[Answer]]],
) -> Group:
    """A row for each query and model: the model, the query, its first five answers.

    `answers[model][query]` are in the model's order, the best first. Queries are pictures or
    captions.
    """
    rows = []
    for number, query in enumerate(queries):
        asked = Cell(text=query) if isinstance(query, str) else Cell(rgb_array(query))
        for model, given in answers.items():
            cells = [_cell(answer) for answer in given[number][:SHOWN]]
            rows.append([Cell(text=model), asked, *cells, *[Cell()] * (SHOWN - len(cells))])
    places = [str(place) for place in range(1, SHOWN + 1)]
    uncounted = any(a.right is None for given in answers.values() for one in given for a in one)
    legend = [("right", RIGHT), ("wrong", WRONG)]
    if uncounted:
        legend.append(("not counted", _UNCOUNTED))
    return Group(title, ["model", "query", *places], rows, [], legend)


def _cell(answer: Answer) -> Cell:
    said = "not counted" if answer.right is None else "right" if answer.right else "wrong"
    if isinstance(answer.found, str):
        return Cell(text=f"{said}: {answer.found}")
    return Cell(framed(rgb_array(answer.found), answer.right), said)
