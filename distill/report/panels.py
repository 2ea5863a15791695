"""What several models see in the same pictures, side by side with the truth: dense features,
segmentation, depth and masks from a point.

Pictures are as sources give them, (3, H, W) uint8. Truths and predictions are maps of the
picture's own size, in arrays or tensors on the CPU; predictions by the name of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distill.report.colours import (
    FAR_COLOUR,
    NEAR_COLOUR,
    class_colours,
    colour_classes,
    colour_depth,
    overlay_mask,
)
from distill.report.gallery import Cell, Group, rgb_array
from distill.report.principal import shared_colours

_BLACK = "#000000"
_MOST_CLASSES = 24
_SHOWN = (2, 98)


def feature_group(pictures: Sequence[Tensor], dense: Mapping[str, Tensor], size: int) -> Group:
    """Dense features (B, h, w, D) of each model by their principal components, in colours that are
    comparable between models (see `shared_colours`), at `size` pixels.

    `pictures` are as the models were shown them. The notes tell of each model's outlier tokens.

    Raises:
        ValueError: as `shared_colours`.
    """
    colours = shared_colours(list(dense.values()), size)
    found = zip(dense, colours.outliers, strict=True)
    return Group(
        "Dense features",
        ["picture", *dense],
        [
            [Cell(rgb_array(picture)), *(Cell(drawn[row]) for drawn in colours.pictures)]
            for row, picture in enumerate(pictures)
        ],
        [
            "The first three principal components of all models together as red, green and blue; "
            "the same colour means the same in every model, and grey that a model lacks it.",
            *(f"{name}: {outliers.sentence}" for name, outliers in found),
        ],
    )


def segmentation_group(
    pictures: Sequence[Tensor],
    truths: Sequence[Any],
    predictions: Mapping[str, Sequence[Any]],
    classes: Sequence[str],
) -> Group:
    """Maps of classes (H, W), IGNORE (and all below 0) black. The legend names the classes seen,
    the one with most pixels first, at most 24."""
    colours = class_colours(len(classes))
    seen: Counter[int] = Counter()
    for maps in (truths, *predictions.values()):
        for each in maps:
            numbers, pixels = np.unique(np.maximum(np.asarray(each), -1), return_counts=True)
            seen.update(dict(zip(numbers.tolist(), pixels.tolist(), strict=True)))
    ignored = seen.pop(-1, 0)
    named = [number for number, _ in seen.most_common()]
    legend = [(classes[number], colours[number]) for number in named[:_MOST_CLASSES]]
    if ignored:
        legend.append(("not counted", _BLACK))
    notes = []
    if len(named) > _MOST_CLASSES:
        notes.append(f"{len(named) - _MOST_CLASSES} classes of few pixels are not named.")
    columns, rows = _beside(pictures, truths, predictions, colour_classes)
    return Group("Segmentation", columns, rows, notes, legend)


def depth_group(
    pictures: Sequence[Tensor],
    truths: Sequence[Any],
    predictions: Mapping[str, Sequence[Any]],
    near: float,
    far: float,
    unit: str = "m",
) -> Group:
    """Maps of depth (H, W) in `unit`, all on one scale: the 2nd to the 98th percentile of the
    truths that are known, within `near` and `far`. What is not known in a truth (0) is black."""
    low, high = depth_range(truths, near, far)

    def colour(depth: NDArray) -> NDArray[np.uint8]:
        return np.where((depth > 0)[..., None], colour_depth(depth, low, high), np.uint8(0))

    columns, rows = _beside(pictures, truths, predictions, colour)
    legend = [(f"{low:.3g} {unit}", NEAR_COLOUR), (f"{high:.3g} {unit}", FAR_COLOUR)]
    if any((np.asarray(truth) <= 0).any() for truth in truths):
        legend.append(("not known", _BLACK))
    return Group("Depth", columns, rows, [], legend)


def depth_range(truths: Sequence[Any], near: float, far: float) -> tuple[float, float]:
    """The 2nd and 98th percentile of all known depths within `near` and `far`, which stand in
    where there are none or all are the same."""
    known = np.concatenate([np.asarray(truth, dtype=np.float64).ravel() for truth in truths])
    known = known[(known > 0) & (known >= near) & (known <= far)]
    low, high = np.percentile(known, _SHOWN).tolist() if len(known) else (near, far)
    return (low, high) if high > low else (near, far)


def mask_group(
    pictures: Sequence[Tensor],
    truths: Sequence[Any],
    predictions: Mapping[str, Sequence[Any]],
    points: Sequence[tuple[int, int]],
) -> Group:
    """Masks (H, W), bool, of the object at a point (x, y) of each picture, which is marked."""
    columns = ["truth", *predictions]
    rows = [
        [
            Cell(overlay_mask(rgb_array(picture), np.asarray(maps[row]), points[row]))
            for maps in (truths, *predictions.values())
        ]
        for row, picture in enumerate(pictures)
    ]
    return Group("Mask from a point", columns, rows)


def _beside(
    pictures: Sequence[Tensor],
    truths: Sequence[Any],
    predictions: Mapping[str, Sequence[Any]],
    colour: Any,
) -> tuple[list[str], list[list[Cell]]]:
    """A column for the picture, the truth and each model, and a row a picture."""
    rows = [
        [
            Cell(rgb_array(picture)),
            *(Cell(colour(np.asarray(maps[row]))) for maps in (truths, *predictions.values())),
        ]
        for row, picture in enumerate(pictures)
    ]
    return ["picture", "truth", *predictions], rows
