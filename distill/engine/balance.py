"""Balance: what each teacher's loss weighs for a student, and how far teachers pull apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.balance import conflicts, drop_mask, dropping_draws, magnitude_weights, running_mean
from distill.engine.objective import Lesson
from distill.engine.sharding import blocks
from distill.engine.tally import Tally
from distill.recipe.schema import StageConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


class Balance:
    """The balance of one student's teachers.

    Args:
        stage: the name and the settings of the stage.
        seed: the student's, which draws are keyed by.
        teachers: their names, in order.
        weights: each teacher's `weight`.
        accelerator: for the device, and reductions over ranks.
    """

    def __init__(
        self,
        stage: tuple[str, StageConfig],
        seed: int,
        teachers: list[str],
        weights: Mapping[str, float],
        accelerator: Accelerator,
    ):
        self.stage, config = stage
        self.config, self.batch_size = config.balance, config.train.batch_size
        self.seed, self.teachers, self.accelerator = seed, teachers, accelerator
        device = accelerator.device
        self.fixed = torch.tensor([weights[name] for name in teachers], device=device)
        self.means = torch.zeros(len(teachers), device=device)
        self.begun = torch.zeros(len(teachers), dtype=torch.bool, device=device)
        self.gradients: dict[str, Tensor] = {}
        self.conflicts: dict[str, Tensor] = {}

    def kept(self, step: int, lesson: Lesson, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each of these teachers whether its loss counts for each of its rows: (n,), 1 or 0;
        of none where all of them count (see distill.balance.drop_mask).

        Args:
            step, lesson: what is being taught.
            losses: (n,), of the rows that each teacher sees.
        """
        if self.config.kind != "dropping":
            return {}
        count, device = len(lesson.part.positions), self.accelerator.device
        table = torch.zeros(count, len(self.teachers), device=device)
        seen = torch.zeros_like(table, dtype=torch.bool)
        places = {}
        for column, name in enumerate(self.teachers):
            if name not in losses:
                continue
            index = lesson.rows[name].index
            index = torch.arange(count) if index is None else index
            places[name] = index.to(device, non_blocking=True)
            table[places[name], column] = (losses[name].detach() * self.fixed[column]).float()
            seen[places[name], column] = True
        draws = dropping_draws(
            self.seed,
            self.stage,
            step,
            lesson.part.positions,
            self.batch_size,
            len(self.teachers),
        )
        mask = drop_mask(table, seen, self.config.drop, draws.to(device, non_blocking=True))
        return {
            name: mask[index, self.teachers.index(name)].float() for name, index in places.items()
        }

    def weights(self) -> dict[str, Tensor]:
        """What each teacher's loss is multiplied by, beside its own `weight`; of none where that is
        nothing."""
        if self.config.kind != "magnitude":
            return {}
        return dict(zip(self.teachers, magnitude_weights(self.means).unbind(), strict=True))

    def measures_conflicts(self, step: int) -> bool:
        """Whether the teachers' gradients are compared at this step."""
        every = self.config.conflicts_every
        return every is not None and (step + 1) % every == 0

    def note_gradients(self, losses: Mapping[str, Tensor], model: nn.Module) -> None:
        """Add the gradients that each teacher's loss of a part of a batch sends into the last block
        of a student's encoder."""
        weights = list(list(blocks(model))[-1].parameters())
        for name, loss in losses.items():
            gradients = torch.autograd.grad(
                loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            flat = torch.cat([gradient.flatten().float() for gradient in gradients])
            held = self.gradients.get(name)
            self.gradients[name] = flat if held is None else held + flat

    def close_step(self, tally: Tally, finite: Tensor) -> None:
        """Take a step's losses, still in `tally`, into the running means, unless it was not
        `finite`; and compare the gradients that were noted. All ranks call this."""
        if self.config.kind == "magnitude":
            now = torch.stack([self._loss_of(name, tally) for name in self.teachers])
            now = torch.where(finite, self._over_ranks(now), 0)
            there = now > 0  # a teacher may have seen no row
            moved = running_mean(self.means, now, self.config.momentum, ~self.begun)
            self.means = torch.where(there, moved, self.means)
            self.begun = self.begun | there
        if self.gradients:
            mean = {name: self._over_ranks(own) for name, own in self.gradients.items()}
            self.conflicts, self.gradients = conflicts(mean), {}

    def _loss_of(self, name: str, tally: Tally) -> Tensor:
        own = [v for entry, v in tally.of_step.items() if entry[0] == "loss" and entry[2] == name]
        return torch.stack(own).sum() if own else torch.zeros((), device=self.means.device)

    def _over_ranks(self, own: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return own
        return self.accelerator.reduce(own, "mean")

    def state(self) -> dict[str, Tensor]:
        """What a run that goes on has to know, as named tensors."""
        state = {f"conflict {pair}": cosine for pair, cosine in self.conflicts.items()}
        if self.config.kind == "magnitude":
            state |= {"magnitudes": self.means, "magnitudes begun": self.begun}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.means = state.get("magnitudes", self.means)
        self.begun = state.get("magnitudes begun", self.begun)
        prefix = "conflict "
        self.conflicts = {
            name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
        }
