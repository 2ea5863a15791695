"""Checkpoints of a stage: safetensors and JSON, whole or not there, the newest two kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.engine.learner import Trainee

KEPT = 2


def save_checkpoint(folder: Path, step: int, trainees: Iterable[Trainee]) -> None:
    """Write `folder`/step-N beside and rename it; drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    beside, final = folder / f".step-{step}", folder / f"step-{step:09d}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    sums = {}
    for trainee in trainees:
        for part, tensors in _tensors(trainee).items():
            name = f"{trainee.plan.name}.{part}.safetensors"
            save_file(tensors, beside / name)
            sums[name] = _digest(beside / name)
            _sync(beside / name)
    (beside / "state.json").write_text(json.dumps({"step": step, "files": sums}, indent=2))
    _sync(beside / "state.json")
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    _sync(folder)
    for old in _found(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, the steps that are done, the students in it."""

    path: Path
    step: int
    students: frozenset[str]


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all there and unharmed."""
    for path in _found(folder):
        try:
            state = json.loads((path / "state.json").read_text())
            if all(_digest(path / name) == digest for name, digest in state["files"].items()):
                names = frozenset(name.rsplit(".", 2)[0] for name in state["files"])
                return Checkpoint(path, state["step"], names)
        except (OSError, ValueError, KeyError):
            continue
    return None


def load_trainee(path: Path, trainee: Trainee) -> None:
    """Put weights, optimiser and moving average back as they were saved."""
    name = trainee.plan.name
    trainee.learner.load_state_dict(load_file(path / f"{name}.weights.safetensors"))
    flat = load_file(path / f"{name}.optimiser.safetensors")
    state = trainee.optimiser.state_dict()
    state["state"] = {}
    for entry, tensor in flat.items():
        index, _, field = entry.partition(".")
        state["state"].setdefault(int(index), {})[field] = tensor
    trainee.optimiser.load_state_dict(state)
    if trainee.ema is not None:
        trainee.ema.load_state_dict(load_file(path / f"{name}.ema.safetensors"))


def _tensors(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    optimiser = {
        f"{index}.{field}": value
        for index, entry in trainee.optimiser.state_dict()["state"].items()
        for field, value in entry.items()
        if isinstance(value, Tensor)
    }
    parts = {"weights": trainee.learner.state_dict(), "optimiser": optimiser}
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
