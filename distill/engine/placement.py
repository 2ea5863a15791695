"""Where things are: a launch's ranks and devices, and the device on which each teacher is."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill.engine.sharding import shard_teacher
from distill.recipe.build import join
from distill.recipe.schema import Recipe, TeacherConfig
from students import UserError
from teachers import Teacher, TeacherSpec, load_teacher
from teachers.loading import choose_dtype

if TYPE_CHECKING:
    from accelerate import Accelerator


def lone_process(environment: Mapping[str, str]) -> str | None:
    """Why a process that sees no other was not meant to be alone, and what to do; or None.

    `torchrun` says in WORLD_SIZE how many it started. `accelerate launch --cpu` starts one whatever
    --num_processes is, and then names a master for those that it did not start.
    """
    world = int(environment.get("WORLD_SIZE") or 1)
    if world > 1:
        return (
            f"WORLD_SIZE is {world}, but each process would train alone: on CPUs set "
            "ACCELERATE_USE_CPU=true for torchrun; on GPUs, see that torch finds them"
        )
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if launched and "WORLD_SIZE" not in environment:
        return (
            "accelerate launch was asked for several processes and started one: on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N --no-python distill run ..."
        )
    return None


def check_launch(accelerator: Accelerator) -> None:
    """See that a launch of several processes is one run.

    Raises:
        UserError: if each of them would train alone.
    """
    fault = lone_process(os.environ) if accelerator.num_processes == 1 else None
    if fault:
        raise UserError(fault)


def check_shared(folder: Path, rank: int) -> None:
    """See that a process finds the run's folder, once the first one has made it.

    Raises:
        UserError: if it does not, since machines of one run read each other's files there.
    """
    if not (folder / "recipe.yaml").exists():
        raise UserError(
            f"{folder.resolve()} is not there for process {rank}, on {platform.node()}: give "
            "--run-dir a folder that all machines of the run share"
        )


def check_placement(recipe: Recipe) -> None:
    """See that there is a device for each teacher, before anything is loaded.

    Raises:
        UserError: for one that is not on this machine.
    """
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.mps.is_available())}
    for name, config in recipe.teachers.items():
        device = torch.device(config.device or "cpu")
        if (device.index or 0) >= there.get(device.type, 0):
            rest = [f"{kind}:{n}" for kind in ("cuda", "mps") for n in range(there[kind])]
            raise UserError(
                f"{join('teachers', name)}.device: {config.device} is not on this machine; it has "
                f"{', '.join(['cpu', *rest])}"
            )


def notes_of_sharding(recipe: Recipe, accelerator: Accelerator) -> list[str]:
    """A line for each thing that is to be sharded over a single process: it is held whole."""
    if accelerator.num_processes > 1:
        return []
    asked = {join("teachers", name): config.shard for name, config in recipe.teachers.items()}
    for name, stage in recipe.stages.items():
        asked[f"{join('stages', name)}.train"] = stage.train.shard
    return [
        f"{path}.shard: there is one process, which holds all of it"
        for path, shard in asked.items()
        if shard
    ]


def load_placed(spec: TeacherSpec, config: TeacherConfig, accelerator: Accelerator) -> Teacher:
    """A teacher of the recipe where it is to be: beside the students, on a device of its own, or
    sharded. A sharded one is read into the host's memory and goes to the device block by block.

    Raises:
        UserError: as `load_teacher`, and as `shard_teacher`.
    """
    if not config.shard or accelerator.num_processes == 1:
        return load_teacher(spec, torch.device(config.device or accelerator.device))
    dtype = str(choose_dtype(spec.dtype, accelerator.device)).removeprefix("torch.")
    teacher = load_teacher(replace(spec, dtype=dtype))
    shard_teacher(teacher, accelerator)
    return teacher
