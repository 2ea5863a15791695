"""Trainee: what a stage holds of one student, and how a step's gradients become an update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from distill.engine.learner import Learner, StudentPlan
from distill.engine.sharding import (
    own_part,
    shard_learner,
    whole,
    with_weights,
    without_weights,
)
from distill.optim import build_optimiser
from distill.recipe.schema import StageConfig, TrainConfig
from students import Student, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

Parts = dict[tuple[str, str], Tensor]
"""A tensor for each (teacher, token kind)."""


@dataclass
class Trainee:
    """What a stage holds of one student: the module that is called (`wrapped`, DDP where there
    are several processes), the bare learner, its optimiser and its moving average; all of them
    sharded with `train.shard`, and then `empty` is the learner unsharded and without weights.

    `losses` and `sums` add up what the log shows, over the steps since its last line; `step_losses`
    and `step_sums` are those of the step in hand. `finite` holds a flag for each of those steps and
    `bad_run` how many of the last ones in a row were not finite, all on the device. `stopped` is
    the step at which there were too many of them.
    """

    plan: StudentPlan
    learner: Learner
    wrapped: nn.Module
    optimiser: torch.optim.AdamW
    ema: AveragedModel | None
    accelerator: Accelerator
    bad_run: Tensor
    losses: Parts = field(default_factory=dict)
    sums: Parts = field(default_factory=dict)
    step_losses: Parts = field(default_factory=dict)
    step_sums: Parts = field(default_factory=dict)
    finite: list[Tensor] = field(default_factory=list)
    stopped: int | None = None
    empty: Learner | None = None

    @classmethod
    def prepare(
        cls, plan: StudentPlan, learner: Learner, stage: StageConfig, accelerator: Accelerator
    ) -> Trainee:
        """Move to the device, wrap or shard for several processes, and give it an optimiser."""
        sharded = stage.train.shard and accelerator.num_processes > 1
        if stage.train.checkpointing:
            _keep_fewer_activations(learner.student)
        ema = None
        if stage.train.ema is not None:
            ema = AveragedModel(learner)
            ema.n_averaged = ema.n_averaged.to(accelerator.device)
        empty = without_weights(learner) if sharded else None
        for module in [learner] if ema is None else [learner, ema.module]:
            if sharded:
                assert isinstance(module, Learner)
                shard_learner(module, accelerator)
            else:
                module.to(accelerator.device)
        return cls(
            plan,
            learner,
            learner if sharded else accelerator.prepare_model(learner),
            build_optimiser(learner, stage.train),
            ema,
            accelerator,
            torch.zeros((), dtype=torch.int64, device=accelerator.device),
            empty=empty,
        )

    @property
    def result(self) -> Learner:
        """The weights that count: the moving average where there is one."""
        if self.ema is None:
            return self.learner
        averaged = self.ema.module
        assert isinstance(averaged, Learner)
        return averaged

    def whole_result(self) -> Learner | None:
        """`result` unsharded. Of a sharded one all ranks call this, and the first alone gets it, on
        the CPU; the others get None."""
        if self.empty is None:
            return self.result
        first, found = self.accelerator.is_main_process, {}
        for name, tensor in self.result.state_dict().items():
            full = whole(tensor)
            if first:
                found[name] = full.cpu()
        return with_weights(self.empty, found) if first else None

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a part of a batch: ranks exchange gradients with
        the last part alone."""
        if isinstance(self.learner, FSDPModule):
            self.learner.set_requires_gradient_sync(last)
            yield
        elif last or self.accelerator.num_processes == 1:
            yield
        else:
            with self.accelerator.no_sync(self.wrapped):
                yield

    def count(self, where: tuple[str, str], loss: Tensor, sums: Tensor) -> None:
        """Add a part of a batch to what is known of this step; both detached, on the device."""
        self.step_losses[where] = self.step_losses.get(where, 0) + loss
        self.step_sums[where] = self.step_sums.get(where, 0) + sums

    def update(self, rate: float, train: TrainConfig) -> None:
        """One step of the optimiser with the gradients at hand, unless the loss or a gradient is
        not finite on any rank: then weights, moments, step count and moving average stay as they
        are.

        Nothing here waits for the device: the decision is a flag that the fused optimiser reads,
        the way torch's own loss scaling skips a step.
        """
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        norm = whole(get_total_norm(gradients))
        finite = self._everywhere(torch.isfinite(torch.stack([norm, *self.step_losses.values()])))
        halted = self.bad_run >= train.max_nonfinite
        self.bad_run = torch.where(halted, self.bad_run, torch.where(finite, 0, self.bad_run + 1))
        if train.clip is not None:
            clip_grads_with_norm_(self.learner.parameters(), train.clip, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        updated = finite & ~halted
        self.optimiser.found_inf = (~updated).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None and train.ema is not None:
            self._average(self.ema.n_averaged, updated, train.ema)
        self._log(finite)

    @torch.no_grad()
    def _average(self, count: Tensor, updated: Tensor, decay: float) -> None:
        """Move the average towards the weights: with the first update all the way, after a step
        that was left out not at all. AveragedModel's own would wait for the device to count."""
        share = torch.where(updated, torch.where(count == 0, 1.0, 1.0 - decay), 0.0)
        averaged = [own_part(parameter) for parameter in self.result.parameters()]
        weights = [own_part(parameter) for parameter in self.learner.parameters()]
        torch._foreach_mul_(averaged, 1 - share)
        torch._foreach_add_(averaged, list(torch._foreach_mul(weights, share)))
        torch._foreach_copy_(list(self.result.buffers()), list(self.learner.buffers()))
        count += updated

    def broken(self, train: TrainConfig) -> bool:
        """Whether too many steps in a row were not finite; waits for the device."""
        return int(self.bad_run) >= train.max_nonfinite

    def _everywhere(self, finite: Tensor) -> Tensor:
        """Whether all of these flags are set, on all ranks: () bool."""
        found = finite.all()
        ranks = self.accelerator.num_processes
        if ranks == 1:
            return found
        return self.accelerator.reduce(found.float(), "sum") == ranks

    def _log(self, finite: Tensor) -> None:
        """Add the step to what the log will show; one that was left out counts as zero."""
        for held, step in ((self.losses, self.step_losses), (self.sums, self.step_sums)):
            for where, value in step.items():
                held[where] = held.get(where, 0) + torch.where(finite, value, 0)
        self.step_losses, self.step_sums = {}, {}
        self.finite.append(finite)

    def log_state(self) -> dict[str, Tensor]:
        """What the next line of the log will be made of, as named tensors: the mean over ranks, all
        of which call this, so that each may go on from it."""
        state = {"bad_run": self.bad_run}
        if self.finite:
            state["finite"] = torch.stack(self.finite)
        for kept, parts in (("loss", self.losses), ("sums", self.sums)):
            for (name, kind), value in self._over_ranks(parts, () if kept == "loss" else (3,)):
                state[f"{kept} {kind} {name}"] = value
        return state

    def _over_ranks(
        self, parts: Parts, shape: tuple[int, ...]
    ) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """Each of these with its mean over ranks; one that a rank has nothing of counts as zero."""
        if self.accelerator.num_processes == 1:
            yield from parts.items()
            return
        # The flags are the same on all ranks, so all of them come here, or none.
        for name in self.learner.teachers if self.finite else ():
            for kind in self.learner.space(name).kinds:
                held = parts.get((name, kind), torch.zeros(shape, device=self.bad_run.device))
                yield (name, kind), self.accelerator.reduce(held, "mean")

    def restore_log(self, state: dict[str, Tensor]) -> None:
        """Go on from what `log_state` gave."""
        state = {name: tensor.to(self.bad_run.device) for name, tensor in state.items()}
        self.bad_run = state.pop("bad_run")
        self.finite = list(state.pop("finite", torch.empty(0, dtype=torch.bool)))
        for entry, value in state.items():
            kept, kind, name = entry.split(" ", 2)
            (self.losses if kept == "loss" else self.sums)[name, kind] = value


def _keep_fewer_activations(student: Student) -> None:
    try:
        student.model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise UserError(
            f"train.checkpointing: {student.arch} cannot compute its activations again; set it to "
            "false, or lower train.micro_batch"
        ) from None
