"""SIGTERM and Ctrl-C: the step in hand ends and is saved, one line, and the run can go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from child_runs import ended, in_child, leftovers, results, whole_run
from launch import run_on

import distill.runner
from distill import cli
from distill.engine import scales
from distill.engine import stage as stages
from distill.engine.checkpoint import newest_checkpoint
from distill.recipe.load import from_dict, to_yaml

BIN = Path(sys.executable).parent
GOES_ON = "; the same command goes on from the last checkpoint\n"


@pytest.fixture
def one(tiny, tmp_path):
    """A stage of one student that saves at its end alone, and its file."""
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["dinov2"]
    tiny["stages"]["proxy"]["train"] |= {"save_every": 100, "log_every": 2}
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(tiny)))
    return tiny


def signalled(tmp_path, where, name, signum, at=1, times=1):
    """Exit status of `distill run` whose process gets a signal when it comes to `name` of the
    module or class `where` for the `at`-th time."""

    def work():
        # What was started in the background of a shell ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        original, count = getattr(where, name), [0]

        def counted(*arguments, **named):
            count[0] += 1
            if count[0] == at:
                for _ in range(times):
                    os.kill(os.getpid(), signum)
            return original(*arguments, **named)

        setattr(where, name, counted)
        return cli.main(["run", str(tmp_path / "tiny.yaml"), "--run-dir", str(tmp_path / "run")])

    return ended(in_child(work))


def goes_on(config, tmp_path):
    whole_run(config, tmp_path / "whole")
    whole_run(config, tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert leftovers(tmp_path / "run") == []


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_the_step_in_hand_ends_and_is_saved(one, tmp_path, capfd, signum, status):
    assert signalled(tmp_path, stages.Stage, "step", signum, at=3) == status
    line = f"distill: interrupted: proxy is saved at step 3 of 6{GOES_ON}"
    assert capfd.readouterr().err.endswith(line)
    assert newest_checkpoint(tmp_path / "run/proxy/checkpoint").step == 3
    goes_on(one, tmp_path)


def test_a_second_one_stops_at_once(one, tmp_path, capfd):
    assert signalled(tmp_path, stages.Stage, "step", signal.SIGINT, at=3, times=2) == 130
    assert capfd.readouterr().err.endswith(f"distill: interrupted{GOES_ON}")
    assert newest_checkpoint(tmp_path / "run/proxy/checkpoint") is None


def test_in_the_last_step(one, tmp_path, capfd):
    assert signalled(tmp_path, stages.Stage, "step", signal.SIGTERM, at=6) == 143
    line = f"distill: interrupted: proxy is saved at step 6 of 6{GOES_ON}"
    assert capfd.readouterr().err.endswith(line)
    goes_on(one, tmp_path)


def test_after_the_last_look(one, tmp_path, capfd):
    """While the last checkpoint is written: it is whole, and nothing else is begun."""
    assert signalled(tmp_path, stages, "save_checkpoint", signal.SIGTERM) == 143
    assert capfd.readouterr().err.endswith(f"distill: interrupted{GOES_ON}")
    assert newest_checkpoint(tmp_path / "run/proxy/checkpoint").step == 6
    goes_on(one, tmp_path)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (distill.runner, "prepare"),
        (stages, "calibrate"),
        (scales, "best_scale"),
        (distill.runner, "export_student"),
        (distill.runner, "validate_run"),
        (distill.runner.Runner, "_report"),
    ],
)
@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_anywhere_else_it_ends_at_once(one, tmp_path, capfd, where, name, signum, status):
    if name == "validate_run":
        one["validate"] = {"tasks": ["knn"], "train": 64, "test": 64}
        (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(one)))
    assert signalled(tmp_path, where, name, signum) == status
    assert capfd.readouterr().err.endswith(f"distill: interrupted{GOES_ON}")
    assert not (tmp_path / "run/report.html").exists()
    if name != "validate_run":
        goes_on(one, tmp_path)
        assert (tmp_path / "run/report.html").exists()


def logged(process, folder):
    """Wait until a run has written its first line; it must not have ended before."""
    until = time.monotonic() + 120
    while not list(folder.glob("proxy/log.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_the_command_itself(one, tmp_path, signum, status):
    """As a terminal or a cluster does it: the signal goes to all processes, the workers too."""
    one["data"]["workers"] = 2
    one["stages"]["proxy"]["train"]["steps"] = 200
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(one)))
    command = [BIN / "distill", "run", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    logged(process, tmp_path / "run")
    os.killpg(process.pid, signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    step = newest_checkpoint(tmp_path / "run/proxy/checkpoint").step
    assert err == f"distill: interrupted: proxy is saved at step {step} of 200{GOES_ON}"
    goes_on(one, tmp_path)


@pytest.mark.slow
def test_two_ranks_save_one_checkpoint(one, tmp_path):
    one["stages"]["proxy"]["train"]["steps"] = 300
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(one)))
    torchrun = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", "29531"]
    command = [BIN / "distill", "run", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "run"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*torchrun, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    logged(process, tmp_path / "run")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    found = newest_checkpoint(tmp_path / "run/proxy/checkpoint")
    assert found is not None, err
    assert 2 <= found.step < 300
    line = f"distill: interrupted: proxy is saved at step {found.step} of 300{GOES_ON}"
    assert err.count(line) == 1, err
    assert leftovers(tmp_path / "run") == []
    for folder in ("run", "whole"):
        run_on(2, one, tmp_path / folder)
    run, whole = results(tmp_path / "run"), results(tmp_path / "whole")
    logs = [found.pop("proxy/log.jsonl") for found in (run, whole)]
    assert run == whole
    # The line in which the run broke off is a mean of means over ranks.
    for line, other in zip(*logs, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
