"""A part of a batch: what of a rank's batch goes through teachers and students at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distill.cache import view_prints
from distill.data.loader import Batch


@dataclass(frozen=True)
class Part:
    """Some rows of a rank's batch, in order.

    `pixels` (b, 3, S, S) float in [0, 1] on the device, after colour changes; `positions` (b,)
    int64 in the stream; `samples` (b, 3) int64, which view of which sample each is (Batch.samples),
    and `prints` (b,) uint32, their checksums, None where no cache asks for them.
    """

    pixels: Tensor
    positions: Tensor
    samples: NDArray[np.int64]
    prints: NDArray[np.uint32] | None = None


def parts_of(batch: Batch, pixels: Tensor, at_once: int | None, prints: bool) -> Iterator[Part]:
    """A batch in parts of `at_once` rows (None: all of them), whose colours have been changed to
    `pixels`; with the prints of the views if they are wanted."""
    count = at_once or len(pixels)
    checks = view_prints(batch.pixels, batch.draws) if prints else None
    for first in range(0, len(pixels), count):
        rows = slice(first, first + count)
        yield Part(
            pixels[rows],
            batch.positions[rows],
            batch.samples[rows].numpy(),
            None if checks is None else checks[rows],
        )
