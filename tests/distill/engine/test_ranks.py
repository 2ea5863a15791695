"""Several processes train what one does: the same views, normalisers, losses and weights."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch import assert_same_run, run_on, varied

from distill.engine.placement import check_shared, lone_process
from distill.recipe.load import from_dict, to_yaml
from students import UserError

BIN = Path(sys.executable).parent
RUNS = {}


def alone(config, kind, tmp_path_factory):
    """The run of one process that the others are compared with."""
    if kind not in RUNS:
        RUNS[kind] = tmp_path_factory.mktemp("alone") / "run"
        run_on(1, config, RUNS[kind])
    return RUNS[kind]


def with_train(config, **changes):
    changed = copy.deepcopy(config)
    for stage in changed["stages"].values():
        stage["train"] |= changes
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks", "changes"),
    [
        ("varied", 2, {}),
        ("varied", 4, {}),
        ("varied", 2, {"micro_batch": 3}),
        ("varied", 2, {"shard": True, "micro_batch": 3}),
        ("varied", 4, {"shard": True, "micro_batch": 1, "checkpointing": True}),
        ("dense alone", 2, {"micro_batch": 3}),
        ("dense alone", 2, {"shard": True}),
    ],
    ids=str,
)
def test_any_ranks_and_parts_are_one(tiny, tmp_path, tmp_path_factory, kind, ranks, changes):
    config = varied(tiny)
    if kind == "dense alone":
        # What pools a student's summary, and its adapters, get no gradient.
        for stage in config["stages"].values():
            stage["loss"] = {"summary": {}}
            stage["train"] |= {"ema": None, "clip": None}
    one = alone(config, kind, tmp_path_factory)
    run_on(ranks, with_train(config, **changes), tmp_path / "run")
    assert_same_run(one, tmp_path / "run")


@pytest.mark.slow
def test_the_console_script_under_torchrun(tiny, tmp_path):
    """The command of docs/scaling.md."""
    config = varied(tiny)
    run_on(1, config, tmp_path / "one")
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(config)))
    done = launched(
        [BIN / "torchrun", "--standalone", "--nproc_per_node=2", "--no-python"],
        tmp_path,
        ACCELERATE_USE_CPU="true",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/environment.json").read_text())["processes"] == 2
    assert_same_run(tmp_path / "one", tmp_path / "run")


def launched(launcher, folder, **environment):
    """`distill run` of the recipe in `folder`, started by `launcher`."""
    before = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.run(
        [*launcher, BIN / "distill", "run", folder / "tiny.yaml", "--run-dir", folder / "run"],
        env={**before, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, None),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2"),
        # What accelerate launch sets for one process, and with --cpu for those that it did not
        # start.
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}, None),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "accelerate launch was asked for several processes and started one",
        ),
        # A cluster's own; nobody launched anything.
        ({"MASTER_ADDR": "node1"}, None),
    ],
    ids=["no launcher", "torchrun 1", "torchrun 2", "accelerate 1", "accelerate 2", "cluster"],
)
def test_a_process_that_sees_no_other(environment, says):
    fault = lone_process(environment)
    assert fault is None if says is None else fault.startswith(says)
    assert says is None or "torchrun" in fault


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        (["torchrun", "--standalone", "--nproc_per_node=2", "--no-python"], "WORLD_SIZE is 2"),
        (["accelerate", "launch", "--cpu", "--num_processes", "2", "--no_python"], "started one"),
    ],
    ids=["torchrun", "accelerate"],
)
def test_processes_that_would_run_alone_are_refused(tiny, tmp_path, launcher, says):
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(tiny)))
    done = launched([BIN / launcher[0], *launcher[1:]], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert says in done.stderr
    assert "runner.py" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_machines_of_a_run_share_its_folder(tmp_path):
    with pytest.raises(UserError, match=r"is not there for process 3, on .* --run-dir a folder"):
        check_shared(tmp_path, 3)
    (tmp_path / "recipe.yaml").touch()
    check_shared(tmp_path, 3)
