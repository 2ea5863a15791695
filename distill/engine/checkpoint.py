"""Checkpoints of a stage: safetensors and JSON, whole or not there, the newest two kept.

What is not in them needs no keeping: the schedule and the position in the data follow from the
step, and every random draw from keys (seed, stage, step, name).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.engine.sharding import split_like, whole
from distill.engine.trainee import Trainee
from distill.files import refusal, sync
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
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir()
        _write(beside, step, trainees)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one
        beside.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        last = newest_checkpoint(folder)
        kept = f"step {last.step} in {last.path} is whole" if last else "there is none before it"
        raise UserError(
            f"the checkpoint of step {step} cannot be written to {folder}: "
            f"{refusal(error) or error}; {kept}. "
            "Make room or set the rights, then give the same command again"
        ) from None
    # Later ones are damaged: a run goes on from the newest that is whole.
    found = _found(folder)
    for old in [path for path in found if path > final] + found[found.index(final) :][KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def give_parts(trainees: Iterable[Trainee]) -> None:
    """What the other ranks do while the first one saves: of a sharded student it writes all parts,
    in the files that an unsharded one has."""
    for trainee in trainees:
        for tensors in _tensors(trainee).values():
            for tensor in tensors.values():
                whole(tensor.detach())


def _write(beside: Path, step: int, trainees: Iterable[Trainee]) -> None:
    sums, students = {}, {}
    for trainee in trainees:
        students[trainee.plan.name] = {
            "stopped": trainee.stopped,
            "bad_run": int(trainee.bad_run),
        }
        for part, tensors in _tensors(trainee).items():
            name = f"{trainee.plan.name}.{part}.safetensors"
            save_file({n: _stored(tensor) for n, tensor in tensors.items()}, beside / name)
            sums[name] = _digest(beside / name)
            sync(beside / name)
    state = {"step": step, "students": students, "files": sums}
    state["sha256"] = _digest_of(state)
    (beside / "state.json").write_text(json.dumps(state, indent=2))
    sync(beside / "state.json")
    sync(beside)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, the steps that are done, for each student in it the step at
    which it was stopped (None: it was not) and how many of its last steps in a row were not finite,
    and what is wrong with newer checkpoints, a line each."""

    path: Path
    step: int
    students: dict[str, int | None]
    bad_runs: dict[str, int]
    damaged: tuple[str, ...] = ()


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all there and unharmed."""
    return next(whole_checkpoints(folder), None)


def whole_checkpoints(folder: Path) -> Iterator[Checkpoint]:
    """The checkpoints whose files are all there and unharmed, the newest first."""
    damaged: list[str] = []
    for path in _found(folder):
        try:
            state = _state(path)
        except _DamagedError as error:
            damaged.append(f"{path}: {error}")
            continue
        students = state["students"]
        yield Checkpoint(
            path,
            state["step"],
            {name: about["stopped"] for name, about in students.items()},
            {name: about["bad_run"] for name, about in students.items()},
            tuple(damaged),
        )


def damage(folder: Path) -> str | None:
    """What is wrong with the newest checkpoint of a folder in which none is whole, one line; None
    if there is none at all."""
    for path in _found(folder):
        try:
            _state(path)
        except _DamagedError as error:
            return f"{path}: {error}"
    return None


class _DamagedError(Exception):
    """What is wrong with a checkpoint."""


def _state(path: Path) -> dict[str, Any]:
    """What state.json says, once all that it vouches for was found as it was written."""
    name = "state.json"
    try:
        state = json.loads((path / name).read_bytes())
        if not isinstance(state, dict) or state.pop("sha256", None) != _digest_of(state):
            raise ValueError
        for name, digest in state["files"].items():
            if _digest(path / name) != digest:
                raise ValueError
    except FileNotFoundError:
        raise _DamagedError(f"{name} is missing") from None
    except OSError as error:
        raise _DamagedError(f"{name} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise _DamagedError(f"{name} is not what was written") from None
    return state


def load_trainee(checkpoint: Checkpoint, trainee: Trainee) -> None:
    """Put weights, optimiser, moving average and the log's open sums back as they were saved."""
    name = trainee.plan.name

    def tensors(part: str) -> Iterator[tuple[str, Tensor]]:
        # One at a time: of what is sharded, a rank need not hold all.
        with safe_open(checkpoint.path / f"{name}.{part}.safetensors", "pt") as file:
            for entry in file.keys():  # noqa: SIM118  (no mapping)
                yield entry, file.get_tensor(entry)

    _restore(trainee.learner, tensors("weights"))
    state: dict[str, Any] = trainee.optimiser.state_dict()
    parameters = [p for group in trainee.optimiser.param_groups for p in group["params"]]
    state["state"] = {}
    for entry, tensor in tensors("optimiser"):
        index, _, field = entry.partition(".")
        parameter = parameters[int(index)]
        split = split_like(tensor, parameter) if tensor.shape == parameter.shape else tensor
        state["state"].setdefault(int(index), {})[field] = split
    trainee.optimiser.load_state_dict(state)
    if trainee.ema is not None:
        _restore(trainee.ema, tensors("ema"))
    trainee.restore(dict(tensors("log")))
    trainee.stopped = checkpoint.students[name]


def roll_back(folder: Path, trainee: Trainee) -> None:
    """Put a student back to its newest checkpoint after a finite step, if there is one: the last
    updates may have been what broke it."""
    for found in whole_checkpoints(folder):
        if found.bad_runs.get(trainee.plan.name) == 0:
            load_trainee(found, trainee)
            return


def _restore(module: nn.Module, tensors: Iterator[tuple[str, Tensor]]) -> None:
    held = module.state_dict()
    module.load_state_dict(
        {name: split_like(tensor, held.get(name, tensor)) for name, tensor in tensors}
    )


def _tensors(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    """What is kept of a student, file by file; in the same order on all ranks."""
    optimiser = {
        f"{index}.{field}": value
        for index, entry in trainee.optimiser.state_dict()["state"].items()
        for field, value in entry.items()
        if isinstance(value, Tensor)
    }
    parts = {
        "weights": trainee.learner.state_dict(),
        "optimiser": optimiser,
        "log": trainee.state(),
    }
    if trainee.ema is not None:
        parts["ema"] = trainee.ema.state_dict()
    return parts


def _stored(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).to("cpu", copy=True).contiguous()


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
