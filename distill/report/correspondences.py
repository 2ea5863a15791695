"""Predicted correspondences between two pictures, as lines from one to the other.

A match is right as PCK counts it (Yang and Ramanan 2013; SPair-71k, arXiv 1908.10543): the
predicted point is no further from the true one than a share, 0.1, of the longer side of the target
object's box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from distill.datasets.parts import KeypointPair
from distill.report.gallery import Cell, Group, rgb_array

RIGHT, WRONG = "#00b884", "#ff6a13"
"""Green and red as colour-blind readers tell them apart; a wrong match also ends in a cross."""

SHARE = 0.1

_HEIGHT, _GAP, _FINER = 240, 8, 2


def right_matches(pair: KeypointPair, predicted: Tensor, share: float = SHARE) -> Tensor:
    """(K,) bool: which predicted points (K, 2), in pixels of the target picture, are within
    `share` of the pair's reach of the true ones."""
    off = torch.linalg.vector_norm(predicted.double().cpu() - pair.target_points.double(), dim=-1)
    return off <= share * pair.reach


def draw_matches(
    source: Tensor, target: Tensor, source_points: Tensor, predicted: Tensor, right: Tensor
) -> NDArray[np.uint8]:
    """Two pictures (3, H, W) uint8 beside each other, 240 pixels high, with a line from each point
    (K, 2) of the first to the predicted one of the second: RGB (240, W, 3).

    Points are x and y in pixels of their own picture. Lines of `right` matches (K,) are green and
    end in dots, others are red and end in crosses, drawn first.
    """
    height, shown = _HEIGHT * _FINER, []
    for picture in (source, target):
        image = Image.fromarray(rgb_array(picture))
        width = max(1, round(image.width * height / image.height))
        shown.append((image.resize((width, height), Image.Resampling.BICUBIC), image.size))
    (left, _), (beside, _) = shown
    start = left.width + _GAP * _FINER
    canvas = Image.new("RGB", (start + beside.width, height), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(beside, (start, 0))
    pen = ImageDraw.Draw(canvas)

    def placed(points: Tensor, which: int, offset: int) -> list[tuple[float, float]]:
        image, (width, tall) = shown[which]
        across, down = image.width / width, height / tall
        # A pixel's number stands for its middle.
        return [
            (offset + (x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5) for x, y in points.tolist()
        ]

    ends = zip(placed(source_points, 0, 0), placed(predicted, 1, start), strict=True)
    for good, (one, other) in sorted(zip(right.tolist(), ends, strict=True), key=lambda m: m[0]):
        colour = RIGHT if good else WRONG
        pen.line([one, other], fill="black", width=5 * _FINER)
        pen.line([one, other], fill=colour, width=3 * _FINER)
        _dot(pen, one, colour)
        (_dot if good else _cross)(pen, other, colour)
    size = round(canvas.width / _FINER), _HEIGHT
    return np.asarray(canvas.resize(size, Image.Resampling.BOX))


def correspondence_group(
    read: Callable[[int], Tensor],
    pairs: Sequence[KeypointPair],
    predictions: Mapping[str, Sequence[Tensor]],
    share: float = SHARE,
) -> Group:
    """A row a pair, a column a model: its matches (K, 2) of each pair in pixels of the target
    picture. `read` gives the picture of a number, (3, H, W) uint8."""
    rows = []
    for number, pair in enumerate(pairs):
        source, target = read(pair.source), read(pair.target)
        cells = []
        for given in predictions.values():
            right = right_matches(pair, given[number], share)
            drawn = draw_matches(source, target, pair.source_points, given[number], right)
            cells.append(Cell(drawn, f"{int(right.sum())} of {len(right)} right"))
        rows.append([Cell(text=pair.category), *cells])
    return Group(
        "Correspondences",
        ["category", *predictions],
        rows,
        [f"Right: within {share:g} of the longer side of the object's box."],
        [("right", RIGHT), ("wrong", WRONG)],
    )


def _dot(pen: ImageDraw.ImageDraw, at: tuple[float, float], colour: str) -> None:
    x, y, r = *at, 5 * _FINER
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="black", width=_FINER)


def _cross(pen: ImageDraw.ImageDraw, at: tuple[float, float], colour: str) -> None:
    x, y, r = *at, 6 * _FINER
    for ink, width in (("black", 5 * _FINER), (colour, 3 * _FINER)):
        for s in (-1, 1):
            pen.line([(x - r, y - s * r), (x + r, y + s * r)], fill=ink, width=width)
