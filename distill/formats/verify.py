"""An exported file against the student that it was made of, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.formats.calibration import comparison_images
from distill.formats.encoder import ExportedEncoder
from students import TOKEN_KINDS, Student

LARGEST_ERROR = 1e-4
"""What a float file may differ by in any feature, over the largest feature where that is above 1:
float32 sums in another order differ by some 1e-6 of it."""

IMAGES = 4
"""Images of a comparison at each size."""


def sizes_to_compare(
    student: Student, size: int, others: Sequence[int] | None
) -> list[tuple[int, int]]:
    """(height, width) of each comparison: the file's own size, and if it takes any, `others` that
    the student was trained at, and one whose sides differ, so that they cannot have been mixed up.
    `others` is None for a file of one size."""
    if others is None:
        return [(size, size)]
    stride = student.stride
    legal = [other for other in (size, *others) if other % stride == 0]
    return [*((one, one) for one in dict.fromkeys(legal)), (size + 2 * stride, size + stride)]


def compare(
    encoder: ExportedEncoder, student: Student, sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """For each size: height, width, images, and for summary and dense the largest absolute error
    (max_error), the largest absolute feature of the student (largest), and the mean and smallest
    cosine over tokens (mean_cosine, min_cosine); None where it is no finite number."""
    found = []
    for height, width in sizes:
        pixels = comparison_images(height, width, IMAGES)
        training = student.training
        with torch.no_grad():
            expected = student.eval()(pixels, (height, width))
        student.train(training)
        given = encoder(pixels, (height, width))
        row: dict[str, Any] = {"height": height, "width": width, "images": len(pixels)}
        for kind in TOKEN_KINDS:
            ours, theirs = expected.get(kind), given.get(kind)
            assert ours is not None
            assert theirs is not None
            row[kind] = _difference(ours, theirs)
        found.append(row)
    return found


def largest_error(comparison: Sequence[dict[str, Any]]) -> float:
    """The largest error of any size and kind, as LARGEST_ERROR has it; infinite where one is no
    number."""
    found = [row[kind] for row in comparison for kind in TOKEN_KINDS]
    if any(one["max_error"] is None for one in found):
        return float("inf")
    return max(one["max_error"] / max(one["largest"], 1.0) for one in found)


def _difference(expected: Tensor, given: Tensor) -> dict[str, float | None]:
    if expected.shape != given.shape:
        return dict.fromkeys(("max_error", "largest", "mean_cosine", "min_cosine"))
    cosine = F.cosine_similarity(expected.double(), given.double(), dim=-1)
    values = {
        "max_error": (expected - given).abs().max(),
        "largest": expected.abs().max(),
        "mean_cosine": cosine.mean(),
        "min_cosine": cosine.min(),
    }
    # JSON has no NaN.
    return {name: float(v) if bool(v.isfinite()) else None for name, v in values.items()}
