"""What a recipe refers to: the line that each wrong reference gets, before anything is loaded."""

import json

import pytest

from distill.recipe.learning import AdapterConfig
from distill.recipe.load import RecipeError, from_dict, prepare
from distill.recipe.resolve import problems, survey
from students import build_student


def put(values, path, value):
    """`value` at a dotted path of nested mappings."""
    *way, last = path.split("/")
    for key in way:
        values = values.setdefault(key, {})
    values[last] = value


def test_a_recipe_without_fault(recipe):
    found = survey(recipe)
    assert found.problems == []
    assert list(found.teachers) == ["dinov2", "sam"]
    assert list(found.students) == ["proxy/proxy", "multires/vit", "multires/convnext"]


VIT = "stages/multires/students/vit"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("name", "a/b", "name: 'a/b' is no name (small letters"),
        ("data/train", {}, "data.train: is empty; give at least one"),
        ("data/train/scenes/source", "scens:count=4", "data.train.scenes.source: unknown kind of"),
        (
            "data/train/scenes/source",
            "folder:/no/such",
            "data.train.scenes.source: the image folder",
        ),
        ("data/views", {"scale": [0.5]}, "data.views.scale: [0.5] is no [least, most]"),
        ("data/views", {"scale": [0.5, 1.5]}, "data.views.scale: [0.5, 1.5] is no [least, most]"),
        (
            "teachers/dinov2/family",
            "dino2",
            "teachers.dinov2.family: unknown family 'dino2' (did you mean 'dinov2'?)",
        ),
        ("teachers/dinov2/weights", "./no/such", "teachers.dinov2.weights: './no/such'"),
        (
            "teachers/dinov2/tokens",
            ["dens"],
            "teachers.dinov2.tokens: unknown token kind 'dens' (did",
        ),
        ("teachers/dinov2/tokens", [], "teachers.dinov2.tokens: is empty; give at least one of"),
        (
            "teachers/sam/tokens",
            ["summary", "dense"],
            "teachers.sam.tokens: sam teachers have no summary; give tokens: [dense]",
        ),
        ("teachers/dinov2/sizes", [4], "teachers.dinov2.sizes[0]: "),
        (f"{VIT}/teachers", [], "stages.multires.students.vit.teachers: is empty"),
        (
            f"{VIT}/teachers",
            ["sam", "sam"],
            "stages.multires.students.vit.teachers: sam is given twice",
        ),
        (
            f"{VIT}/teachers",
            ["dinov3"],
            "stages.multires.students.vit.teachers[0]: 'dinov3' is neither a teacher nor an "
            "earlier stage/student (did you mean 'dinov2'?)",
        ),
        (
            f"{VIT}/teachers",
            ["sam", "proxy/prxy"],
            "stages.multires.students.vit.teachers[1]: 'proxy/prxy' is neither a teacher nor an "
            "earlier stage/student (did you mean 'proxy/proxy'?)",
        ),
        (
            f"{VIT}/teachers",
            ["multires/convnext"],
            "stages.multires.students.vit.teachers[0]: 'multires/convnext' is a student of this "
            "same stage; only",
        ),
        (
            "stages/proxy/students/proxy/teachers",
            ["multires/vit"],
            "stages.proxy.students.proxy.teachers[0]: 'multires/vit' is a student of the later "
            "stage 'multires'; only",
        ),
        (f"{VIT}/init", "proxy/proxy", "stages.multires.students.vit: give either arch (a new"),
        (
            f"{VIT}/arch",
            None,
            "stages.multires.students.vit: give either arch (a new student) or init",
        ),
        (
            f"{VIT}",
            {"init": "proxy/prox", "teachers": ["sam"]},
            "stages.multires.students.vit.init: 'proxy/prox' is no earlier stage/student (did you "
            "mean 'proxy/proxy'?)",
        ),
        (
            f"{VIT}",
            {"init": "/no/such", "teachers": ["sam"]},
            "stages.multires.students.vit.init: '/no/such' is no earlier stage/student (known: "
            "proxy/proxy), and no such folder",
        ),
        (
            f"{VIT}",
            {"init": "proxy/proxy", "teachers": ["sam"], "pretrained": True},
            "stages.multires.students.vit.pretrained: goes with arch",
        ),
        (
            f"{VIT}/arch",
            "vit_smal_patch16_224",
            "stages.multires.students.vit.arch: unknown architecture 'vit_smal_patch16_224' (did "
            "you mean 'vit_small_patch16_224'?)",
        ),
        (
            f"{VIT}/model",
            {"embed_dims": 16},
            "stages.multires.students.vit.model: vit_small_patch16_dinov3_qkvb refuses",
        ),
        ("stages/multires/students", {}, "stages.multires.students: is empty"),
        ("stages/multires/image_sizes", [], "stages.multires.image_sizes: is empty"),
        ("stages/multires/image_sizes", [32, 32], "stages.multires.image_sizes: 32 is given twice"),
        (
            "stages/multires/image_sizes",
            [0],
            "stages.multires.image_sizes[0]: 0 must be at least 1",
        ),
        (
            "stages/multires/image_sizes",
            [32, 50],
            "stages.multires.image_sizes[1]: 50 is no multiple of the patch of vit (8), convnext "
            "(8), proxy/proxy (8); nearest: 48, 56",
        ),
        (
            "stages/multires/teacher_sizes",
            [36],
            "stages.multires.teacher_sizes[0]: 36 is no multiple of the patch of proxy/proxy (8); "
            "nearest: 32, 40",
        ),
        (
            "stages/proxy/teacher_sizes",
            [32, 2],
            "stages.proxy.teacher_sizes[1]: ",
        ),
        (
            "stages/proxy/loss",
            {"dense": {"cosin": 1.0}},
            "stages.proxy.loss.dense: unknown loss term 'cosin' (did you mean 'cosine'?)",
        ),
        (
            "stages/proxy/loss",
            {"dense": {"cosine": -1.0}},
            "stages.proxy.loss.dense.cosine: -1 must be at least 0",
        ),
        (
            "stages/proxy/loss",
            {"dense": {}, "summary": {"cosine": 0.0}},
            "stages.proxy.loss: no term has a weight",
        ),
        (
            "stages/proxy/loss",
            {"dense": {}},
            "stages.proxy.loss: nothing is learnt from 'sam', which gives dense only",
        ),
        ("stages/proxy/train/min_lr", 1.0, "stages.proxy.train.min_lr: 1 is more than lr, 0.001"),
        ("stages/proxy/train/betas", [0.9], "stages.proxy.train.betas: [0.9] is no pair"),
        ("stages/proxy/train/betas", [0.9, 1.0], "stages.proxy.train.betas: [0.9, 1.0] is no pair"),
        ("validate", {"tasks": ["kn"]}, "validate.tasks: unknown task 'kn' (did you mean 'knn'?)"),
        ("validate", {"stages": ["prox"]}, "validate.stages: unknown stage 'prox' (did you mean"),
        ("validate", {"sizes": [4096, 0]}, "validate.sizes[1]: 0 must be at least 1"),
        ("validate", {"sizes": [20]}, "validate.sizes[0]: 20 is no multiple of the patch of"),
        ("stages", {}, "stages: is empty; give at least one"),
    ],
)
def test_a_wrong_reference_gets_one_line(tiny, path, value, line):
    put(tiny, path, value)
    lines = problems(from_dict(tiny))
    assert len(lines) == 1, lines
    assert lines[0].startswith(line)


def test_weights_of_another_family(tiny, teacher_folders):
    tiny["teachers"]["dinov2"]["weights"] = str(teacher_folders / "sam")
    (line,) = problems(from_dict(tiny))
    assert line.startswith("teachers.dinov2.weights: ")
    assert "family 'sam'" in line


def test_a_hub_id_that_is_not_fetched_is_no_fault(tiny):
    tiny["teachers"]["dinov2"]["weights"] = "nobody/no-such-checkpoint"
    found = survey(from_dict(tiny))
    assert found.problems == []
    assert not found.teachers["dinov2"].fetched


def test_a_large_student_has_to_be_a_proxy(tiny):
    tiny["stages"]["multires"]["image_sizes"] = [32]
    student = {"arch": "vit_large_patch16_224", "teachers": ["sam"]}
    tiny["stages"]["multires"]["students"] = {"large": student}
    (line,) = problems(from_dict(tiny))
    assert line.startswith("stages.multires.students.large.arch: vit_large_patch16_224 has 30")
    assert "proxy: true" in line
    student["proxy"] = True
    assert problems(from_dict(tiny)) == []


def test_all_problems_come_at_once_and_nothing_else(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tiny, "teachers/dinov2/family", "dino")
    put(tiny, "stages/multires/image_sizes", [32, 50])
    put(tiny, f"{VIT}/arch", "vit_smal_patch16_224")
    with pytest.raises(RecipeError) as error:
        prepare(from_dict(tiny), ["stages.proxy.loss.summary.cosin=1"])
    assert [line.split(":")[0] for line in error.value.problems] == [
        "teachers.dinov2.family",
        "stages.proxy.loss.summary",
        "stages.multires.students.vit.arch",
        "stages.multires.image_sizes[1]",
    ]
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_the_probes_fit_every_stage_that_is_probed(tiny):
    tiny["stages"]["multires"]["image_sizes"] = [40]
    tiny["stages"]["proxy"]["students"]["proxy"]["model"] = {
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "patch_size": 16,
    }
    tiny["stages"]["multires"]["teacher_sizes"] = [32]
    tiny["validate"] = {}
    (line,) = problems(from_dict(tiny))
    assert line.startswith("validate.sizes[0]: 40 is no multiple of the patch of proxy/proxy (16)")
    assert "the first of the last stage" in line
    tiny["validate"] = {"stages": ["multires"]}
    assert problems(from_dict(tiny)) == []


def test_teacher_sizes_that_no_teacher_would_draw_from(tiny):
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["sam"]
    tiny["stages"]["proxy"]["teacher_sizes"] = [48]
    (found,) = problems(from_dict(tiny))
    assert found.startswith("stages.proxy.teacher_sizes: every teacher of this stage has sizes")


def test_seeds_have_to_be_there_where_they_are_learnt_from(tiny):
    students = tiny["stages"]["multires"]["students"]
    tiny["stages"]["proxy"]["students"]["proxy"]["seeds"] = [0, 1]
    assert problems(from_dict(tiny)) == []  # the recipe's own seed, 0, is one of them
    students["vit"]["seeds"] = [1, 2]
    (line,) = problems(from_dict(tiny))
    assert line.startswith("stages.multires.students.vit.teachers[0]: 'proxy/proxy' is trained for")
    students["vit"]["teachers"] = ["proxy/proxy.seed1"]
    assert problems(from_dict(tiny)) == []
    students["vit"]["seeds"] = [2, 2]
    (line,) = problems(from_dict(tiny))
    assert line == "stages.multires.students.vit.seeds: 2 is given twice"


def test_a_name_that_one_seed_of_another_student_has(tiny):
    students = tiny["stages"]["multires"]["students"]
    students["vit"]["seeds"] = [0]
    students["vit.seed0"] = students.pop("convnext")
    (line,) = problems(from_dict(tiny))
    assert line.startswith("stages.multires.students[vit.seed0]: is also the name of one seed")


def test_an_exported_folder_to_start_from(tiny, tmp_path):
    student = tiny["stages"]["multires"]["students"]["vit"]
    model = student.pop("model")
    arch = student.pop("arch")
    student["init"] = str(tmp_path)
    fault = f"stages.multires.students.vit.init: {tmp_path}"
    assert problems(from_dict(tiny)) == [f"{fault} is no exported student: it has no config.json"]
    (tmp_path / "config.json").write_text("{}")
    (line,) = problems(from_dict(tiny))
    assert line == f"{fault} is no exported student: it has no model.safetensors"
    (tmp_path / "model.safetensors").touch()
    (line,) = problems(from_dict(tiny))
    assert line.startswith(f"{fault}/config.json is not that of an exported student")
    card = {"architecture": arch, "model_args": model}
    card["pretrained_cfg"] = {"input_size": [3, 32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(card))
    found = survey(from_dict(tiny))
    assert found.problems == []
    built = build_student(arch, size=32, overrides=model)
    assert found.students["multires/vit"] == built.info


@pytest.mark.parametrize("tasks", [["masks"], ["knn", "text_retrieval"]])
def test_a_task_through_a_normaliser_without_inverse(tiny, tasks):
    tiny["teachers"]["sam"]["normaliser"] = "l2"
    tiny["teachers"]["dinov2"]["normaliser"] = "l2"  # it has no decoder
    tiny["validate"] = {"tasks": tasks}
    lines = problems(from_dict(tiny))
    if "masks" not in tasks:
        assert lines == []
        return
    assert len(lines) == 1
    assert lines[0].startswith("teachers.sam.normaliser: 'l2' has no inverse, and the task masks")


def test_a_recipe_made_in_python_is_checked_as_one_that_was_read(recipe):
    recipe.stages["proxy"].adapter = AdapterConfig(kind="mpl", hidden=0)
    recipe.seed = -1
    assert [line.split(":")[0] for line in problems(recipe)] == [
        "stages.proxy.adapter.kind",
        "stages.proxy.adapter.hidden",
        "seed",
    ]


def test_overrides_of_a_recipe_made_in_python(recipe):
    changed = prepare(recipe, ["stages.proxy.train.steps=9"])
    assert changed.stages["proxy"].train.steps == 9
    assert recipe.stages["proxy"].train.steps == 6
