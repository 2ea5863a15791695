"""Probes while a stage trains: they say what the probes say, and training does not know of them."""

import copy
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from child_runs import dies_at_step, results, whole_run
from launch import run_on, varied

import distill.engine.watch
from distill.engine.interruption import StopRequest
from distill.engine.learner import planned_students
from distill.engine.stage import Stage
from distill.engine.watch import Watch, said
from distill.folder import RunFolder
from distill.launch import make_accelerator
from distill.probes.models import ProbedModel
from distill.probes.tasks import TASKS
from distill.probes.validate import validate
from distill.progress import Progress
from distill.recipe.load import from_dict
from distill.runner import Runner, run
from students import Spaces, load_student
from teachers import TeacherSpec, load_teacher

SCENES, SIZE = 64, 48
WATCHED = {"every": 2, "fast_scenes": SCENES, "sizes": [SIZE]}


@pytest.fixture(autouse=True)
def no_probes_in_the_end(monkeypatch):
    """Nothing here is about them, and they take longer than all else."""

    def written(runner):
        if runner.accelerator.is_main_process:
            runner.folder.write_validation(runner.recipe, [], {})

    monkeypatch.setattr("distill.runner.validate_run", written)


def lines_of(folder, stage):
    path = folder / stage / "validation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def watching(config, **settings):
    """A copy of a recipe whose students are probed while they train."""
    return {**copy.deepcopy(config), "validate": {**WATCHED, **settings}}


def same_training(one, other):
    """Two runs left the same students, checkpoints and logs, bit for bit."""
    found, expected = results(one), results(other)
    assert sum(name.endswith("model.safetensors") for name in expected) == 3
    assert sum(name.endswith("adapters.safetensors") for name in expected) == 3
    assert {name: found[name] for name in expected} == expected


RESNET = {
    "arch": "resnet10t",
    "model": {"channels": [8, 8, 16, 16], "output_stride": 8, "drop_path_rate": 0.3},
}


def drops_and_batch_statistics(tiny):
    """Dropout and stochastic depth, which draw from torch's global state, a moving average and an
    encoder with batch statistics."""
    tiny["stages"]["proxy"]["train"]["ema"] = 0.8
    for stage in tiny["stages"].values():
        for student in stage["students"].values():
            student["model"] |= {"drop_path_rate": 0.3}
    tiny["stages"]["proxy"]["students"]["proxy"]["model"] |= {"proj_drop_rate": 0.2}
    tiny["stages"]["multires"]["students"]["convnext"] = {
        **RESNET,
        "teachers": ["proxy/proxy", "sam"],
    }
    return tiny


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit(tiny, tmp_path):
    """Also if it is killed on the way; and the lines are the same: none is missing, none there
    twice."""
    tiny = drops_and_batch_statistics(tiny)
    tiny["data"]["workers"] = 1
    for stage in tiny["stages"].values():
        stage["train"] |= {"steps": 8, "save_every": 3}  # checkpoints at 3, 6 and 8
    whole_run(tiny, tmp_path / "without")
    watched = watching(tiny, fast=["attributes", "affinity", "masks"])
    whole_run(watched, tmp_path / "whole")
    same_training(tmp_path / "whole", tmp_path / "without")
    dies_at_step(watched, tmp_path / "killed", 6)  # of the proxy: after the lines of step 4
    assert lines_of(tmp_path / "killed", "proxy")[-1]["step"] == 4
    dies_at_step(watched, tmp_path / "killed", 5 + 8)  # of the others: after those of step 6
    with (tmp_path / "killed/multires/validation.jsonl").open("a") as file:
        file.write('{"step": 8, "student": "vi')
    whole_run(watched, tmp_path / "killed")
    same_training(tmp_path / "killed", tmp_path / "without")
    for stage, students in (("proxy", ["proxy"]), ("multires", ["vit", "convnext"])):
        lines = lines_of(tmp_path / "whole", stage)
        assert untimed(lines_of(tmp_path / "killed", stage)) == untimed(lines)
        values = {(li["step"], li["student"], li["task"]): li["value"] for li in lines}
        assert len(values) == len(lines) == 4 * len(students) * 3
        for task in ("attributes", "affinity"):
            assert all(values[step, s, task] is not None for step in (2, 4, 6, 8) for s in students)


@pytest.mark.slow
def test_every_may_change_on_the_way(tiny, tmp_path):
    for stage in tiny["stages"].values():
        stage["train"] |= {"steps": 8, "save_every": 2}
    whole_run(tiny, tmp_path / "without")
    dies_at_step(tiny, tmp_path / "run", 7)  # the proxy, which nobody looked at: goes on from 6
    dies_at_step(watching(tiny, every=3), tmp_path / "run", 2 + 5)  # the others: from 4
    assert sorted({line["step"] for line in lines_of(tmp_path / "run", "proxy")}) == [6, 8]
    assert {line["step"] for line in lines_of(tmp_path / "run", "multires")} == {3}
    whole_run(watching(tiny, every=4, fast=["affinity"]), tmp_path / "run")
    lines = lines_of(tmp_path / "run", "multires")
    found = [(line["step"], line["student"], line["task"]) for line in lines]
    assert found == [
        *((3, s, task) for s in ("vit", "convnext") for task in ("knn", "affinity")),
        *((step, s, "affinity") for step in (4, 8) for s in ("vit", "convnext")),
    ]
    same_training(tmp_path / "run", tmp_path / "without")


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.slow
def test_the_last_lines_are_the_probes_of_the_exported_students(tiny, tmp_path, ema):
    for stage in tiny["stages"].values():
        stage["train"] |= {"steps": 5, "lr": 0.03, "ema": ema}  # the end is no multiple of `every`
    tasks = ["image_retrieval", "knn", "masks", "affinity"]
    tiny["validate"] = {**WATCHED, "fast": tasks, "seed": 3}
    run(from_dict(tiny), run_dir=tmp_path, quiet=True)
    sam = load_teacher(TeacherSpec("sam", tiny["teachers"]["sam"]["weights"], tokens=("dense",)))
    for stage, student in (("proxy", "proxy"), ("multires", "vit"), ("multires", "convnext")):
        folder = tmp_path / stage / student
        chains = Spaces.load(folder).chains()
        encoder = load_student(folder).eval()
        # A chain by way of the proxy is put together when the student is exported.
        to_space = chains if student != "vit" else {}
        rows = validate(
            [ProbedModel(f"{stage}/{student}", "student", stage, 0, encoder, to_space)],
            {"sam": sam},
            tasks=tasks,
            sizes=[SIZE],
            train=SCENES,
            test=SCENES,
            seed=3,
        )
        lines = [line for line in lines_of(tmp_path, stage) if line["student"] == student]
        assert sorted({line["step"] for line in lines}) == [2, 4, 5]
        last = [line for line in lines if line["step"] == 5]
        assert [(line["task"], line["metric"]) for line in last] == [
            (row["task"], row["metric"]) for row in rows
        ]
        for line, row in zip(last, rows, strict=True):
            assert line["value"] == row["value"]
            assert (line["samples"], line["better"]) == (row["samples"], row["better"])
            assert (line["seed"], line["image_size"]) == (0, SIZE)
            assert ("reason" in line) == (row["value"] is None)
        lacking = {line["task"] for line in last if line["value"] is None}
        assert lacking == ({"masks"} if student == "vit" else set())
        for metric in ("map", "auc"):  # they change with training
            assert len({line["value"] for line in lines if line["metric"] == metric}) > 1


def prepared(config, folder, name="multires"):
    """A stage with its students as they start, and a Watch."""
    recipe = from_dict(config)
    accelerator = make_accelerator()
    runner = Runner(
        recipe, RunFolder(folder), accelerator, Progress(shown=False), StopRequest(accelerator)
    )
    plans = planned_students(recipe, name)
    stage = runner.stage(name, plans, folder / "checkpoint")
    return stage, [stage.prepare(plan) for plan in plans]


@pytest.mark.parametrize("ema", [None, 0.8])
def test_nothing_that_training_goes_on_from_is_touched(tiny, tmp_path, ema):
    tiny = drops_and_batch_statistics(watching(tiny, fast=list(TASKS)))
    tiny["stages"]["proxy"]["train"]["ema"] = ema
    tiny["stages"]["proxy"]["students"]["resnet"] = {**RESNET, "teachers": ["dinov2", "sam"]}
    stage, trainees = prepared(tiny, tmp_path, "proxy")
    batch = next(stage.pixels(0, 1))
    stage.step(trainees, *batch)
    for trainee in trainees:
        trainee.learner.train()
        next(trainee.learner.modules()).training = False  # neither all in one mode nor the other
    assert any("running_mean" in name for name, _ in trainees[1].learner.named_buffers())
    before = copy.deepcopy([t.learner.state_dict() for t in trainees])
    averages = copy.deepcopy([t.result.state_dict() for t in trainees])
    modes = [[m.training for m in t.learner.modules()] for t in trainees]
    inside = []
    for trainee in trainees:
        student = trainee.result.student
        student.register_forward_pre_hook(
            lambda *_, module=student: inside.append(
                torch.is_grad_enabled() or any(m.training for m in module.modules())
            )
        )
    asked = [[p.requires_grad for p in t.learner.parameters()] for t in trainees]
    moments = copy.deepcopy([t.optimiser.state_dict() for t in trainees])
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    Watch(stage, trainees, 0).probe(1)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()
    assert inside == [False] * 4  # two students, two splits
    for number, trainee in enumerate(trainees):
        for module, then in ((trainee.learner, before), (trainee.result, averages)):
            now = module.state_dict()
            assert all(torch.equal(now[name], held) for name, held in then[number].items())
        assert [m.training for m in trainee.learner.modules()] == modes[number]
        assert [p.requires_grad for p in trainee.learner.parameters()] == asked[number]
        assert all(p.grad is None for p in trainee.learner.parameters())
        state = trainee.optimiser.state_dict()["state"]
        for key, held in moments[number]["state"].items():
            assert all(torch.equal(state[key][name], value) for name, value in held.items())
        assert trainee.tally.of_step == {}
        assert len(trainee.tally.finite) == 1


def test_what_a_task_draws_globally_is_put_back(tiny, tmp_path, monkeypatch):
    def careless(models, teachers, **_):
        random.random(), np.random.rand(), torch.rand(1)
        return []

    monkeypatch.setattr(distill.engine.watch, "validate", careless)
    stage, trainees = prepared(watching(tiny), tmp_path, "proxy")
    drawn = []
    for look in (False, True):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        if look:
            Watch(stage, trainees, 0).probe(1)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(1))))
    assert drawn[0] == drawn[1]


def test_a_student_that_is_stopped_is_left_out(tiny, tmp_path):
    stage, trainees = prepare_both(tiny, tmp_path)
    trainees[0].stopped = 1
    Watch(stage, trainees, 0).probe(2)
    assert {line["student"] for line in lines_of(tmp_path, "proxy")} == {"other"}


def prepare_both(tiny, folder):
    students = tiny["stages"]["proxy"]["students"]
    students["other"] = copy.deepcopy(students["proxy"])
    return prepared(watching(tiny), folder, "proxy")


def test_weights_that_are_not_finite_have_no_value(tiny, tmp_path):
    stage, trainees = prepare_both(tiny, tmp_path)
    with torch.no_grad():
        next(trainees[0].learner.student.parameters()).fill_(float("nan"))
    Watch(stage, trainees, 0).probe(2)
    lines = lines_of(tmp_path, "proxy")
    lost = [line for line in lines if line["student"] == "proxy"]
    assert [line["value"] for line in lost] == [None, None]
    assert all("not finite" in line["reason"] for line in lost)
    assert all(line["value"] is not None for line in lines if line["student"] == "other")


def test_the_time_of_probes_is_not_that_of_images(tiny, tmp_path, monkeypatch):
    """A clock that goes by a second a step, and by a thousand while a student is probed."""
    clock = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: clock[0])
    for module in ("distill.engine.stage", "distill.engine.log", "distill.engine.watch"):
        monkeypatch.setattr(f"{module}.time", fake)
    step, probe = Stage.step, Watch._lines

    def stepped(self, *arguments):
        clock[0] += 1.0
        step(self, *arguments)

    def probed(self, *arguments):
        clock[0] += 1000.0
        return probe(self, *arguments)

    monkeypatch.setattr(Stage, "step", stepped)
    monkeypatch.setattr(Watch, "_lines", probed)
    for stage in tiny["stages"].values():
        stage["train"] |= {"log_every": 3}
    run(from_dict(watching(tiny)), run_dir=tmp_path, quiet=True)
    for stage in ("proxy", "multires"):
        lines = [json.loads(t) for t in (tmp_path / stage / "log.jsonl").read_text().splitlines()]
        assert {line["images_per_second"] for line in lines} == {4.0}
        assert {line["data_wait"] for line in lines} == {0.0}


def test_trackers_and_the_person_are_told(tiny, tmp_path, monkeypatch, capsys):
    sent = {}
    monkeypatch.setattr(
        distill.engine.watch,
        "send",
        lambda _, stage, step, values, say: sent.update({step: values}),
    )
    stages = {"proxy": tiny["stages"]["proxy"]}
    run(from_dict(watching(tiny | {"stages": stages})), run_dir=tmp_path)
    expected = {
        (line["step"], f"proxy/proxy/{line['task']}/{line['metric']}"): line["value"]
        for line in lines_of(tmp_path, "proxy")
    }
    found = {(step, name): v for step, values in sent.items() for name, v in values.items()}
    assert found == expected
    assert len(expected) == 6
    lines = [line for line in capsys.readouterr().out.splitlines() if "(probed in" in line]
    assert len(lines) == 3
    for step, line in zip((2, 4, 6), lines, strict=True):
        knn = expected[step, "proxy/proxy/knn/accuracy"]
        assert line.startswith(f"proxy, step {step}: proxy knn {knn:.4g}, affinity ")


def test_of_many_students_the_mean_is_said():
    values = {"a": 1.0, "b": 2.0, "c": None, "d": 4.0, "e": 5.0}
    lines = [
        {"student": name, "task": task, "value": value, "metric": "m"}
        for name, value in values.items()
        for task in ("knn", "affinity")
    ]
    assert said("s", 7, lines, 1.5) == (
        "s, step 7: mean of 5 students knn 3, affinity 3 (probed in 1.5 s)"
    )
    assert said("s", 7, lines[2:6], 0.04) == (
        "s, step 7: b knn 2, affinity 2; c nothing to score (probed in 0.0 s)"
    )


def test_without_every_nothing_is_probed(tiny, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("probed")

    monkeypatch.setattr(distill.engine.watch, "validate", never)
    tiny["validate"] = {"sizes": [SIZE]}
    run(from_dict(tiny), run_dir=tmp_path, quiet=True)
    assert not list(tmp_path.glob("*/validation.jsonl"))


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"shard": True}, marks=pytest.mark.slow)], ids=str
)
def test_two_ranks_stay_in_step(tiny, tmp_path, changes):
    """The same training as of two ranks that are not probed, and one line for each value."""
    tiny = varied(tiny)
    for stage in tiny["stages"].values():
        stage["train"] |= {"steps": 4, **changes}
    run_on(2, tiny, tmp_path / "without")
    tasks = ["knn", "affinity", "masks"]
    run_on(2, watching(tiny, fast=tasks), tmp_path / "with")
    same_training(tmp_path / "with", tmp_path / "without")
    for stage, students in (("proxy", ["proxy"]), ("multires", ["vit", "convnext"])):
        lines = lines_of(tmp_path / "with", stage)
        found = [(line["step"], line["student"], line["task"]) for line in lines]
        assert found == [(step, s, task) for step in (2, 4) for s in students for task in tasks]
        last = [line for line in lines if line["step"] == 4 and line["task"] != "masks"]
        for student in students:
            encoder = load_student(tmp_path / "with" / stage / student).eval()
            rows = validate(
                [ProbedModel(student, "student", stage, 0, encoder)],
                {},
                tasks=["knn", "affinity"],
                sizes=[SIZE],
                train=SCENES,
                test=SCENES,
            )
            values = [line["value"] for line in last if line["student"] == student]
            assert values == pytest.approx([row["value"] for row in rows], abs=1e-4)
