"""Families from other packages: the one in docs/teachers.md, as a reader would install it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import transformers

import teachers.teacher
from distill import cli

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## A teacher of one's own")[1].split("\n## ")[0]


# Those of the fixture `normalise`.
STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return found


def install(site: Path, code: str, project: str) -> None:
    """What pip writes for a package of one module."""
    fields = tomllib.loads(project)["project"]
    (module,) = re.findall(r"# (\w+)\.py\n", code)
    (site / f"{module}.py").write_text(code)
    info = site / f"{fields['name'].replace('-', '_')}-{fields['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {fields['name']}\nVersion: {fields['version']}\n"
    )
    lines = []
    for group, entries in fields["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path):
    """A folder on the path of a clean process, with the package of the docs installed in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, block("python"), block("toml"))
    return folder


@pytest.fixture
def ijepa(tmp_path):
    """A tiny I-JEPA with random weights, as transformers saves it; the folder and the model."""
    folder = tmp_path / "ijepa"
    config = transformers.IJepaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        patch_size=4,
        image_size=32,
    )
    torch.manual_seed(0)
    model = transformers.IJepaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    return folder, model


@pytest.fixture
def here(site, monkeypatch):
    """The package installed in this very process, and gone again after the test."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(teachers.teacher, "_FAMILIES", dict(teachers.teacher._FAMILIES))
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    yield site
    sys.modules.pop("my_teachers", None)


def recipe(folder: Path) -> dict:
    student = {"arch": "vit_tiny_patch16_224", "teachers": ["mine"]}
    return {
        "name": "own",
        "data": {"train": {"scenes": {"source": "scenes:count=16,size=32"}}},
        "teachers": {"mine": {"family": "ijepa", "weights": str(folder)}},
        "stages": {"only": {"students": {"vit": student}, "image_sizes": [32]}},
        "validate": None,
    }


def test_it_is_short():
    lines = [line for line in block("python").splitlines() if line.strip(" #")]
    assert len(lines) < 30


@pytest.mark.slow
def test_a_clean_process_loads_it_and_plans_with_it(site, ijepa, tmp_path, normalise, pixels):
    folder, model = ijepa
    images = {"square": pixels(32), "wide": pixels(24, 48)}
    for name, image in images.items():
        torch.save(image, tmp_path / f"{name}.pt")
    (tmp_path / "own.yaml").write_text(json.dumps(recipe(folder)))  # JSON is YAML
    code = """
import sys, torch, distill.cli
from teachers import TeacherSpec, load_teacher
assert "my_teachers" not in sys.modules  # importing teachers imports no other package
teacher = load_teacher(TeacherSpec("ijepa", sys.argv[1]))
for name, size in {"square": 32, "wide": (24, 48)}.items():
    features = teacher(torch.load(name + ".pt"), size)
    torch.save((features.summary, features.dense), name + "-features.pt")
sys.exit(distill.cli.main(["check", "own.yaml"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^mine +ijepa +", done.stdout, re.MULTILINE)
    for name, image in images.items():
        with torch.no_grad():
            wanted = model(normalise(image), interpolate_pos_encoding=True).last_hidden_state
        height, width = image.shape[2] // 4, image.shape[3] // 4
        rows = [wanted[:, row * width : (row + 1) * width] for row in range(height)]
        summary, dense = torch.load(tmp_path / f"{name}-features.pt")
        torch.testing.assert_close(summary, wanted.mean(1), rtol=0, atol=1e-5)
        torch.testing.assert_close(dense, torch.stack(rows, 1), rtol=0, atol=1e-5)


def test_the_command_line_knows_it(here, ijepa, tmp_path, capsys):
    folder, model = ijepa
    assert cli.main(["teachers", str(folder), "sizes=[48]"]) == 0
    out = capsys.readouterr().out
    assert "ijepa (transformers: IJepaModel)" in out
    assert f"{sum(p.numel() for p in model.parameters()):,}" in out
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(recipe(folder)))
    assert cli.main(["check", str(path), "teachers.mine.sizes=[2]"]) == 2
    assert "teachers.mine.sizes[0]: " in capsys.readouterr().err
    assert cli.main(["check", str(path), "teachers.mine.family=ijeppa"]) == 2
    assert "unknown family 'ijeppa' (did you mean 'ijepa'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import no_such_library\n", "cannot be loaded (my_teachers:IJepaTeacher): ModuleNotFound"),
        ("IJepaTeacher = dict\n", "is no subclass of teachers.Teacher"),
    ],
)
def test_a_broken_package_is_named_in_one_line(here, capsys, code, error):
    (here / "my_teachers.py").write_text(code)
    assert cli.main(["teachers"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("distill: teacher family 'ijepa'")
    assert error in line
    assert "loaded" not in error or "of the package my-teachers" in line
