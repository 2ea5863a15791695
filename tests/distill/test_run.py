"""Runs as folders: going on, being finished, belonging to somebody else."""

import json

import pytest
import torch
from safetensors.torch import load_file

from distill.engine import stage as stages
from distill.recipe.load import from_dict
from distill.runner import run
from students import UserError


def final(folder, name):
    return {f: load_file(folder / name / f) for f in ("model.safetensors", "adapters.safetensors")}


def same(a, b):
    return all(torch.equal(a[f][n], b[f][n]) for f in a for n in a[f])


def test_an_interrupted_run_goes_on_to_the_same_weights(recipe, tmp_path, monkeypatch):
    run(recipe, run_dir=tmp_path / "whole", quiet=True)
    step, count = stages.Stage.step, {"steps": 0}

    def stops(self, *arguments):
        count["steps"] += 1
        if count["steps"] == 11:  # the second stage, two steps after a checkpoint
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(stages.Stage, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, run_dir=tmp_path / "broken", quiet=True)
    assert not (tmp_path / "broken/multires/vit").exists()
    run(recipe, run_dir=tmp_path / "broken", quiet=True)
    for name in ("proxy/proxy", "multires/vit", "multires/convnext"):
        assert same(final(tmp_path / "whole", name), final(tmp_path / "broken", name))
    logs = [
        [
            json.loads(line)
            for line in (tmp_path / d / "multires/log.jsonl").read_text().splitlines()
        ]
        for d in ("whole", "broken")
    ]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    # The line in which the run broke off is a mean over the steps since the checkpoint alone.
    assert [line["loss"] for line in logs[0][-2:]] == pytest.approx(
        [line["loss"] for line in logs[1][-2:]]
    )


def test_a_finished_run_does_nothing_and_says_so(recipe, tmp_path, monkeypatch, capsys):
    run(recipe, run_dir=tmp_path / "run", quiet=True)
    monkeypatch.setattr(stages.Stage, "step", None)
    run(recipe, run_dir=tmp_path / "run")
    assert "nothing to do" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_is_passed_over(recipe, tmp_path):
    from distill.engine.checkpoint import newest_checkpoint

    run(recipe, run_dir=tmp_path / "run", quiet=True)
    folder = tmp_path / "run/proxy/checkpoint"
    newest, before = sorted(folder.glob("step-*"), reverse=True)
    weights = newest / "proxy.weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = newest_checkpoint(folder)
    assert found is not None
    assert found.path == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 3),
        ("data.views.scale", [0.5, 1.0]),
        ("stages.proxy.train.lr", 1e-2),
        ("stages.proxy.train.steps", 4),
        ("stages.multires.students.vit.model.embed_dim", 32),
    ],
)
def test_a_folder_of_another_recipe_is_refused_with_the_keys(tiny, tmp_path, path, value):
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    entry = tiny
    *parents, last = path.split(".")
    for name in parents:
        entry = entry.setdefault(name, {})
    entry[last] = value
    with pytest.raises(UserError, match=path.replace(".", r"\.")) as caught:
        run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert "--run-dir" in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


@pytest.mark.slow
def test_students_and_steps_may_be_added(tiny, tmp_path):
    vit = tiny["stages"]["multires"]["students"].pop("vit")
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    first = final(tmp_path / "run", "multires/convnext")
    tiny["stages"]["multires"]["students"]["vit"] = vit
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert same(first, final(tmp_path / "run", "multires/convnext"))
    assert (tmp_path / "run/multires/vit/model.safetensors").exists()

    tiny["stages"]["multires"]["train"]["steps"] = 8
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    for name in ("vit", "convnext"):
        about = json.loads((tmp_path / f"run/multires/{name}/adapters.json").read_text())
        assert about["steps"] == 8


@pytest.mark.slow
def test_a_stage_may_be_added(tiny, tmp_path):
    later = tiny["stages"].pop("multires")
    before = run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    proxy = (before.student("proxy/proxy") / "model.safetensors").read_bytes()
    tiny["stages"]["multires"] = later
    after = run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert (after.student("proxy/proxy") / "model.safetensors").read_bytes() == proxy
    assert (after.student("multires/convnext") / "model.safetensors").exists()


def test_steps_of_a_stage_that_others_learnt_from_are_fixed(tiny, tmp_path):
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    tiny["stages"]["proxy"]["train"]["steps"] = 9
    with pytest.raises(UserError, match=r"stages\.proxy\.train\.steps is 9, was 6"):
        run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)


def test_a_folder_with_other_things_in_it_is_left_alone(recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        run(recipe, run_dir=tmp_path, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_several_processes_that_would_each_train_alone_are_stopped(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    class Alone:
        num_processes = 1

    monkeypatch.setattr("accelerate.Accelerator", lambda **_: Alone())
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU"):
        run(recipe, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
