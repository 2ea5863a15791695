"""What a run is launched on: Accelerate's device and ranks, and what is written down of them."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.engine.placement import check_launch
from distill.trackers import FOLDER as TENSORBOARD

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(trackers: Sequence[str] = (), folder: Path | None = None) -> Accelerator:
    """Accelerate's device and ranks, and the trackers of a run in `folder`, not started yet.

    Raises:
        UserError: if a launcher started several processes and each would train alone.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # A student that is not asked for a summary leaves its pooling weights without a gradient.
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(trackers) or None,
        project_dir=None if folder is None else folder / TENSORBOARD,
    )
    check_launch(accelerator)
    return accelerator


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run is made on, as environment.json holds it."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "transformers", "accelerate", "safetensors")
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "command": " ".join(["distill" if i == 0 else part for i, part in enumerate(sys.argv)]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device.type} {name or platform.machine()}".strip(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in names},
        "revision": _revision(),
    }


def _revision() -> str | None:
    """Revision of this project's checkout, where it is one."""
    home = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
