"""Checkpoints of a stage: safetensors and JSON, whole or not there, the newest two kept.

What is not in them needs no keeping: the schedule and the position in the data follow from the
step, and every random draw from keys (seed, stage, step, name).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.engine.trainee import Trainee
from students import UserError

KEPT = 2


def save_checkpoint(folder: Path, step: int, trainees: Iterable[Trainee]) -> None:
    """Write `folder`/step-N beside, sync it and rename it; drop all but the newest two.

    Raises:
        UserError: if it cannot be written; what was there before is then untouched.
    """
    beside, final = folder / f".step-{step}", folder / f"step-{step:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        _write(beside, step, trainees)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, or of a student that came later
        beside.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        last = newest_checkpoint(folder)
        kept = f"step {last.step} in {last.path} is whole" if last else "there is none before it"
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the checkpoint of step {step} cannot be written to {folder}: {reason}; {kept}. "
            "Make room or set the rights, then give the same command again"
        ) from None
    for old in _found(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _write(beside: Path, step: int, trainees: Iterable[Trainee]) -> None:
    sums, students = {}, {}
    for trainee in trainees:
        students[trainee.plan.name] = {"stopped": trainee.stopped}
        for part, tensors in _tensors(trainee).items():
            name = f"{trainee.plan.name}.{part}.safetensors"
            save_file(tensors, beside / name)
            sums[name] = _digest(beside / name)
            _sync(beside / name)
    state = {"step": step, "students": students, "files": sums}
    (beside / "state.json").write_text(json.dumps(state, indent=2))
    _sync(beside / "state.json")
    _sync(beside)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, the steps that are done, for each student in it the step at
    which it was stopped (None: it was not), and what is wrong with newer ones, a line each."""

    path: Path
    step: int
    students: dict[str, int | None]
    damaged: tuple[str, ...] = ()


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all there and unharmed."""
    damaged: list[str] = []
    for path in _found(folder):
        try:
            state = json.loads((path / "state.json").read_text())
            for name, digest in state["files"].items():
                if _digest(path / name) != digest:
                    raise ValueError(f"{name} is not what was written")
            students = {name: about["stopped"] for name, about in state["students"].items()}
            return Checkpoint(path, state["step"], students, tuple(damaged))
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{path}: {error}")
    return None


def load_trainee(checkpoint: Checkpoint, trainee: Trainee) -> None:
    """Put weights, optimiser, moving average and the log's open sums back as they were saved."""
    name = trainee.plan.name

    def tensors(part: str) -> dict[str, Tensor]:
        return load_file(checkpoint.path / f"{name}.{part}.safetensors")

    trainee.learner.load_state_dict(tensors("weights"))
    state: dict[str, Any] = trainee.optimiser.state_dict()
    state["state"] = {}
    for entry, tensor in tensors("optimiser").items():
        index, _, field = entry.partition(".")
        state["state"].setdefault(int(index), {})[field] = tensor
    trainee.optimiser.load_state_dict(state)
    if trainee.ema is not None:
        trainee.ema.load_state_dict(tensors("ema"))
    trainee.restore_log(tensors("log"))
    trainee.stopped = checkpoint.students[name]


def _tensors(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    optimiser = {
        f"{index}.{field}": value
        for index, entry in trainee.optimiser.state_dict()["state"].items()
        for field, value in entry.items()
        if isinstance(value, Tensor)
    }
    parts = {
        "weights": trainee.learner.state_dict(),
        "optimiser": optimiser,
        "log": trainee.log_state(),
    }
    if trainee.ema is not None:
        parts["ema"] = trainee.ema.state_dict()
    return {part: {n: _stored(t) for n, t in tensors.items()} for part, tensors in parts.items()}


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
