"""Licences of whatever a student has learnt from, through proxies and initial weights."""

import json
import shutil

import pytest

from distill.engine.learner import planned_students
from distill.lineage import lineage, standing, warnings
from distill.recipe.load import from_dict
from distill.recipe.plan import plan
from distill.runner import run
from teachers import TeacherInfo, TeacherSpec

NON_COMMERCIAL = {"family": "dinov2", "weights": "org/far", "licence": "cc-by-nc-4.0"}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("apache-2.0", "open"),
        ("MIT", "open"),
        ("cc-by-4.0", "open"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("fair-noncommercial-research-license", "non-commercial"),
        ("nvidia-non-commercial", "non-commercial"),
        ("NVIDIA Research-Only", "non-commercial"),
        ("dinov3-license", "own terms"),
        ("other", "own terms"),
        ("ncsa", "own terms"),
        ("unknown", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_standing(licence, expected):
    assert standing(licence) == expected


def test_only_what_may_bind_is_said():
    teachers = {
        "a": {"weights": "org/a", "licence": "apache-2.0"},
        "b": {"weights": "org/b", "licence": None},
        "c/d": {"weights": "org/d", "licence": "cc-by-nc-4.0"},
    }
    unknown, binding = warnings(teachers)
    assert unknown.startswith("b (org/b) has no known licence")
    assert binding.startswith("c/d (org/d) is for non-commercial use (cc-by-nc-4.0)")


def test_a_licence_travels_through_two_proxies(tiny, teacher_folders, tmp_path, capsys):
    """Teacher -> proxy -> middle -> last: the last student's folder names the first licence."""
    folder = tmp_path / "dinov2"
    shutil.copytree(teacher_folders / "dinov2", folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    tiny["teachers"]["dinov2"]["weights"] = str(folder)
    vit = tiny["stages"]["multires"]["students"]["vit"]
    short = {"steps": 1, "batch_size": 4}
    tiny["stages"] = {
        "proxy": tiny["stages"]["proxy"] | {"train": short},
        "middle": {
            "students": {"vit": vit | {"teachers": ["proxy/proxy"]}},
            "image_sizes": [32],
            "train": short,
        },
        "last": {
            "students": {"vit": vit | {"teachers": ["middle/vit"]}},
            "image_sizes": [32],
            "train": short,
        },
    }
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["dinov2"]
    notes = plan(from_dict(tiny)).notes
    assert any("dinov2" in note and "non-commercial" in note for note in notes)
    result = run(from_dict(tiny), run_dir=tmp_path / "run")
    last = result.student("last/vit")
    listed = json.loads((last / "adapters.json").read_text())["teachers"]
    assert listed == {
        "dinov2": {"family": "dinov2", "weights": str(folder), "licence": "cc-by-nc-4.0"}
    }
    card = (last / "README.md").read_text()
    assert f"| dinov2 | {folder} | cc-by-nc-4.0 |" in card
    assert "is for non-commercial use (cc-by-nc-4.0)" in card
    said = " ".join(capsys.readouterr().out.split())
    assert "licence of last/vit: dinov2" in said

    # The same student as a teacher of another run, and as its initial weights.
    tiny["teachers"]["ours"] = {"family": "student", "weights": str(last)}
    tiny["stages"] = {
        "more": {
            "students": {
                "vit": vit | {"teachers": ["ours"]},
                "on": {"init": str(last), "teachers": ["sam"]},
            },
            "image_sizes": [32],
            "train": short,
        }
    }
    other = run(from_dict(tiny), run_dir=tmp_path / "other", quiet=True)
    for student, name in (("vit", "ours"), ("on", "init")):
        folder = other.student(f"more/{student}")
        listed = json.loads((folder / "adapters.json").read_text())["teachers"]
        assert listed[f"{name}/dinov2"]["licence"] == "cc-by-nc-4.0"
        assert listed[name]["weights"] == str(last)


def test_initial_weights_of_timm_count(tiny, tmp_path):
    stage = tiny["stages"].pop("proxy")
    stage["students"]["proxy"] |= {
        "arch": "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
        "pretrained": True,
        "model": {},
        "teachers": ["sam"],
    }
    recipe = from_dict(tiny | {"stages": {"proxy": stage}})
    (planned,) = planned_students(recipe, "proxy")
    spec = TeacherSpec("sam", "org/sam")
    info = TeacherInfo(spec, fetched=True, source="org/sam", licence="apache-2.0")
    found = lineage(recipe, planned, tmp_path, lambda name: info)
    assert found["sam"] == {"family": "sam", "weights": "org/sam", "licence": "apache-2.0"}
    assert found["init"]["weights"] == planned.config.arch
    assert standing(found["init"]["licence"]) == "non-commercial"
