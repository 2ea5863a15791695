"""Tally: what the log shows of a student, added up on the device from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

Entry = tuple[str, ...]
"""What is added up, of what: ("loss", "dense", teacher), ("sums", "dense", teacher), ("kept",
teacher)."""


class Tally:
    """Sums over the steps since the log's last line that were finite, and those of the step in
    hand. What a rank adds is its part of a mean over ranks.

    Args:
        shapes: every entry that may be added to, with its shape; the same on all ranks.
        accelerator: for reductions over ranks.
    """

    def __init__(self, shapes: Mapping[Entry, tuple[int, ...]], accelerator: Accelerator):
        self.shapes, self.accelerator = dict(shapes), accelerator
        self.of_step: dict[Entry, Tensor] = {}
        self.totals: dict[Entry, Tensor] = {}
        self.finite: list[Tensor] = []

    def add(self, entry: Entry, value: Tensor) -> None:
        """Add to the step in hand; `value` detached, on the device."""
        held = self.of_step.get(entry)
        self.of_step[entry] = value if held is None else held + value

    def close_step(self, finite: Tensor) -> None:
        """The step in hand is done; one that is not `finite`, () bool, counts as zero."""
        for entry, value in self.of_step.items():
            counted = torch.where(finite, value, 0)
            held = self.totals.get(entry)
            self.totals[entry] = counted if held is None else held + counted
        self.of_step = {}
        self.finite.append(finite)

    def mean_over_ranks(self, entry: Entry) -> Tensor:
        """The total of an entry, its mean over ranks, all of which call this; zero where nothing
        was added."""
        held = self.totals.get(entry)
        if held is None:
            held = torch.zeros(self.shapes[entry], device=self.accelerator.device)
        if self.accelerator.num_processes == 1:
            return held
        return self.accelerator.reduce(held, "mean")

    def clear(self) -> None:
        """Begin the log's next line."""
        self.totals, self.finite = {}, []

    def state(self) -> dict[str, Tensor]:
        """What the next line of the log will be made of, as named tensors; all ranks call this."""
        if not self.finite:  # the flags are the same on all ranks
            return {}
        alone = self.accelerator.num_processes == 1
        entries = self.totals if alone else self.shapes
        state = {" ".join(entry): self.mean_over_ranks(entry) for entry in entries}
        return {"finite": torch.stack(self.finite), **state}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        names = {" ".join(entry): entry for entry in self.shapes}
        self.finite = list(state.get("finite", torch.empty(0, dtype=torch.bool)))
        self.totals = {names[name]: value for name, value in state.items() if name in names}
