"""Several processes of one run, as a launcher starts them, and what two runs have in common."""

import faulthandler
import json
import os
import socket
import sys
import time
import traceback

import pytest
import torch
from safetensors.torch import load_file

from distill.recipe.load import from_dict
from distill.runner import run


def on_ranks(work, ranks=2, seconds=60.0):
    """Call `work()` in `ranks` processes that reach each other by gloo, and wait for them.

    They are forks of this process, which has everything imported. Fails if one of them raises, or
    if they are not done in time: ranks that wait for each other never are.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = {_fork(work, rank, ranks, port, seconds): rank for rank in range(ranks)}
    until, failed = time.monotonic() + seconds, []
    while children and not failed and time.monotonic() < until:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done and status:
                failed.append(children[child])
            if done:
                del children[child]
        time.sleep(0.01)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert not failed, f"rank {failed[0]} ended with an error, see above"
    assert not children, f"ranks {sorted(children.values())} still wait after {seconds} s"


def _fork(work, rank, ranks, port, seconds):
    child = os.fork()
    if child:
        return child
    faulthandler.dump_traceback_later(0.9 * seconds, exit=True, file=sys.__stderr__)
    try:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        torch.set_num_threads(1)
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",  # the threads of OpenMP do not outlive a fork
        }
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def run_on(ranks, config, folder):
    """A whole run of a recipe in so many processes."""

    def work():
        run(from_dict(config), run_dir=folder, quiet=True)

    if ranks > 1:
        on_ranks(work, ranks)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has
    try:
        work()
    finally:
        torch.set_num_threads(before)


def log_of(folder, stage):
    """The lines of a stage's log, without timings."""
    lines = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"], line["data_wait"]
    return lines


def assert_same_logs(one, other, stage, rel):
    """Every line holds the same losses and explained variances, to `rel` of their size."""
    first, second = log_of(one, stage), log_of(other, stage)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert _flat(b) == pytest.approx(_flat(a), rel=rel, abs=rel)


def _flat(entry, path=""):
    """The numbers of a line by their path."""
    if not isinstance(entry, dict):
        return {path: entry} if isinstance(entry, int | float) else {}
    parts = [_flat(inner, f"{path} {name}") for name, inner in entry.items()]
    return {name: value for part in parts for name, value in part.items()}


def layer_scales_of_one(tiny):
    """Without them features of different images differ by little more than rounding."""
    for stage in tiny["stages"].values():
        for student in stage["students"].values():
            one = "ls_init_value" if student["arch"].startswith("convnext") else "init_values"
            student["model"][one] = 1.0


def varied(tiny):
    """The tiny recipe with all that ranks and parts of a batch could get wrong: teachers of which a
    rank, or a part, has no row; two students, several sizes, clipping, a moving average."""
    tiny["teachers"]["dinov2"]["batch_share"] = 0.125
    tiny["teachers"]["sam"]["batch_share"] = 0.375
    for stage in tiny["stages"].values():
        stage["train"] |= {"batch_size": 8, "log_every": 1, "ema": 0.9, "clip": 1.0}
    layer_scales_of_one(tiny)
    tiny["stages"]["multires"]["students"]["vit"]["teachers"] = ["proxy/proxy", "dinov2"]
    return tiny


def assert_same_run(one, other):
    """Two finished runs of `varied` agree to the rounding of float32 sums.

    AdamW moves a weight whose gradient is nothing but rounding by up to the learning rate, 1e-3, as
    any other; there are few of them.
    """
    for stage in ("proxy", "multires"):
        assert_same_logs(one, other, stage, rel=3e-6)
    students = sorted(path.parent.relative_to(one) for path in one.glob("*/*/model.safetensors"))
    assert len(students) > 1
    for student in students:
        for file in ("model.safetensors", "adapters.safetensors"):
            a, b = load_file(one / student / file), load_file(other / student / file)
            assert a.keys() == b.keys()
            for name in a:
                difference = (a[name].double() - b[name].double()).abs()
                size = max(1.0, float(a[name].abs().max()))
                assert float(difference.max()) < 1e-3 * size, (student, name)
                assert float(difference.mean()) < 2e-6 * size, (student, name)
                assert float((difference > 2e-5 * size).double().mean()) < 0.01, (student, name)
