"""A part of a batch: what of a rank's batch goes through teachers and students at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.cache import view_prints
from distill.data.loader import Batch


@dataclass(frozen=True)
class Part:
    """Some rows of a rank's batch, in order.

    `pixels` (b, 3, S, S) float in [0, 1] on the device, after colour changes; `positions` (b,)
    int64 in the stream; `samples` (b, 3) int64, which view of which sample each is (Batch.samples),
    and `prints` (b,) uint32, their checksums, None where no cache asks for them; `partition` is
    the name of the stage's partition that they are all in, if it has any.
    """

    pixels: Tensor
    positions: Tensor
    samples: NDArray[np.int64]
    prints: NDArray[np.uint32] | None = None
    partition: str | None = None


def parts_of(
    batch: Batch,
    pixels: Tensor,
    at_once: int | None,
    prints: bool,
    split: Sequence[tuple[str | None, Tensor | None]] = ((None, None),),
) -> Iterator[Part]:
    """A batch, whose colours have been changed to `pixels`, in parts.

    Args:
        batch, pixels: a rank's rows, (b, 3, S, S).
        at_once: rows of a part at most (None: all).
        prints: whether the prints of the views are wanted.
        split: partitions and their rows (see Roster.split); no part is of two of them.
    """
    checks = view_prints(batch.pixels, batch.draws) if prints else None
    for name, index in split:
        own = pixels if index is None else pixels[index.to(pixels.device, non_blocking=True)]
        places = torch.arange(len(pixels)) if index is None else index
        for first in range(0, len(own), at_once or len(own)):
            rows = places[first : first + (at_once or len(own))]
            yield Part(
                own[first : first + len(rows)],
                batch.positions[rows],
                batch.samples[rows].numpy(),
                None if checks is None else checks[rows.numpy()],
                name,
            )
