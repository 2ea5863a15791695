"""Out of memory: which stage it was, and what would lower it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.recipe.build import join
from distill.recipe.schema import Recipe
from students import UserError

_SAID = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or the machine's, did not do: torch has several ways to say so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


@contextmanager
def stage_memory(recipe: Recipe, stage: str, device: torch.device) -> Iterator[None]:
    """Around all work of a stage.

    Raises:
        UserError: if memory ran out, with the settings that lower what the stage takes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(_advice(recipe, stage, device)) from None


@contextmanager
def probe_memory(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Around the probes.

    Raises:
        UserError: if memory ran out, with the settings that lower what they take.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        config = recipe.validate
        assert config is not None
        raise UserError(
            f"the probes need more memory than there is ({device.type}): lower validate.train (now "
            f"{config.train}), validate.test (now {config.test}) or validate.sizes, then give the "
            "same command again: the students are trained"
        ) from None


def _advice(recipe: Recipe, stage: str, device: torch.device) -> str:
    path, train = join("stages", stage), recipe.stages[stage].train
    students = recipe.stages[stage].students.values()
    teachers = [
        name for name in recipe.teachers if any(name in student.teachers for student in students)
    ]
    going_on = [f"{path}.train.micro_batch ({_now(train.micro_batch)})"]
    if not train.checkpointing:
        going_on.append(f"{path}.train.checkpointing (now false, true takes less)")
    anew = [f"{path}.train.batch_size (now {train.batch_size})"]
    for name in teachers:
        config, at = recipe.teachers[name], join("teachers", name)
        going_on.append(f"{at}.micro_batch ({_now(config.micro_batch)})")
        anew.append(f"{at}.batch_share (now {config.batch_share:g})")
    return (
        f"stage {stage} needs more memory than there is ({device.type}): lower "
        f"{', '.join(going_on)}, and the same command goes on from the last checkpoint; or, with "
        f"another --run-dir, {', '.join(anew)}"
    )


def _now(value: int | None) -> str:
    return "not set" if value is None else f"now {value}"
