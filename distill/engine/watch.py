"""Validation while a stage trains: a few probes of the students as they are, in validation.jsonl.

The probes see what would be exported at that step: the moving average where there is one, in eval
mode and without gradients. Nothing that training goes on from is touched, so that it ends with the
same weights, bit for bit, as without it; what is found decides nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from distill.engine.log import MANY, append, forget
from distill.engine.sharding import is_sharded
from distill.engine.trainee import Trainee
from distill.probes.extract import frozen
from distill.probes.models import ProbedModel
from distill.probes.validate import validate
from distill.recipe.resolve import watched_size
from distill.trackers import probe_scalars, send
from students import Spaces

if TYPE_CHECKING:
    from distill.engine.stage import Stage

FILE = "validation.jsonl"

_OF_A_ROW = ("task", "metric", "value", "better", "samples", "image_size", "seconds")


class Watch:
    """The probes `validate.fast` every `validate.every` steps of a stage and at its end, on
    `validate.fast_scenes` scenes of each split. Without `every`, never.

    The first rank probes and the others wait; of sharded students (train.shard) all ranks compute
    the features, and no task in a teacher's own space is done. A student that is stopped is left
    out. All ranks make one and call it at the same steps.

    Args:
        stage: the stage that trains.
        trainees: its students of this pass.
        first: the step from which it goes on; later lines of these students are dropped.
    """

    def __init__(self, stage: Stage, trainees: Sequence[Trainee], first: int):
        self.stage, self.trainees, self.first = stage, trainees, first
        self.config = stage.recipe.validate
        self.every = None if self.config is None else self.config.every
        self.path, self.last = stage.folder / FILE, stage.config.train.steps
        self._forget(lambda step: step > first)

    def look(self, step: int) -> float:
        """Probe after `step` steps, if it is time to, but for the last one; the seconds it took."""
        if self.every is None or step % self.every or step in (0, self.last):
            return 0.0
        return self.probe(step)

    def finish(self) -> None:
        """Probe after the last step, when the scales of the adapters are fitted."""
        if self.every is not None:
            self.probe(self.last)

    def probe(self, step: int) -> float:
        """Probe the students that run, and write their lines; the seconds it took."""
        began = time.perf_counter()
        lines: list[dict[str, Any]] = []
        with _same_draws(self.stage.device):
            for trainee in self.trainees:
                if trainee.stopped is None:
                    lines += self._lines(trainee, step)
        seconds = time.perf_counter() - began
        if lines:
            self._write(step, lines)
            self.stage.progress.say(said(self.stage.name, step, lines, seconds))
        self.stage.accelerator.wait_for_everyone()
        return time.perf_counter() - began

    def _write(self, step: int, lines: list[dict[str, Any]]) -> None:
        stage, values = self.stage, probe_scalars(self.stage.name, lines)
        if step == self.first:
            self._forget(lambda other: other == step)
        append(self.path, lines)
        send(stage.accelerator, stage.name, step, values, stage.progress.say)

    def _forget(self, dropped: Callable[[int], bool]) -> None:
        """Drop the lines that these students have of some steps, and a half written one."""
        if self.stage.accelerator.is_main_process:
            names = {trainee.plan.name for trainee in self.trainees}
            forget(self.path, lambda line: line["student"] in names and dropped(line["step"]))

    def _lines(self, trainee: Trainee, step: int) -> list[dict[str, Any]]:
        """The lines of a student; on other ranks than the first none."""
        stage, config, learner = self.stage, self.config, trainee.result
        first, sharded = stage.accelerator.is_main_process, is_sharded(learner)
        assert config is not None
        if not first and not sharded:
            return []
        plan = trainee.plan
        # A sharded adapter has its weights in a forward pass of the whole learner alone.
        spaces = Spaces({}) if sharded else learner.own_spaces()
        model = ProbedModel(
            f"{stage.name}/{plan.name}",
            "proxy" if plan.config.proxy else "student",
            stage.name,
            plan.seed,
            learner.encode if sharded else learner.student,
            spaces.chains(),
            spaces.left_out(),
        )
        with frozen(learner):
            rows = validate(
                [model],
                {name: target.teacher for name, target in stage.teachers.items()},
                tasks=config.fast if first else (),
                sizes=[watched_size(stage.recipe, config, stage.name)],
                train=config.fast_scenes,
                test=config.fast_scenes,
                seed=config.seed,
                device=stage.device,
            )
        if isinstance(learner, FSDPModule):
            # Without a backward pass its outermost weights stay gathered, and the next update, or
            # the moving average, would go into copies that nothing reads.
            learner.reshard()
        about = {"step": step, "student": plan.name, "seed": plan.seed}
        return [{**about, **_kept(row)} for row in rows]


def said(stage: str, step: int, lines: Sequence[dict[str, Any]], seconds: float) -> str:
    """One line to a person: each student's tasks by their first metric, or of many students the
    mean over them."""
    by_student: dict[str, dict[str, float]] = {}
    for line in lines:
        found = by_student.setdefault(line["student"], {})
        if line["value"] is not None:
            found.setdefault(line["task"], line["value"])
    if len(by_student) > MANY:
        tasks = dict.fromkeys(task for found in by_student.values() for task in found)
        mean = {t: fmean(found[t] for found in by_student.values() if t in found) for t in tasks}
        by_student = {f"mean of {len(by_student)} students": mean}
    parts = [
        f"{student} " + (", ".join(f"{t} {v:.4g}" for t, v in found.items()) or "nothing to score")
        for student, found in by_student.items()
    ]
    return f"{stage}, step {step}: {'; '.join(parts)} (probed in {seconds:.1f} s)"


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """What a line has of a row of `validate`; `reason` where there is no value."""
    return {name: row[name] for name in (*_OF_A_ROW, "reason") if name in row}


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Around what may draw from global states: after it they are as they were."""
    python, old = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(old)
