"""Trackers: the values of log.jsonl, sent to TensorBoard or Weights & Biases as well."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.recipe.build import NAME, NAME_RULE
from distill.recipe.checks import unknown_names
from distill.recipe.schema import TRACKERS, TrackingConfig
from students.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "tensorboard"
"""Where TensorBoard's files lie in a run's folder."""

# Numbers are what was asked for: no console output, no code, no description of the machine.
_WANDB_SETTINGS = {
    "console": "off",
    "quiet": True,
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def tracking_problems(config: TrackingConfig) -> list[str]:
    """A line for each tracker that is unknown, given twice or not installed."""
    found = unknown_names("tracking.to", config.to, TRACKERS, "tracker", empty=True)
    for index, name in enumerate(config.to):
        if name in TRACKERS and not _installed(name):
            found.append(
                f"tracking.to[{index}]: {name} is not installed: pip install {name} (or "
                "distill-workbench[tracking]), or leave it out; log.jsonl is always written"
            )
    if config.project is not None and not NAME.fullmatch(config.project):
        found.append(f"tracking.project: {config.project!r} is no name ({NAME_RULE})")
    return found


def _installed(name: str) -> bool:
    # Not find_spec: Weights & Biases leaves folders called wandb, which Python would take for it.
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def start_trackers(
    accelerator: Accelerator, config: TrackingConfig, name: str, folder: Path
) -> None:
    """Start, on the first rank, the trackers that `accelerator` was made with.

    Args:
        accelerator: Accelerate's, with `log_with=config.to` and `project_dir=folder / FOLDER`.
        config: what the recipe asks for.
        name: the recipe's.
        folder: the run's, which holds its environment.json; a run that goes on in it goes on in
            Weights & Biases too.

    Raises:
        UserError: if one cannot start, as when nobody is logged in.
    """
    if not config.to or not accelerator.is_main_process:
        return
    wandb = {
        "name": folder.name,
        "dir": str(folder),
        "id": _identity(folder),
        "resume": "allow",
        "settings": _WANDB_SETTINGS,
    }
    try:
        accelerator.init_trackers(config.project or name, init_kwargs={"wandb": wandb})
    except Exception as error:
        raise UserError(
            f"tracking.to: {', '.join(config.to)} could not start: {_first_line(error)}. For "
            "wandb, log in (wandb login) or set WANDB_MODE=offline; or leave tracking out"
        ) from None


def send(
    accelerator: Accelerator,
    stage: str,
    step: int,
    values: Mapping[str, float],
    say: Callable[[str], None],
) -> None:
    """Send values of one step of a stage, by name, to every tracker.

    A tracker that fails is named once by `say` and gets nothing more: training does not hang on it.
    """
    values = dict(values)
    for tracker in list(accelerator.trackers):
        try:
            if tracker.name == "wandb":
                # Its own step may not fall, and each stage begins at 1: steps are a value there.
                tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                tracker.log({**values, f"{stage}/step": step})
            else:
                tracker.log(values, step=step)
        except Exception as error:
            accelerator.trackers.remove(tracker)
            say(f"{tracker.name} gets nothing more from this run: {_first_line(error)}")


def scalars(stage: str, line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of log.jsonl by name: STAGE/STUDENT/loss and so on,
    STAGE/STUDENT/TEACHER/KIND/loss and STAGE/STUDENT/TEACHER/KIND/explained_variance. A loss that
    was not finite is left out."""
    prefix = f"{stage}/{line['student']}"
    own = ("loss", "lr", "images_per_second", "data_wait", "nonfinite")
    found = {f"{prefix}/{name}": line[name] for name in own if line[name] is not None}
    for teacher, kinds in line["teachers"].items():
        for kind, entry in kinds.items():
            found |= {f"{prefix}/{teacher}/{kind}/{name}": value for name, value in entry.items()}
    return found


def probe_scalars(stage: str, lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The values of lines of validation.jsonl by name, STAGE/STUDENT/TASK/METRIC; those that there
    are none of are left out."""
    return {
        f"{stage}/{line['student']}/{line['task']}/{line['metric']}": line["value"]
        for line in lines
        if line["value"] is not None
    }


def finish_trackers(accelerator: Accelerator) -> None:
    """Let every tracker write what it still holds.

    Accelerate's own `end_training` takes the process group down too, and a program may have
    another run to do.
    """
    while accelerator.trackers:
        accelerator.trackers.pop().finish()


def _identity(folder: Path) -> str:
    """What is this run's alone, and the same when it goes on: where and when it was begun."""
    begun = json.loads((folder / "environment.json").read_text())
    begun.pop("seconds", None)
    text = f"{folder.name} {json.dumps(begun, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else type(error).__name__
    secret = os.environ.get("WANDB_API_KEY")
    return text.replace(secret, "***") if secret else text
