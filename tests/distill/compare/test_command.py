"""A whole comparison on the tiny world: trained, probed, answered, gone on with."""

import json
import re

import pytest
from safetensors.torch import load_file

from distill.cli import main
from distill.compare.command import compare_teachers
from distill.compare.groups import fitting
from distill.recipe.load import from_dict, to_yaml
from distill.recipe.plan import plan
from distill.runner import run
from students import UserError


@pytest.fixture
def recipe(tiny, tmp_path):
    """Two teachers, one small student straight from them, two cheap tasks."""
    stage = tiny["stages"].pop("proxy")
    stage["students"] = {"vit": stage["students"]["proxy"] | {"proxy": False}}
    tiny["stages"] = {"direct": stage}
    tiny["validate"] = {"tasks": ["segmentation", "affinity"], "train": 64, "test": 64}
    tiny["compare"] = {"seeds": [0, 1]}
    return tiny


def weights(folder, name):
    return load_file(folder / "direct" / name / "model.safetensors")


@pytest.mark.slow
def test_one_command_answers(recipe, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(from_dict(recipe)))
    assert main(["compare", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "gap closed" in said
    answer = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert set(answer["subsets"]) == {"dinov2", "sam", "dinov2-sam"}
    assert answer["answers"][0]["seeds"] == [0, 1]
    assert set(answer["costs"]) == {"dinov2", "sam"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<section id="compare">' in page
    # Again: nothing is trained, the same answer.
    assert main(["compare", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "compare.json").read_text()) == answer


@pytest.mark.slow
def test_a_teacher_runs_once_a_batch_and_a_later_subset_alone(recipe, tmp_path, teacher_calls):
    recipe["validate"]["tasks"] = ["affinity"]
    recipe["compare"]["subsets"] = [["dinov2"], ["sam"]]
    compare_teachers(from_dict(recipe), run_dir=tmp_path / "run", quiet=True)
    # Six steps, three batches for the normalisers and three for the scales; probes come on top.
    first = [call.family for call in teacher_calls[:24]]
    assert first.count("dinov2") == first.count("sam") == 12
    before = weights(tmp_path / "run", "vit.sam.seed0")
    stamp = (tmp_path / "run/direct/vit.sam.seed0/model.safetensors").stat().st_mtime_ns
    recipe["compare"]["subsets"].append(["dinov2", "sam"])
    answer = compare_teachers(from_dict(recipe), run_dir=tmp_path / "run", quiet=True)
    assert list(answer.subsets) == ["dinov2", "sam", "dinov2-sam"]
    after = tmp_path / "run/direct/vit.sam.seed0/model.safetensors"
    assert after.stat().st_mtime_ns == stamp
    assert all((before[name] == tensor).all() for name, tensor in load_file(after).items())


@pytest.mark.slow
def test_groups_change_nothing(recipe, tmp_path, teacher_calls):
    """Two students at a time, with the teachers from the cache, give the same students."""
    recipe["validate"] = None
    student = recipe["stages"]["direct"]["students"].pop("vit")
    for name in ("a", "b", "c"):
        recipe["stages"]["direct"]["students"][name] = student | {"seeds": [0, 1]}
    together = run(from_dict(recipe), run_dir=tmp_path / "together", quiet=True)
    recipe["stages"]["direct"]["train"]["students_at_once"] = 2
    recipe["cache"] = {"folder": str(tmp_path / "cache")}
    teacher_calls.clear()
    apart = run(from_dict(recipe), run_dir=tmp_path / "apart", quiet=True)
    # The first group asks for 9 batches of two teachers, the others for none of them.
    assert len(teacher_calls) <= 2 * (6 + 3)
    for name in ("a", "b", "c"):
        for seed in (0, 1):
            first, second = (weights(r.folder, f"{name}.seed{seed}") for r in (together, apart))
            assert all((first[key] == second[key]).all() for key in first)


def test_what_fits_is_worked_out_from_one_and_two():
    assert fitting([100, 130], 200) == 4
    assert fitting([100, 130], 50) == 1
    assert fitting([None, None], 200) is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"teachers": ["dino"]}, "compare.teachers: unknown teacher 'dino'"),
        ({"subsets": [[]]}, "compare.subsets[0]: names no teacher"),
        ({"tasks": ["knn"]}, "compare.tasks: 'knn'"),
    ],
)
def test_bad_sections_are_named_before_anything_is_written(recipe, tmp_path, section, words):
    recipe["compare"] = section
    for asked in (plan, lambda config: compare_teachers(config, run_dir=tmp_path / "run")):
        with pytest.raises(UserError, match=re.escape(words)):
            asked(from_dict(recipe))
    assert not (tmp_path / "run").exists()


def test_check_says_how_many_students_are_trained(recipe):
    assert plan(from_dict(recipe)).notes[-1] == (
        "distill compare trains direct/vit 6 times: 3 subsets of dinov2, sam, 2 seeds"
    )
