"""A run that was killed and goes on ends as if nothing had happened: bit for bit."""

import json
import os
import random
import signal
import time

import pytest
from child_runs import dies_at_step, ended, in_child, leftovers, results, whole_run
from launch import layer_scales_of_one
from method_recipes import METHODS

from distill.engine.checkpoint import newest_checkpoint
from distill.recipe.load import from_dict
from distill.runner import run


def _train(**settings):
    def change(tiny):
        for stage in tiny["stages"].values():
            stage["train"] |= settings

    return change


def _teachers(**settings):
    def change(tiny):
        for teacher in tiny["teachers"].values():
            teacher |= settings

    return change


def _dropout(tiny):
    for stage in tiny["stages"].values():
        for student in stage["students"].values():
            drops = {"drop_path_rate": 0.3}
            if "vit" in student["arch"]:
                drops |= {"proj_drop_rate": 0.2, "depth": 2}
            student["model"] |= drops


def _workers(tiny):
    tiny["data"]["workers"] = 2


def _dropout_in_parts(tiny):
    _dropout(tiny)
    _train(micro_batch=2)(tiny)


CHANGES = {
    "as it is": lambda tiny: None,
    "no clip": _train(clip=None),
    "moving average": _train(ema=0.8),
    "weight decay and warm-up": _train(weight_decay=0.3, warmup=4),
    "no normaliser": _teachers(normaliser="none"),
    "l2": _teachers(normaliser="l2"),
    "dropout and stochastic depth": _dropout,
    "the same in parts": _dropout_in_parts,
    "batch share": _teachers(batch_share=0.5),
    "micro-batches": _train(micro_batch=3),
    "activations computed again": _train(checkpointing=True),
    "bfloat16": _train(precision="bf16"),
    "two workers": _workers,
    # The two whose steps leave something behind for the next ones.
    "UNIC": METHODS["dropping"],
    "AM-RADIO": METHODS["partitions"],
}


QUICK = ("the same in parts",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CHANGES],
)
def test_killed_in_each_stage_and_gone_on(tiny, tmp_path, name):
    for stage in tiny["stages"].values():
        # Checkpoints come after 3, 6 and 8 steps, in the middle of an epoch (of 4 steps) and of a
        # line of the log.
        stage["train"] |= {"steps": 8, "log_every": 2, "save_every": 3}
    CHANGES[name](tiny)
    whole_run(tiny, tmp_path / "whole")
    dies_at_step(tiny, tmp_path / "killed", 5)  # of the proxy, which goes on from 3
    dies_at_step(tiny, tmp_path / "killed", 5 + 7)  # the seventh of the others: goes on from 6
    whole_run(tiny, tmp_path / "killed")
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    students = sum(len(stage["students"]) for stage in tiny["stages"].values())
    assert len([name for name in whole if name.endswith("model.safetensors")]) == students
    assert killed == whole


@pytest.mark.slow
def test_killed_at_any_moment(tiny, tmp_path):
    """SIGKILL at twenty moments, spread over all that a run does."""
    began = time.monotonic()
    whole_run(tiny, tmp_path / "whole")
    seconds = time.monotonic() - began
    expected, moments, killed = results(tmp_path / "whole"), random.Random(0), 0
    for number in range(40):
        folder = tmp_path / f"{number}"
        child = in_child(lambda folder=folder: run(from_dict(tiny), run_dir=folder, quiet=True))
        waited = (killed + moments.random()) / 20 * seconds
        time.sleep(waited)
        os.kill(child, signal.SIGKILL)
        if ended(child) == -signal.SIGKILL:
            killed += 1
        else:  # it was faster than the first one
            seconds = 0.9 * waited
        whole_run(tiny, folder)
        assert results(folder) == expected
        assert leftovers(folder) == []
        assert (folder / "report.html").exists()
        if killed == 20:
            break
    assert killed == 20


@pytest.mark.slow
def test_a_student_that_comes_later_goes_on_too(tiny, tmp_path):
    """Its pass has checkpoints of its own; those of the others are not in its way."""
    later = tiny["stages"]["multires"]["students"].pop("vit")
    for folder in ("whole", "killed"):
        whole_run(tiny, tmp_path / folder)
    tiny["stages"]["multires"]["students"]["vit"] = later
    whole_run(tiny, tmp_path / "whole")
    dies_at_step(tiny, tmp_path / "killed", 5)
    found = newest_checkpoint(tmp_path / "killed/multires/checkpoint-2")
    assert found is not None
    assert (found.step, set(found.students)) == (3, {"vit"})
    whole_run(tiny, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not (tmp_path / "killed/multires/checkpoint-3").exists()


@pytest.mark.slow
def test_micro_batches_may_change_on_the_way(tiny, tmp_path):
    """Who runs out of memory sets them and goes on: the same up to the rounding of sums."""
    layer_scales_of_one(tiny)
    whole_run(tiny, tmp_path / "whole")
    dies_at_step(tiny, tmp_path / "killed", 5)
    for stage in tiny["stages"].values():
        stage["train"] |= {"micro_batch": 1, "checkpointing": True}
    tiny["teachers"]["dinov2"]["micro_batch"] = 1
    whole_run(tiny, tmp_path / "killed")
    for stage in ("proxy", "multires"):
        one, other = (
            results(tmp_path / name)[f"{stage}/log.jsonl"] for name in ("whole", "killed")
        )
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=3e-6)


@pytest.mark.slow
def test_a_run_killed_before_it_had_a_recipe_begins(tiny, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".recipe.yaml.new").write_text("name: ti")
    whole_run(tiny, folder)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_what_a_killed_run_left_half_written_is_no_result(tiny, tmp_path):
    whole_run(tiny, tmp_path / "whole")
    folder = tmp_path / "killed"
    dies_at_step(tiny, folder, 9)
    (folder / "environment.json").unlink()
    half = folder / "multires/.vit.new"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (folder / "proxy/.proxy.old").mkdir()
    (folder / "proxy/checkpoint/.step-5").mkdir()
    (folder / ".validation.json.new").write_text("{")
    with (folder / "multires/log.jsonl").open("a") as file:
        file.write('{"step": 2, "student": "vi')
    whole_run(tiny, folder)
    assert leftovers(folder) == []
    assert results(folder) == results(tmp_path / "whole")
    assert json.loads((folder / "environment.json").read_text())["processes"] == 1


@pytest.mark.slow
def test_a_report_that_was_not_written_is_made_up_for(tiny, tmp_path):
    whole_run(tiny, tmp_path)
    (tmp_path / "report.html").unlink()
    before = results(tmp_path)
    whole_run(tiny, tmp_path)
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")
    assert results(tmp_path) == before
