"""The command line: what it prints, its exit status, and whose teachers/ it imports."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import omegaconf
import pytest
from omegaconf import OmegaConf

import distill.recipe.plan
import distill.runner
from distill import cli
from students.errors import UserError

ROOT = Path(distill.__file__).parent.parent
SCRIPT = Path(sys.executable).parent / "distill"


@pytest.fixture
def file(tiny, tmp_path, monkeypatch):
    """A recipe's file, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(tiny)))
    return path


def test_check_prints_the_recipe_and_its_plan(file, capsys):
    assert cli.main(["check", "tiny", "seed=7"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("name: tiny\n")
    assert "\nseed: 7\n" in out
    assert "stage multires: 6 steps of 4 = 24 images" in out
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("command", ["check", "run"])
def test_every_error_is_a_line_and_nothing_is_written(file, capsys, command):
    words = [command, "tiny.yaml", "teachers.dinov2.family=dino", "stages.proxy.image_sizes=[30]"]
    assert cli.main(words) == 2
    streams = capsys.readouterr()
    lines = streams.err.splitlines()
    assert streams.out == ""
    assert lines[0].startswith("distill: teachers.dinov2.family: unknown family 'dino' (did you")
    assert lines[1].startswith("distill: stages.proxy.image_sizes[0]: 30 is no multiple of")
    assert len(lines) == 2
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_other_ranks_leave_it_to_the_first(file, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["check", "tiny", "sed=1"]) == 2
    assert cli.main(["check", "tiny"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["check", "nope"], "distill: there is no recipe 'nope'"),
        (["run", "seed=1", "tiny"], "distill: 'seed=1' is no recipe: the recipe comes first"),
        (["check", "tiny", "--run-dir", "x"], "distill check: error: unknown option --run-dir"),
        (["rum", "tiny"], "distill: error: argument COMMAND: invalid choice: 'rum'"),
        (["run"], "distill run: error: the following arguments are required: RECIPE"),
        ([], "distill: error: the following arguments are required: COMMAND"),
    ],
)
def test_a_command_that_makes_no_sense(file, capsys, words, line):
    assert cli.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_run_takes_overrides_before_and_after_the_option(monkeypatch):
    got = {}
    monkeypatch.setattr(
        distill.runner, "run", lambda recipe, **given: got.update(given, recipe=recipe)
    )
    assert cli.main(["run", "tiny", "a.b=1", "--run-dir", "there", "c=-2", "d=x y"]) == 0
    assert got == {"recipe": "tiny", "overrides": ["a.b=1", "c=-2", "d=x y"], "run_dir": "there"}
    assert cli.main(["run", "tiny"]) == 0
    assert got == {"recipe": "tiny", "overrides": [], "run_dir": None}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no such\nteacher"), 2, "distill: no such\ndistill: teacher\n"),
        (KeyboardInterrupt(), 130, "distill: interrupted; the same command goes on from the last"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/log.jsonl"),
            2,
            "distill: /runs/log.jsonl: No space left on device. Make room or set the rights, then "
            "try again\n",
        ),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), 2, "distill: Read-only file system. "),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "distill: /x: Permission"),
    ],
)
def test_what_stops_a_run_has_an_exit_status(monkeypatch, capsys, error, status, message):
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(distill.runner, "run", stop)
    assert cli.main(["run", "tiny"]) == status
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError(errno.EIO, "broken")])
def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, error):
    def fails(_):
        raise error

    monkeypatch.setattr(distill.recipe.plan, "plan", fails)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        cli.main(["check", "quickstart"])


def test_sigterm_before_a_run_watches_for_it(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        distill.runner, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert cli.main(["run", "tiny"]) == 143
    said = capsys.readouterr().err
    assert said == "distill: interrupted; the same command goes on from the last checkpoint\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("multires:", "pictures:", "stages.pictures: is the name of a file or folder of every run"),
        (
            "      convnext:",
            "      checkpoint-2:",
            "stages.multires.students.checkpoint-2: is the name of a file or folder of every stage",
        ),
    ],
)
def test_names_that_a_run_needs_itself_are_refused(file, capsys, old, new, line):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    assert cli.main(["check", "tiny"]) == 2
    assert capsys.readouterr().err == f"distill: {line}; choose another\n"


def test_help_has_examples_and_waits_for_no_library(capsys):
    assert cli.main(["--help"]) == 0
    assert "distill run quickstart" in capsys.readouterr().out
    code = (
        "import sys, distill.cli as c; c.main(['--help']); "
        "sys.exit([m for m in ('torch', 'omegaconf', 'rich', 'timm') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("distill 0.")


@pytest.fixture
def shadows(tmp_path):
    """A folder of a user whose own teachers/, students/ packages would shadow ours."""
    for name in ("teachers", "students"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    recipe = {
        "name": "plain",
        "data": {"train": {"scenes": {"source": "scenes:count=16,size=32"}}},
        "teachers": {"dinov2": {"family": "dinov2", "weights": "nobody/no-such-checkpoint"}},
        "stages": {
            "fixed": {
                "students": {"vit": {"arch": "vit_tiny_patch16_224", "teachers": ["dinov2"]}},
                "image_sizes": [32],
            }
        },
    }
    (tmp_path / "plain.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return tmp_path


@pytest.mark.parametrize("command", [[str(SCRIPT)], [sys.executable, "-m", "distill"]])
@pytest.mark.slow
def test_a_folder_of_the_same_name_is_left_alone(shadows, command):
    done = subprocess.run(
        [*command, "check", "plain", "seed=x"], cwd=shadows, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "distill: seed: expected a whole number, got 'x'\n"


@pytest.mark.slow
def test_a_checkout_runs_as_a_module_from_its_own_folder():
    # Without site, the libraries are found and an editable installation is not.
    libraries = str(Path(omegaconf.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "distill", "check", "nope"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": libraries},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("distill: there is no recipe 'nope'")


@pytest.mark.slow
@pytest.mark.parametrize("command", [[str(SCRIPT)], ["-m", "distill"]])
def test_the_same_under_torchrun(shadows, command):
    torchrun = [str(SCRIPT.with_name("torchrun")), "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, *command, "check", "plain"],
        cwd=shadows,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stage fixed: 1,000 steps of 64") == 1
