"""Trainee: what a stage holds of one student, and how a step's gradients become an update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from distill.engine.balance import Balance
from distill.engine.learner import Learner, StudentPlan
from distill.engine.sharding import (
    own_part,
    shard_learner,
    whole,
    with_weights,
    without_weights,
)
from distill.engine.tally import Entry, Tally
from distill.optim import build_optimiser
from distill.recipe.schema import StageConfig, TrainConfig
from students import Student, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Trainee:
    """What a stage holds of one student: the module that is called (`wrapped`, DDP where there
    are several processes), the bare learner, its optimiser and its moving average; all of them
    sharded with `train.shard`, and then `empty` is the learner unsharded and without weights.

    `tally` adds up what the log shows; `balance` weighs the teachers. `bad_run` is how many of the
    last steps in a row were not finite, on the device; `stopped` the step at which there were too
    many of them.
    """

    plan: StudentPlan
    learner: Learner
    wrapped: nn.Module
    optimiser: torch.optim.AdamW
    ema: AveragedModel | None
    accelerator: Accelerator
    tally: Tally
    balance: Balance
    bad_run: Tensor
    stopped: int | None = None
    empty: Learner | None = None

    @classmethod
    def prepare(
        cls,
        plan: StudentPlan,
        learner: Learner,
        name: str,
        stage: StageConfig,
        weights: Mapping[str, float],
        accelerator: Accelerator,
    ) -> Trainee:
        """Move to the device, wrap or shard for several processes, and give it an optimiser.

        Args:
            plan, learner: the student.
            name, stage: the stage that it is in.
            weights: of each teacher's loss.
            accelerator: Accelerate's.
        """
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
            Tally(tally_shapes(learner, stage), accelerator),
            Balance((name, stage), plan.seed, learner.teachers, weights, accelerator),
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

    @property
    def adapter_parameters(self) -> int:
        """Number of weights of the adapters to all teachers, on all ranks together."""
        learner = self.learner if self.empty is None else self.empty
        return sum(
            parameter.numel()
            for space in learner.spaces
            for parameter in space.parameters()
            if parameter.requires_grad
        )

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

    def update(self, rate: float, train: TrainConfig) -> None:
        """One step of the optimiser with the gradients at hand, unless the loss or a gradient is
        not finite on any rank: then weights, moments, step count and moving average stay as they
        are.

        Nothing here waits for the device: the decision is a flag that the fused optimiser reads,
        the way torch's own loss scaling skips a step.
        """
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        norm = whole(get_total_norm(gradients))
        losses = [value for entry, value in self.tally.of_step.items() if entry[0] == "loss"]
        finite = self._everywhere(torch.isfinite(torch.stack([norm, *losses])))
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
        self.balance.close_step(self.tally, finite)
        self.tally.close_step(finite)

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

    def state(self) -> dict[str, Tensor]:
        """What a run that goes on needs beside weights, moments and average, as named tensors; all
        ranks call this."""
        return {"bad_run": self.bad_run, **self.tally.state(), **self.balance.state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        here = {name: tensor.to(self.bad_run.device) for name, tensor in state.items()}
        self.bad_run = here["bad_run"]
        self.tally.restore(here)
        self.balance.restore(here)


def tally_shapes(learner: Learner, stage: StageConfig) -> dict[Entry, tuple[int, ...]]:
    """What is added up of a student: for each of its teachers and token kinds with a loss."""
    shapes: dict[Entry, tuple[int, ...]] = {}
    for name in learner.teachers:
        for kind in learner.space(name).kinds:
            if stage.loss.terms(name, kind):
                shapes |= {("loss", kind, name): (), ("sums", kind, name): (3,)}
        if stage.balance.kind == "dropping":
            shapes["kept", name] = ()
    return shapes


def _keep_fewer_activations(student: Student) -> None:
    try:
        student.model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise UserError(
            f"train.checkpointing: {student.arch} cannot compute its activations again; set it to "
            "false, or lower train.micro_batch"
        ) from None
