"""What `check --measure` works out: lines, largest batches, choices of steps; and its print."""

import random
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import distill.measure.run
import distill.measure.steps
from distill.cli import main
from distill.engine.watch import Watch
from distill.measure import MeasuredStage, Measurement, measure
from distill.measure.memory import (
    MOST,
    MemoryLine,
    _group_left,
    fit_line,
    largest_by_trying,
    memory_limit,
    peak_memory,
)
from distill.measure.probes import looks, measure_look
from distill.measure.render import duration, print_measurement
from distill.measure.steps import StepTimes, chosen_steps, loop_seconds
from distill.measure.trial import Trial
from distill.progress import Progress
from distill.recipe.load import from_dict
from students import UserError
from students.keys import draw_size

GIB = 2**30


@pytest.mark.parametrize("limit", [0, 1, 5, 7, 8, 9, 15, 16, 17, 100, 511, 512, 4000])
@pytest.mark.parametrize("start", [1, 3, 8, 12, 32, 600])
def test_the_largest_batch_by_trying(limit, start):
    tried = []

    def fits(images):
        tried.append(images)
        return images <= limit

    found = largest_by_trying(fits, start)
    best = limit if limit < 8 else limit // 8 * 8
    assert found == best
    assert max(tried) <= max(start, 2 * limit)
    assert len(tried) <= 25


def test_no_end_is_tried_for():
    assert largest_by_trying(lambda images: True, 48, most=1000) == 768
    assert largest_by_trying(lambda images: images <= 1, 64, most=64) == 1


def test_a_line_through_peaks_and_what_fits_below_it():
    truth = random.Random(0)
    peaks = [(n, int(3 * GIB + n * 50_000_000 + truth.uniform(-1e6, 1e6))) for n in (4, 8, 16)]
    line = fit_line(peaks)
    assert line.fixed == pytest.approx(3 * GIB, rel=0.01)
    assert line.per_image == pytest.approx(50_000_000, rel=0.02)
    assert MemoryLine(100, 10).largest(limit=100 + 10 * 45) == 40
    assert MemoryLine(100, 10).largest(limit=157) == 5
    assert MemoryLine(100, 10).largest(limit=109) == 0
    assert MemoryLine(100, 0).largest(limit=109) == MOST


def test_the_peak_of_a_block_is_that_of_its_tensors():
    device = torch.device("cpu")
    with peak_memory(device) as small:
        torch.ones(10 * 2**18).sum()
    with peak_memory(device) as large:
        torch.ones(200 * 2**18).sum()
    if small.bytes is None:
        pytest.skip("this system does not reset the peak")
    with peak_memory(device) as again:
        torch.ones(10 * 2**18).sum()
    assert 150 * 2**20 < large.bytes - small.bytes < 250 * 2**20
    assert abs(again.bytes - small.bytes) < 60 * 2**20
    assert large.bytes < memory_limit(device)


def test_the_limit_of_a_control_group(tmp_path):
    assert _group_left(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert _group_left(tmp_path) is None
    (tmp_path / "memory.max").write_text("9000\n")
    assert _group_left(tmp_path) == 4000


def fake_stage(recipe, name, teachers):
    config = recipe.stages[name]
    return SimpleNamespace(
        recipe=recipe, name=name, config=config, teachers=teachers, device=torch.device("cpu")
    )


def test_the_steps_that_are_measured_have_the_mean_work_of_all(tiny):
    tiny["stages"]["multires"]["train"]["steps"] = 1000
    recipe = from_dict(tiny)
    sizes = {"proxy/proxy": [32, 48], "sam": [32, 48]}
    teachers = {name: SimpleNamespace(name=name, sizes=own) for name, own in sizes.items()}
    stage = fake_stage(recipe, "multires", teachers)

    def cost(step):
        own = draw_size([32, 48], 0, "multires", step, "student")
        theirs = [draw_size(s, 0, "multires", step, name) for name, s in sizes.items()]
        return 6 * own**2 + sum(size**2 for size in theirs)

    chosen = chosen_steps(stage, [], least=4)
    assert len(chosen) == len({cost(step) for step in range(1000)})
    mean = sum(cost(step) for step in range(1000)) / 1000
    assert sum(map(cost, chosen)) / len(chosen) == pytest.approx(mean, rel=0.05)
    one_size = fake_stage(recipe, "proxy", {})
    assert len(chosen_steps(one_size, [], least=4)) == 4


def test_a_loop_is_worked_out_from_a_few_batches(recipe, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(distill.measure.steps.time, "perf_counter", lambda: clock[0])
    stage = fake_stage(recipe, "proxy", {})
    before, first = stage.config, [7.0]

    def run():
        clock[0] += 2 + 0.5 * stage.config.calibration_batches + first[0]
        first[0] = 0.0

    assert loop_seconds(stage, 500, run) == pytest.approx(7 + 2 + 0.5 * 500)
    first[0] = 7.0
    assert loop_seconds(stage, 1, run) == pytest.approx(7 + 2 + 0.5)
    assert stage.config == before


class Full(Trial):
    """A trial on a device that holds `room` images."""

    def __init__(self, room, error):
        self.room, self.error, self.trainees = room, error, []
        self.stage = SimpleNamespace(device=torch.device("cpu"))

    def run(self, images):
        if images > self.room:
            raise self.error


def test_running_out_of_memory_is_an_answer_and_other_errors_are_not():
    trial = Full(40, torch.OutOfMemoryError("CUDA out of memory"))
    assert largest_by_trying(trial.fits, 64) == 40
    with pytest.raises(RuntimeError, match="shape"):
        Full(0, RuntimeError("shape")).fits(1)


def stage(**changes):
    made = MeasuredStage(
        name="proxy",
        steps=100,
        batch_size=64,
        step=StepTimes(0.5, 0.25, 12),
        memory=3 * GIB,
        at_once=64,
        largest=96,
        tried=False,
        line=MemoryLine(GIB, 32 * 2**20),
        limit=4 * GIB,
        parts={
            "loading": 1.0,
            "calibration": 2.0,
            "steps": 50.0,
            "saving": 3.0,
            "scaling": 4.0,
            "export": 5.0,
        },
    )
    return replace(made, **changes)


def printed(recipe, *stages, probes=30.0):
    stream = StringIO()
    console = Console(file=stream, width=80)
    print_measurement(Measurement(recipe, "the processor", 5.0, stages, probes), console)
    return stream.getvalue()


def test_the_print(tiny):
    tiny["validate"] = {}
    text = printed(from_dict(tiny), stage())
    (row,) = [line for line in text.splitlines() if line.startswith("proxy ")]
    cells = "proxy 0.5 s 128 25% 3.0 GiB batch_size about 96 6.0 s 50 s 9.0 s 65 s"
    assert " ".join(row.split()) == cells
    assert "1.0 GiB and 32.0 MiB for each image, of 4.0 GiB" in text
    assert "probes, pictures and report: about 30 s (worked out from 64 and 192 scenes" in text
    assert "a whole run on this device alone: about 100 s (5.0 s of it to start)" in text
    assert "do not fit" not in text


def test_the_print_of_what_does_not_fit_names_what_lowers_it(recipe):
    text = printed(recipe, stage(at_once=128, batch_size=128))
    (line,) = [line for line in text.splitlines() if "do not fit" in line]
    assert line.startswith("stages.proxy.train.batch_size: 128 images at once do not fit; ")
    for setting in (
        "stages.proxy.train.micro_batch to 96",
        "stages.proxy.train.checkpointing to true",
        "lower stages.proxy.train.batch_size",
        "lower teachers.dinov2.batch_share",
        "lower teachers.sam.batch_share",
    ):
        assert setting in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.44, "8.4 s"),
        (119, "119 s"),
        (700, "12 min"),
        (3600 * 3 + 1200, "3 h 20 min"),
        (86_400 * 4 + 3600 * 3, "4 days 3 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_several_processes_are_refused(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        measure(recipe, Progress(shown=False))


@pytest.mark.slow
def test_a_recipe_is_measured_and_nothing_is_left(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(distill.measure.steps, "ENOUGH_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    tiny["validate"] = {"tasks": ["knn"], "train": 64, "test": 64}
    found = measure(from_dict(tiny), Progress(shown=False), starting=1.0)
    assert [s.name for s in found.stages] == ["proxy", "multires"]
    for part in found.stages:
        assert set(part.parts) == {
            "loading",
            "calibration",
            "steps",
            "saving",
            "scaling",
            "export",
        }
        assert all(seconds > 0 for seconds in part.parts.values())
        assert part.parts["steps"] == pytest.approx(6 * part.step.seconds)
        assert 0 <= part.step.data_wait <= 1
        assert part.largest is None or part.largest >= 4
    assert found.probes is not None
    parts = [s.seconds for s in found.stages]
    assert found.seconds == pytest.approx(found.starting + sum(parts) + found.probes)
    assert found.starting > 1.0
    assert list(tmp_path.iterdir()) == []


def test_check_measures_when_asked(tiny, tmp_path, monkeypatch, capsys):
    from distill.recipe.load import to_yaml

    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(from_dict(tiny)))
    recipes = []

    def measured(recipe, progress, starting):
        recipes.append(recipe)
        return Measurement(recipe, "the processor", starting, (stage(),), None)

    monkeypatch.setattr(distill.measure, "measure", measured)
    assert main(["check", str(path)]) == 0
    assert recipes == []
    assert "measured on" not in capsys.readouterr().out
    assert main(["check", str(path), "--measure", "stages.proxy.train.steps=9"]) == 0
    assert recipes[0].stages["proxy"].train.steps == 9
    assert "measured on the processor" in capsys.readouterr().out


def test_probes_on_the_way_are_counted(tiny, tmp_path, monkeypatch):
    """As often as a run of 6 steps makes them, at the time that the second of two took."""
    tiny["validate"] = {"every": 4, "fast_scenes": 64}
    recipe = from_dict(tiny)
    assert [looks(recipe, "proxy"), looks(from_dict({**tiny, "validate": None}), "proxy")] == [2, 0]
    tiny["validate"]["every"] = 6
    assert looks(from_dict(tiny), "proxy") == 1
    took = iter([50.0, 3.0])
    monkeypatch.setattr(Watch, "probe", lambda self, step: next(took))
    made = SimpleNamespace(
        recipe=recipe,
        config=recipe.stages["proxy"],
        folder=tmp_path,
        accelerator=SimpleNamespace(is_main_process=True),
    )
    assert measure_look(made, []) == 3.0
    text = printed(recipe, stage(parts={**stage().parts, "probes": 6.0}))
    assert "proxy: probes while it trains, 2 x 3.0 s (measured)" in text
    assert "about 106 s (5.0 s of it to start)" in text
    assert "while it trains" not in printed(recipe, stage())
