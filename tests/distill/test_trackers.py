"""Trackers: what TensorBoard and Weights & Biases are sent, against log.jsonl."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
from accelerate.tracking import GeneralTracker, WandBTracker
from accelerate.utils import LoggerType

import distill.runner
import distill.trackers
from distill.recipe.load import RecipeError, from_dict, prepare
from distill.runner import run
from students import UserError


def logged(folder, stages=("proxy", "multires")):
    """{(name, step): value} that the log.jsonl of some stages holds."""
    found = {}
    for stage in stages:
        for text in (folder / stage / "log.jsonl").read_text().splitlines():
            line = json.loads(text)
            at = f"{stage}/{line['student']}/"
            for name in ("loss", "lr", "images_per_second", "data_wait", "nonfinite"):
                found[at + name, line["step"]] = line[name]
            for teacher, kinds in line["teachers"].items():
                for kind, entry in kinds.items():
                    for name, value in entry.items():
                        found[f"{at}{teacher}/{kind}/{name}", line["step"]] = value
    return found


def events(folder):
    """{(tag, step): value} in all of TensorBoard's files below a folder, as its own reader sees
    them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in folder.rglob("events.out.tfevents.*"):
        reader = EventAccumulator(str(path), size_guidance={"scalars": 0})
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            found |= {(tag, event.step): event.value for event in reader.Scalars(tag)}
    return found


class Fake(GeneralTracker):
    """A tracker that keeps what it is sent; with `broken`, its second call fails."""

    requires_logging_directory = False

    def __init__(self, name="fake", broken=False):
        self.name, self.broken = name, broken
        self.sent, self.metrics, self.finished = [], {}, 0
        super().__init__()

    @property
    def tracker(self):
        return self

    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric

    def log(self, values, step=None, **kwargs):
        if self.broken and self.sent:
            raise OSError("no route to the server\nand much more")
        self.sent.append((step, dict(values)))

    def finish(self):
        self.finished += 1


@pytest.fixture
def faked(monkeypatch):
    """Let a run's accelerator log with this tracker."""

    def use(tracker):
        from accelerate import Accelerator

        def made(*_):
            return Accelerator(log_with=[tracker])

        monkeypatch.setattr(distill.runner, "make_accelerator", made)
        monkeypatch.setattr(distill.trackers, "_installed", lambda name: True)

    return use


def test_nothing_is_sent_unless_asked_for(tiny, tmp_path):
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / "wandb").exists()


def test_tensorboard_holds_what_the_log_holds(tiny, tmp_path):
    tiny["tracking"] = {"to": ["tensorboard"]}
    folder = tmp_path / "run"
    run(from_dict(tiny), run_dir=folder, quiet=True)
    assert events(folder / "tensorboard" / "tiny") == pytest.approx(logged(folder), rel=1e-6)
    assert ("multires/convnext/sam/dense/explained_variance", 4) in logged(folder)


def test_a_run_that_goes_on_goes_on_in_tensorboard(tiny, tmp_path):
    tiny["stages"] = {"proxy": tiny["stages"]["proxy"]}
    folder = tmp_path / "run"
    run(from_dict(tiny), run_dir=folder, quiet=True)
    tiny["tracking"] = {"to": ["tensorboard"], "project": "later"}
    tiny["stages"]["proxy"]["train"]["steps"] = 10
    run(from_dict(tiny), run_dir=folder, quiet=True)
    steps = {step for _, step in events(folder / "tensorboard" / "later")}
    assert steps == {8, 10}


def test_a_tracker_gets_each_step_once_and_is_finished(tiny, tmp_path, faked):
    tracker = Fake()
    faked(tracker)
    tiny["tracking"] = {"to": ["wandb"]}
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    sent = {(name, step): value for step, values in tracker.sent for name, value in values.items()}
    assert sent == logged(tmp_path / "run")
    assert [step for step, _ in tracker.sent] == [2, 4, 6, 2, 4, 6]
    assert tracker.finished == 1


def test_wandb_takes_its_steps_as_a_value(tiny, tmp_path, faked):
    # Its own step may not fall, and would drop the second stage.
    tracker = Fake("wandb")
    faked(tracker)
    tiny["tracking"] = {"to": ["wandb"]}
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert {step for step, _ in tracker.sent} == {None}
    assert tracker.metrics == {"proxy/*": "proxy/step", "multires/*": "multires/step"}
    assert [values["proxy/step"] for _, values in tracker.sent[:3]] == [2, 4, 6]


def test_a_tracker_that_breaks_does_not_end_the_run(tiny, tmp_path, faked, capsys):
    tracker = Fake(broken=True)
    faked(tracker)
    tiny["tracking"] = {"to": ["wandb"]}
    run(from_dict(tiny), run_dir=tmp_path / "run")
    assert len(tracker.sent) == 1
    assert (tmp_path / "run" / "multires" / "vit" / "model.safetensors").exists()
    said = capsys.readouterr().out
    assert said.count("fake gets nothing more from this run: no route to the server") == 1


def test_a_tracker_is_finished_when_the_run_fails(tiny, tmp_path, faked, monkeypatch):
    tracker = Fake()
    faked(tracker)
    tiny["tracking"] = {"to": ["wandb"]}

    def fail(self, name):
        raise UserError("no")

    monkeypatch.setattr(distill.runner.Runner, "train", fail)
    with pytest.raises(UserError):
        run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert tracker.finished == 1


def test_what_wandb_is_started_with(tiny, tmp_path, monkeypatch):
    """The same id when a run goes on, in its folder, numbers alone; an error without the key."""
    started = []

    def start(self):
        started.append((self.run_name, self.init_kwargs))
        raise RuntimeError("key sesame-open is not good.\nmore")

    monkeypatch.setattr(WandBTracker, "start", start)
    monkeypatch.setattr(distill.trackers, "_installed", lambda name: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setenv("WANDB_API_KEY", "sesame-open")
    tiny["tracking"] = {"to": ["wandb"], "project": "ours"}
    for folder in ("run", "run", "other"):
        with pytest.raises(UserError) as error:
            run(from_dict(tiny), run_dir=tmp_path / folder, quiet=True)
        assert str(error.value).startswith(
            "tracking.to: wandb could not start: key *** is not good. For wandb, log in"
        )
    (first, again, other) = started
    assert first == again
    assert first[0] == "ours"
    assert first[1]["dir"] == str(tmp_path / "run")
    assert first[1]["resume"] == "allow"
    assert first[1]["id"] != other[1]["id"]
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"sesame" not in path.read_bytes()


def test_a_tracker_that_is_not_there_is_a_line(tiny, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(distill.trackers, "distribution", missing)
    tiny["tracking"] = {"to": ["tensorbord", "wandb"], "project": "a b"}
    with pytest.raises(RecipeError) as error:
        prepare(from_dict(tiny))
    (unknown, absent, project) = error.value.problems
    assert "unknown tracker 'tensorbord'" in unknown
    assert "tensorboard" in unknown
    assert absent.startswith("tracking.to[1]: wandb is not installed: pip install wandb")
    assert project.startswith("tracking.project: 'a b' is no name")
