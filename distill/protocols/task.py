"""What a protocol is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.data.source import IndexedSource
from distill.datasets.parts import EvaluationSet
from distill.probes.models import ProbedModel, SpaceOwner
from distill.probes.tasks import Outcome

SHOWN = 6
"""So many of a task's answers are drawn."""


@dataclass(frozen=True)
class View:
    """How a picture is shown to a model: `show` maps (3, H, W) uint8 to (3, size, size) uint8.

    `name` says all that it does beside `size`; features are filed under both.
    """

    name: str
    size: int
    show: Callable[[Tensor], Tensor]


class Rows(Protocol):
    """Numbers by row, in memory or on disk: `rows[index]` is a float32 tensor on the CPU."""

    @property
    def shape(self) -> torch.Size:
        """Of all rows."""

    def __getitem__(self, index: Any) -> Tensor:
        """The rows of an int64 tensor or a slice."""

    def __len__(self) -> int:
        """How many rows."""


@dataclass(frozen=True)
class Stored:
    """A frozen model's features of all pictures of a split in one view: `summary` (N, D) and
    `dense` (N, h, w, D); None where the model gives none. `averaged`: dense is (N, 1, 1, D), the
    mean of each map, and no map is kept."""

    summary: Rows | None
    dense: Rows | None
    averaged: bool = False


class FeaturesOf(Protocol):
    """Where a task gets features from."""

    def __call__(self, pictures: IndexedSource, view: View, of: str | None = None) -> Stored:
        """All pictures in a view, by the model under test, or by the teacher `of`.

        Raises:
            UserError: pictures cannot be read: how many, and the first of them.
        """


@dataclass(frozen=True)
class Setting:
    """One model on one data set at one size, for one task.

    Args:
        model: under test; `model.to_space` leads to the spaces of `teachers`.
        data: the task's part is in `data.parts`.
        size: side in pixels that the model is shown.
        teachers: those with a text tower or a mask decoder, by name.
        features: of the model, or of the teacher that `of` names: all pictures in a view, from
            disk if they are there. Computed once for all tasks that ask for the same.
        progress: told (done, of all) while something lasts.
        show: a task that makes maps gives it those of the test pictures below SHOWN, by number.
        seed: of every draw.
        rank, ranks: of the processes that work on this together. All of them call the task, with
            the same features in hand; only rank 0's outcome counts.

    """

    model: ProbedModel
    data: EvaluationSet
    size: int
    teachers: Mapping[str, SpaceOwner]
    features: FeaturesOf
    progress: Callable[[int, int], None] = lambda done, total: None
    show: Callable[[int, Tensor], None] = lambda number, answer: None
    seed: int = 0
    device: torch.device | str = "cpu"
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class FieldTask:
    """A task by its published protocol.

    `part`: what it needs of a data set, a key of EvaluationSet.parts, or "" where any pictures do.
    `kind`: "summary", "dense" or "both", the tokens that it reads; dense tasks are repeated at
    several sizes for the curve of resolutions. `metrics`: those that it always gives, percent
    unless the protocol says otherwise; of those in `lower` a lower value is better. `protocol`: one
    line. `run` raises CannotProbe where the model lacks what is needed, NothingToScore where the
    data does.
    """

    name: str
    part: str
    kind: str
    metrics: tuple[str, ...]
    protocol: str
    run: Callable[[Setting], Outcome]
    lower: frozenset[str] = frozenset()
