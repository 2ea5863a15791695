"""Steps whose loss or gradient is not finite: left out, counted, named; too many stop a student."""

import json

import pytest
import torch
from child_runs import results
from safetensors.torch import load_file

from distill.engine import stage as stages
from distill.engine.checkpoint import newest_checkpoint
from distill.engine.objective import Objective
from distill.recipe.load import from_dict
from distill.report.contents import RunContents
from distill.report.curves import charts
from distill.runner import run
from students import UserError


def planting(monkeypatch, student, steps, value, where):
    """Spoil the loss or one gradient of `student` in these steps (from 0)."""
    losses = Objective.losses

    def spoilt(self, trainee, step, *arguments):
        found = losses(self, trainee, step, *arguments)
        if trainee.plan.name != student or step not in steps:
            return found
        if where == "loss":
            return {name: loss * value for name, loss in found.items()}
        first = next(p for p in trainee.learner.parameters() if p.requires_grad)
        first.register_hook(lambda grad: torch.full_like(grad, value))
        return found

    monkeypatch.setattr(Objective, "losses", spoilt)


@pytest.fixture
def pair(tiny):
    """One stage, a ViT and a ConvNeXt with the same teacher, a checkpoint and a line each step."""
    del tiny["stages"]["proxy"]
    stage = tiny["stages"]["multires"]
    for student in stage["students"].values():
        student["teachers"] = ["dinov2"]
    stage["train"] |= {"steps": 6, "log_every": 1, "save_every": 1, "ema": 0.5}
    return tiny


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def state_at(folder, student):
    """Tensors of weights, optimiser and moving average in the newest checkpoint."""
    found = newest_checkpoint(folder / "multires/checkpoint")
    return {
        part: load_file(found.path / f"{student}.{part}.safetensors")
        for part in ("weights", "optimiser", "ema")
    }


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"clip": None}, {"micro_batch": 2}])
@pytest.mark.parametrize(
    ("value", "where"), [(float("nan"), "loss"), (float("inf"), "gradient"), (1e38, "gradient")]
)
def test_a_step_is_left_out_of_one_student(pair, tmp_path, monkeypatch, settings, value, where):
    train = pair["stages"]["multires"]["train"]
    train |= settings
    with monkeypatch.context() as patch:
        train["steps"] = 2
        run(from_dict(pair), run_dir=tmp_path / "spoilt", quiet=True)
        before = state_at(tmp_path / "spoilt", "vit")
        planting(patch, "vit", {2}, value, where)
        train["steps"] = 3
        run(from_dict(pair), run_dir=tmp_path / "spoilt", quiet=True)
        after = state_at(tmp_path / "spoilt", "vit")
    for part, tensors in before.items():
        assert tensors.keys() == after[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after[part][name]), (part, name)
    assert after["ema"]["n_averaged"] == 2
    assert {float(t) for n, t in after["optimiser"].items() if n.endswith("step")} == {2.0}
    log = [entry for entry in lines(tmp_path / "spoilt/multires/log.jsonl") if entry["step"] == 3]
    assert [(entry["student"], entry["nonfinite"]) for entry in log] == [
        ("vit", 1),
        ("convnext", 0),
    ]
    assert (log[0]["loss"], log[0]["teachers"]) == (None, {})
    assert log[1]["loss"] > 0
    (named,) = lines(tmp_path / "spoilt/multires/nonfinite.jsonl")
    assert (named["step"], named["student"]) == (3, "vit")
    assert len(named["samples"]) == 4
    assert all(sample.startswith("scenes/") for sample in named["samples"])


@pytest.mark.slow
def test_the_others_go_on_as_if_alone(pair, tmp_path, monkeypatch):
    run(from_dict(pair), run_dir=tmp_path / "clean", quiet=True)
    with monkeypatch.context() as patch:
        planting(patch, "vit", {0, 3}, float("nan"), "loss")
        run(from_dict(pair), run_dir=tmp_path / "spoilt", quiet=True)
    clean, spoilt = results(tmp_path / "clean"), results(tmp_path / "spoilt")
    for name in clean:
        if "convnext" in name:
            assert spoilt[name] == clean[name]
    assert spoilt["multires/vit/model.safetensors"] != clean["multires/vit/model.safetensors"]
    per_student = [
        [line for line in found["multires/log.jsonl"] if line["student"] == "convnext"]
        for found in (clean, spoilt)
    ]
    assert per_student[0] == per_student[1]
    # A mean over steps of which one was left out is that of the others; a curve has a gap.
    losses = [line["loss"] for line in spoilt["multires/log.jsonl"] if line["student"] == "vit"]
    assert [loss is None for loss in losses] == [True, False, False, True, False, False]
    drawn = charts(RunContents.read(tmp_path / "spoilt").logs["multires"])
    assert drawn[0].drawing.count("<path") == 2


def test_a_window_of_the_log_is_the_mean_of_its_finite_steps(pair, tmp_path, monkeypatch):
    pair["stages"]["multires"]["train"]["steps"] = 3
    with monkeypatch.context() as patch:
        planting(patch, "vit", {2}, float("nan"), "loss")
        run(from_dict(pair), run_dir=tmp_path / "each", quiet=True)
        pair["stages"]["multires"]["train"]["log_every"] = 3
        run(from_dict(pair), run_dir=tmp_path / "window", quiet=True)
    each = [e for e in lines(tmp_path / "each/multires/log.jsonl") if e["student"] == "vit"]
    (window,) = [e for e in lines(tmp_path / "window/multires/log.jsonl") if e["student"] == "vit"]
    assert window["nonfinite"] == 1
    assert window["loss"] == pytest.approx((each[0]["loss"] + each[1]["loss"]) / 2, rel=1e-5)


@pytest.fixture
def three_stages(tiny):
    """The proxy's stage, one of a student of a teacher, one that learns from either."""
    train = {"log_every": 1, "save_every": 2, "max_nonfinite": 3, "steps": 8}
    for stage in tiny["stages"].values():
        stage["train"] |= train
    students = tiny["stages"]["multires"]["students"]
    students["vit"]["teachers"] = ["proxy/proxy"]
    students["convnext"]["teachers"] = ["dinov2"]
    again = {"init": "multires/vit", "teachers": ["dinov2"]}
    tiny["stages"]["last"] = dict(tiny["stages"]["multires"], students={"again": again})
    beside = dict(tiny["stages"]["proxy"]["students"]["proxy"], teachers=["dinov2"])
    tiny["stages"]["proxy"]["students"]["beside"] = beside
    return tiny


def test_too_many_in_a_row_stop_a_student_and_the_others_finish(
    three_stages, tmp_path, monkeypatch, capsys
):
    """From the fourth step on. The checkpoint of step 4 has one bad step behind it already, so the
    last good one is that of step 2."""
    with monkeypatch.context() as patch:
        planting(patch, "proxy", set(range(3, 8)), float("nan"), "loss")
        with pytest.raises(UserError) as caught:
            run(from_dict(three_stages), run_dir=tmp_path, quiet=False)
    said = str(caught.value).splitlines()
    assert said[0].startswith("proxy/proxy is stopped at step 6: ")
    assert said[1:] == [
        "multires/vit is left out: it needs proxy/proxy",
        "last/again is left out: it needs multires/vit",
    ]
    assert "proxy/proxy is stopped at step 6" in capsys.readouterr().out
    exported = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("*/*/model.*")}
    assert exported == {"proxy/beside", "multires/convnext"}
    assert (tmp_path / "report.html").exists()
    found = newest_checkpoint(tmp_path / "proxy/checkpoint")
    assert found.students == {"proxy": 6, "beside": None}
    counts = {
        name: {
            float(tensor)
            for entry, tensor in load_file(found.path / f"{name}.optimiser.safetensors").items()
            if entry.endswith(".step")
        }
        for name in found.students
    }
    assert counts == {"proxy": {2.0}, "beside": {8.0}}
    named = [entry["step"] for entry in lines(tmp_path / "proxy/nonfinite.jsonl")]
    assert named == [4, 5, 6]

    # The same command again says the same and trains nothing.
    before = results(tmp_path)
    monkeypatch.setattr(stages.Stage, "step", None)
    with pytest.raises(UserError) as again:
        run(from_dict(three_stages), run_dir=tmp_path, quiet=True)
    assert str(again.value) == str(caught.value)
    assert results(tmp_path) == before


@pytest.mark.slow
def test_a_stopped_student_stays_stopped_when_the_others_go_on(three_stages, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        planting(patch, "proxy", set(range(1, 8)), float("nan"), "loss")
        with pytest.raises(UserError):
            run(from_dict(three_stages), run_dir=tmp_path / "whole", quiet=True)
        step, count = stages.Stage.step, [0]

        def stops(self, *arguments):
            count[0] += 1
            if count[0] == 7:  # stopped at 4, and two steps of the other saved since
                raise KeyboardInterrupt
            step(self, *arguments)

        patch.setattr(stages.Stage, "step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(from_dict(three_stages), run_dir=tmp_path / "broken", quiet=True)
        said = []
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                run(from_dict(three_stages), run_dir=tmp_path / "broken", quiet=True)
            said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith("proxy/proxy is stopped at step 4: ")
    assert results(tmp_path / "broken") == results(tmp_path / "whole")


def test_a_stage_all_of_whose_students_are_stopped_ends_there(pair, tmp_path, monkeypatch):
    pair["stages"]["multires"]["train"] |= {"max_nonfinite": 2, "steps": 50}
    del pair["stages"]["multires"]["students"]["convnext"]
    with monkeypatch.context() as patch:
        planting(patch, "vit", set(range(50)), float("inf"), "loss")
        with pytest.raises(UserError, match="stopped at step 2"):
            run(from_dict(pair), run_dir=tmp_path, quiet=True)
    assert [line["step"] for line in lines(tmp_path / "multires/log.jsonl")] == [1, 2]
    found = newest_checkpoint(tmp_path / "multires/checkpoint")
    assert (found.step, found.students) == (2, {"vit": 2})
