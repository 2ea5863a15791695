"""Validation: every task on every model at every size, as rows of plain data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distill.probes.extract import extract
from distill.probes.models import CannotProbe, NothingToScore, ProbedModel, SpaceOwner
from distill.probes.tasks import TASKS, Outcome, Probe, Task
from distill.probes.world import DATASET, TextEmbeddings, World
from students.errors import UserError, did_you_mean

Progress = Callable[[str, int, int], None]
"""(what is going on, units of work done, units in all)."""

Row = dict[str, Any]


def validate(
    models: Sequence[ProbedModel],
    teachers: Mapping[str, SpaceOwner],
    *,
    tasks: Sequence[str],
    sizes: Sequence[int],
    train: int,
    test: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of validation.json, one a metric, for every model, image size and task.

    Scenes of a world of their own: `train` that probes learn from and `test` others that they are
    scored on, both a function of `seed`, which also is that of the probes' draws. A model's
    features are computed once a size and shared by its tasks.

    A row holds model, role, stage, seed (the model's), task, dataset, split, image_size, samples,
    metric, value, better ("higher" or "lower"), protocol and seconds (of the whole task, the same
    for each of its metrics, without the features). Where a model cannot do a task, or
    the test split has nothing to score, value is None and `reason` says why.

    Raises:
        UserError: if a task's name is unknown.
    """
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"validate.tasks: unknown task {name!r}{did_you_mean(name, TASKS)}")
    rows: list[Row] = []
    texts = TextEmbeddings()
    total, done = len(sizes) * len(models) * (1 + len(tasks)), 0

    def tell(description: str) -> None:
        nonlocal done
        if progress is not None:
            progress(description, done, total)
        done += 1

    for size in sizes:
        world = World(size, train, test, seed)
        for model in models:
            tell(f"{model.name}: features at {size} px")
            probe: Probe | None = None
            reason = ""
            try:
                probe = _probe(model, world, teachers, seed, device, texts)
            except (CannotProbe, UserError) as problem:
                reason = str(problem)
            for name in tasks:
                tell(f"{model.name}: {name} at {size} px")
                rows += _rows(TASKS[name], model, world, probe, reason)
    if progress is not None:
        progress("validation done", total, total)
    return rows


def _probe(
    model: ProbedModel,
    world: World,
    teachers: Mapping[str, SpaceOwner],
    seed: int,
    device: torch.device | str,
    texts: TextEmbeddings,
) -> Probe:
    size = world.image_size
    train = extract(model.encoder, world.train.images, size, device)
    test = extract(model.encoder, world.test.images, size, device)
    for features in (train, test):
        for tokens in (features.summary, features.dense):
            if tokens is not None and not bool(tokens.isfinite().all()):
                raise CannotProbe(f"{model.name} gives features that are not finite numbers")
    return Probe(model, world, train, test, teachers, seed, device, texts)


def _rows(
    task: Task, model: ProbedModel, world: World, probe: Probe | None, reason: str
) -> list[Row]:
    start = time.perf_counter()
    outcome = Outcome({}, len(world.test))
    if probe is not None:
        try:
            outcome = task.run(probe)
        except (CannotProbe, NothingToScore, UserError) as problem:
            reason = str(problem)
    seconds = round(time.perf_counter() - start, 3)
    rows = []
    for metric in task.metrics:
        value = outcome.values.get(metric)
        row: Row = {
            "model": model.name,
            "role": model.role,
            "stage": model.stage,
            "seed": model.seed,
            "task": task.name,
            "dataset": DATASET,
            "split": "test",
            "image_size": world.image_size,
            "samples": outcome.samples,
            "metric": metric,
            "value": value,
            "better": task.better,
            "protocol": task.protocol,
            "seconds": seconds,
        }
        if value is None:
            row["reason"] = reason
        elif not math.isfinite(value):
            # JSON has no NaN, and a mean must not swallow one.
            row |= {"value": None, "reason": f"{metric} is not a finite number"}
        rows.append(row)
    return rows
