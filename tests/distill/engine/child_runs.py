"""Runs in processes of their own that may be killed, and what two runs must have in common."""

import hashlib
import json
import os
import sys
import time
import traceback

import torch

from distill.recipe.load import from_dict
from distill.runner import run

TIMINGS = ("images_per_second", "data_wait")


def in_child(work):
    """Start `work()` in a fork of this process, on one thread, and return its process id.

    The fork has everything imported, so that starting a run costs nothing. It ends with status 1
    and a traceback if `work` raises, else with the number that it returns, or 0.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)  # the threads of OpenMP do not outlive a fork
        status = work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0)


def ended(child, seconds=60.0):
    """Wait for a child: its exit status, or minus the signal that killed it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError(f"still running after {seconds} s")


def whole_run(config, folder):
    """A run from its beginning, or from where it stands, to its end."""
    assert ended(in_child(lambda: run(from_dict(config), run_dir=folder, quiet=True))) == 0


def dies_at_step(config, folder, step):
    """A run that is killed as by `kill -9` in the midst of its `step`-th step since it started."""

    def work():
        from distill.engine.stage import Stage

        original, count = Stage.step, [0]

        def counted(self, *arguments):
            count[0] += 1
            original(self, *arguments)
            if count[0] == step:
                os.kill(os.getpid(), 9)

        Stage.step = counted
        run(from_dict(config), run_dir=folder, quiet=True)

    assert ended(in_child(work)) == -9


def results(folder):
    """What a run leaves that may not depend on how often it was broken off: digests of the exported
    students and of the last checkpoint of each stage, and the logs without timings."""
    found = {}
    for path in sorted(folder.glob("*/*/*")):
        if path.is_file() and path.suffix in {".safetensors", ".json"}:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for stage in sorted(path for path in folder.glob("*/") if path.name != "pictures"):
        last = sorted(stage.glob("checkpoint*/step-*"))[-1:]
        for path in sorted(file for step in last for file in step.iterdir()):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        for name in ("log.jsonl", "nonfinite.jsonl"):
            if (stage / name).exists():
                found[f"{stage.name}/{name}"] = [
                    {k: v for k, v in json.loads(line).items() if k not in TIMINGS}
                    for line in (stage / name).read_text().splitlines()
                ]
    return found


def leftovers(folder):
    """Files and folders that are half written or done with."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*"))
