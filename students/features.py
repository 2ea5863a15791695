"""Features: the one thing that an encoder returns, and how two grids of them are matched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TOKEN_KINDS = ("summary", "dense")


@dataclass(frozen=True)
class Features:
    """What an encoder makes of a batch of images.

    `summary` (B, D_s), one vector an image, or None where the encoder has none.
    `dense` (B, h, w, D_d), one vector a patch, channels last, after the encoder's final norm,
    or None where it was not asked for. `levels`: where a student was asked for them, the same of
    each block before the last, the first block first, before the final norm.
    """

    summary: Tensor | None
    dense: Tensor | None
    levels: tuple[Features, ...] = ()

    def get(self, kind: str) -> Tensor | None:
        """The tokens of one kind, "summary" or "dense"."""
        if kind not in TOKEN_KINDS:
            raise ValueError(f"token kind {kind!r}: expected one of {', '.join(TOKEN_KINDS)}")
        return self.summary if kind == "summary" else self.dense

    def map(self, change: Callable[[str, Tensor], Tensor | None]) -> Features:
        """`change(kind, tokens)` applied to the kinds that are there, of every level too."""
        return Features(
            None if self.summary is None else change("summary", self.summary),
            None if self.dense is None else change("dense", self.dense),
            tuple(level.map(change) for level in self.levels),
        )

    def only(self, kinds: tuple[str, ...] | list[str]) -> Features:
        """The same without the kinds that are not named."""
        return Features(
            self.summary if "summary" in kinds else None,
            self.dense if "dense" in kinds else None,
            tuple(level.only(kinds) for level in self.levels),
        )

    def without_levels(self) -> Features:
        """What every encoder gives: the final features alone."""
        return Features(self.summary, self.dense) if self.levels else self


def concatenated(parts: Sequence[Features]) -> Features:
    """The features of several batches as those of one."""
    if len(parts) == 1:
        return parts[0]

    def joined(kind: str) -> Tensor | None:
        tokens = [part.get(kind) for part in parts]
        return None if tokens[0] is None else torch.cat([t for t in tokens if t is not None])

    levels = zip(*(part.levels for part in parts), strict=True)
    return Features(joined("summary"), joined("dense"), tuple(map(concatenated, levels)))


def resize_grid(dense: Tensor, grid: tuple[int, int]) -> Tensor:
    """Dense tokens (B, h, w, D) at another grid (h', w'), bicubic, in float32 inside."""
    if tuple(dense.shape[1:3]) == tuple(grid):
        return dense
    maps = dense.permute(0, 3, 1, 2).float()
    resized = F.interpolate(maps, tuple(grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).to(dense.dtype)


def match_grids(student: Tensor, teacher: Tensor, to: str = "larger") -> tuple[Tensor, Tensor]:
    """Bring two dense maps (B, h, w, ·) to one grid.

    `to` is "larger" (the one with fewer tokens is resized, EUPE), "teacher" (AM-RADIO) or
    "student".

    Raises:
        ValueError: if `to` is none of these.
    """
    ours, theirs = tuple(student.shape[1:3]), tuple(teacher.shape[1:3])
    if to == "larger":
        to = "student" if ours[0] * ours[1] >= theirs[0] * theirs[1] else "teacher"
    if to == "student":
        return student, resize_grid(teacher, (ours[0], ours[1]))
    if to == "teacher":
        return resize_grid(student, (theirs[0], theirs[1])), teacher
    raise ValueError(f"grids can be matched to larger, teacher or student, not {to!r}")
