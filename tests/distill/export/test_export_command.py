"""`distill export`: which student is meant, what is written, and what is refused."""

import argparse
import json
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_students import SECRET, make_run, make_student

from distill.export.command import add_arguments, export_command
from distill.export.contents import complete
from distill.export.place import Place
from distill.export.select import find_student
from distill.export.standalone import Adapters
from students import Features, Space, Spaces, UserError

NAMES = {
    "README.md",
    "adapters.json",
    "adapters.py",
    "adapters.safetensors",
    "config.json",
    "model.safetensors",
}


def export(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    export_command(parser.parse_args([str(word) for word in words]))


def refused(*words):
    with pytest.raises(UserError) as caught:
        export(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_complete(run_folder, tmp_path, capsys):
    source, target = run_folder / "fixed/vit", tmp_path / "given/vit-s"
    (source / "model.onnx").write_bytes(b"a format of its own")
    (source / ".hidden").write_text("no")
    export(run_folder, "--to", target)
    assert files(target) == NAMES | {"model.onnx"}
    for name in ("model.safetensors", "model.onnx"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    own, given = (json.loads((folder / "adapters.json").read_text()) for folder in (source, target))
    assert list(own) == list(given)
    assert [space.get("folded") for space in own["spaces"]] == [None] * 5
    assert [space["folded"] for space in given["spaces"]] == [True] * 4
    assert [space["adapter"] for space in own["spaces"] if space["to"] == "unic"] == ["ladder"]
    assert {space["normaliser"] for space in given["spaces"]} == {"none"}
    for name in set(own) - {"spaces"}:
        assert own[name] == given[name]
    out = capsys.readouterr().out
    assert f"{target}: 7 files of " in out
    assert "licence of fixed/vit: sam (" in out  # its licence is not known
    assert [path.name for path in target.parent.iterdir()] == ["vit-s"]
    export(source, "--to", target)  # an exported student is replaced


def test_adapters_that_leave_are_folded_and_the_same(run_folder, tmp_path):
    source, given, again = run_folder / "fixed/vit", tmp_path / "given", tmp_path / "again"
    export(run_folder, "--to", given)
    export(given, "--to", again)
    for name in ("adapters.safetensors", "adapters.json"):
        assert (again / name).read_bytes() == (given / name).read_bytes()
    generator = torch.Generator().manual_seed(0)
    summary = torch.randn(3, 32, generator=generator)
    features = Features(summary, torch.randn(3, 2, 4, 32, generator=generator))
    ours, theirs = (Spaces.load(folder).chains() for folder in (source, given))
    alone = Adapters(given)
    assert list(alone.chains) == list(theirs) == list(ours)
    for teacher, chain in ours.items():
        expected = chain(features)
        for kind in ("summary", "dense"):
            tokens = expected.get(kind)
            for found in (
                theirs[teacher](features).get(kind),
                getattr(alone(teacher, features), kind),
            ):
                if tokens is None:
                    assert found is None
                else:
                    scale = 1e-5 * float(tokens.abs().max())
                    torch.testing.assert_close(found, tokens, atol=scale, rtol=0)
        assert not alone.is_direction(teacher)
    with pytest.raises(ValueError, match="attention adapter needs summary and dense"):
        alone("siglip", Features(summary, None))
    with pytest.raises(ValueError, match=r"attention adapter .* not written by `distill export`"):
        Adapters(source)


def test_a_direction_stays_one(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    space = Space({"summary": (4, 3)}, hidden=5, normaliser="l2")
    space.scales["summary"].data.fill_(3)
    spaces = Spaces({("student", "light"): space})
    spaces.folded().save(folder, {})
    alone = Adapters(folder)
    assert alone.is_direction("light")
    x = torch.randn(2, 4)
    found = alone("light", Features(x, None)).summary
    torch.testing.assert_close(found, spaces.chains()["light"](Features(x, None)).summary)


def test_dry_run_writes_nothing(run_folder, tmp_path, capsys):
    for where in (("--to", tmp_path / "x"), ("--push", "me/x")):
        export(run_folder, *where, "--dry-run")
        lines = capsys.readouterr().out.splitlines()[1:]
        assert {line.split()[2] for line in lines[:-1]} == NAMES
        size = (run_folder / "fixed/vit/model.safetensors").stat().st_size / 1000
        (line,) = [line for line in lines if line.endswith("model.safetensors")]
        assert float(line.split()[0]) == pytest.approx(size, rel=0.01)
        assert lines[-1].startswith("6 files of ")
        assert lines[-1].endswith(f"would go to {where[1]}")
    assert not (tmp_path / "x").exists()


def test_the_run_has_to_have_one_student(run_folder, tmp_path, monkeypatch):
    make_student(run_folder / "fixed/convnext", "convnext")
    shutil.copytree(run_folder / "fixed/vit", run_folder / "fixed/.half.new")
    line = refused(run_folder, "--to", tmp_path / "x")
    one, two = (f"{run_folder}/fixed/{name}" for name in ("convnext", "vit"))
    assert line == f"{run_folder} has 2 students, name one: {one}, {two}"
    line = refused(run_folder / "fixed/vitt", "--to", tmp_path / "x")
    assert "no finished student fixed/vitt (did you mean 'fixed/vit'?)" in line
    assert line.endswith("it has fixed/convnext, fixed/vit")
    assert find_student(one).folder == run_folder / "fixed/convnext"
    monkeypatch.chdir(run_folder / "fixed")
    assert find_student("vit").run == run_folder


def test_what_is_no_run(run_folder, tmp_path):
    assert "is not there: give a run's folder" in refused(tmp_path / "no", "--to", tmp_path / "x")
    (tmp_path / "other").mkdir()
    assert "holds neither a run" in refused(tmp_path / "other", "--to", tmp_path / "x")
    (run_folder / "fixed/vit/model.safetensors").unlink()
    assert "no finished student yet" in refused(run_folder, "--to", tmp_path / "x")


def test_what_is_there_stays(run_folder, tmp_path, monkeypatch):
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "thesis.txt").write_text("three years")
    assert "is not empty and no exported student" in refused(run_folder, "--to", target)
    assert "is within the run" in refused(run_folder, "--to", run_folder / "fixed/new")
    student = run_folder / "fixed/vit"
    for holder in (student, run_folder, run_folder.parent):
        assert "would be replaced" in refused(student, "--to", holder, "--overwrite")
    assert "is a file" in refused(run_folder, "--to", target / "thesis.txt")
    monkeypatch.chdir(target)
    assert "would be replaced" in refused(run_folder, "--to", ".", "--overwrite")
    assert files(target) == {"thesis.txt"}
    monkeypatch.chdir(tmp_path)
    export(run_folder, "--to", target, "--overwrite")
    assert files(target) == NAMES
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "thesis"}


def test_a_copy_that_fails_leaves_what_was_there(run_folder, tmp_path, monkeypatch):
    target = tmp_path / "vit"
    export(run_folder, "--to", target)
    before = (target / "README.md").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    assert "No space left" in refused(run_folder, "--to", target)
    assert (target / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--to", "x", "--private"], "--private goes with --push alone"),
        (["--to", "x", "--revision", "v1"], "--revision goes with --push alone"),
        (["--to", "x", "--message", "m"], "--message goes with --push alone"),
        (["--push", "me/x", "--overwrite"], "--overwrite goes with --to alone"),
        (["--push", "x", "--dry-run"], "--push x: expected USER/NAME"),
    ],
)
def test_options_that_do_nothing_are_refused(run_folder, options, line):
    assert refused(run_folder, *options).startswith(line)


def test_a_student_without_its_run(run_folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(run_folder / "fixed/vit", moved)
    found = find_student(moved)
    assert (found.run, found.recipe) == (None, None)
    card = complete(found, Place("moved"))["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "32, 64 pixels" in card
    assert "## The recipe" not in card


def test_the_licence_is_what_the_recipe_says_now(run_folder, tmp_path):
    text = (run_folder / "recipe.yaml").read_text()
    (run_folder / "recipe.yaml").write_text(text.replace("licence: apache-2.0", "licence: mit"))
    export(run_folder, "--to", tmp_path / "x")
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "mit"
    assert "\nlicense: mit\n" in (tmp_path / "x/README.md").read_text()


def test_no_secret_leaves(run_folder, tmp_path):
    export(run_folder, "--to", tmp_path / "x")
    for path in (tmp_path / "x").iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
    assert SECRET in (run_folder / "recipe.yaml").read_text()


def test_an_incomplete_folder_is_none(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run/fixed/vit/adapters.json").write_text("{}")
    assert "is not the folder of an exported student" in refused(tmp_path / "run", "--to", "x")


def test_the_arguments_wait_for_no_library():
    code = (
        "import sys, distill.export.command; "
        "sys.exit([m for m in ('torch', 'omegaconf', 'timm') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_where_to_has_to_be_said(run_folder):
    assert refused(run_folder) == "say where to: --to FOLDER or --push USER/NAME"
