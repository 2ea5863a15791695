"""What is wrong with how a stage learns is one line each, before anything is loaded."""

import pytest

from distill.recipe.load import from_dict
from distill.recipe.plan import plan
from distill.recipe.resolve import problems

PROXY = "stages/proxy"
LOW_HIGH = {"low": {"share": 3, "teachers": ["dinov2"]}, "high": {"teachers": ["sam"]}}


def put(tree, path, value):
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            f"{PROXY}/adapter",
            {"kind": "laddr"},
            "stages.proxy.adapter.kind: 'laddr' is no choice (did you mean 'ladder'?)",
        ),
        (
            f"{PROXY}/adapter",
            {"kind": "mlp", "depth": 2},
            "stages.proxy.adapter.depth: does nothing with kind: mlp; leave it out",
        ),
        (
            "stages/multires/students/convnext/adapter",
            {"kind": "ladder"},
            "stages.multires.students.convnext.adapter.kind: adapter ladder: convnext_tiny gives",
        ),
        (
            f"{PROXY}/loss",
            {"summary": {"gram": 1.0}},
            "stages.proxy.loss.summary.gram: compares the patches of an image, and a summary has",
        ),
        (
            f"{PROXY}/loss",
            {"teachers": {"dino2": {"dense": {"mse": 1.0}}}},
            "stages.proxy.loss.teachers: 'dino2' is no teacher of this stage (did you mean "
            "'dinov2'?)",
        ),
        (
            f"{PROXY}/loss",
            {"teachers": {"sam": {"dense": {"msee": 1.0}}}},
            "stages.proxy.loss.teachers.sam.dense: unknown loss term 'msee' (did you mean 'mse'?)",
        ),
        (
            f"{PROXY}/loss",
            {"teachers": {"sam": {"dense": {}}}},
            "stages.proxy.loss: nothing is learnt from 'sam', which gives dense only",
        ),
        (
            f"{PROXY}/balance",
            {"drop": 0.3},
            "stages.proxy.balance.drop: does nothing with kind: fixed; leave it out",
        ),
        (
            "stages/multires",
            {
                "students": {
                    "vit": {
                        "arch": "vit_small_patch16_dinov3_qkvb",
                        "model": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
                        "teachers": ["sam"],
                    }
                },
                "image_sizes": [32],
                "balance": {"kind": "dropping"},
            },
            "stages.multires.balance.kind: dropping weighs teachers against each other; give two",
        ),
        (
            f"{PROXY}/masked",
            {"visible": 0.5},
            "stages.proxy.masked: goes with objective: masked",
        ),
        (
            "stages/multires/objective",
            "masked",
            "stages.multires.students.convnext: convnext_tiny cannot leave patches out",
        ),
        (
            f"{PROXY}/partitions",
            {**LOW_HIGH, "high": {"teachers": ["samm"]}},
            "stages.proxy.partitions.high.teachers: unknown teacher 'samm' (did you mean 'sam'?)",
        ),
        (
            f"{PROXY}/partitions",
            {"low": {"teachers": ["dinov2"]}},
            "stages.proxy.partitions: 'sam' is in none of them",
        ),
        (
            f"{PROXY}/partitions",
            {"low": {"share": 20}, "high": {"share": 1}},
            "stages.proxy.partitions.high.share: 1 of 21 is less than one image of "
            "stages.proxy.train.batch_size, 4",
        ),
        (
            f"{PROXY}/partitions",
            {"low": {}, "high": {"image_sizes": [50]}},
            "stages.proxy.partitions.high.image_sizes[0]: 50 is no multiple of the patch of",
        ),
        (
            "data/train/scenes/teachers",
            ["sma"],
            "data.train.scenes.teachers[0]: no student learns from 'sma' (did you mean 'sam'?)",
        ),
        (
            "teachers/sam/momentum",
            0.5,
            "teachers.sam.momentum: goes with normaliser: ema, and what is used is standardise",
        ),
        (
            f"{PROXY}/normaliser",
            "phis",
            "stages.proxy.normaliser: 'phis' is no choice (did you mean 'phi_s'?)",
        ),
    ],
)
def test_one_line(tiny, path, value, line):
    put(tiny, path, value)
    found = problems(from_dict(tiny)) if "is no choice" not in line else refused(tiny)
    assert len(found) == 1, found
    assert found[0].startswith(line)


def refused(tree):
    """What the reader of a recipe says of it."""
    from distill.recipe.build import RecipeError

    with pytest.raises(RecipeError) as error:
        from_dict(tree)
    return error.value.problems


def test_every_teacher_is_shown_some_images(tiny):
    tiny["data"]["train"] = {
        "one": {"source": "scenes:count=16,size=32", "teachers": ["sam"]},
        "two": {"source": "scenes:count=16,size=32,seed=1", "teachers": ["dinov2"]},
    }
    assert problems(from_dict(tiny)) == [
        "data.train: no source shows its images to 'proxy/proxy'",
    ]
    tiny["data"]["train"]["two"]["teachers"] = []
    assert problems(from_dict(tiny)) == []


def test_what_partitions_cannot_share(tiny):
    tiny["stages"]["proxy"]["partitions"] = LOW_HIGH
    tiny["stages"]["proxy"]["train"]["shard"] = True
    tiny["teachers"]["sam"] |= {"batch_share": 0.5, "shard": True}
    found = problems(from_dict(tiny))
    assert [line.split(":")[0] for line in found] == [
        "teachers.sam.batch_share",
        "teachers.sam.shard",
        "stages.proxy.train.shard",
    ]


def test_masks_need_an_inverse_of_the_stages_normaliser(tiny):
    tiny["validate"] = {"tasks": ["masks"]}
    tiny["stages"]["proxy"]["normaliser"] = "l2"
    (line,) = problems(from_dict(tiny))
    assert line.startswith("stages.proxy.normaliser: 'l2' has no inverse, and the task masks")
    tiny["stages"]["proxy"]["normaliser"] = "phi_s"
    assert problems(from_dict(tiny)) == []


def test_the_plan_says_what_partitions_come_to(tiny):
    tiny["stages"]["proxy"]["partitions"] = LOW_HIGH
    tiny["stages"]["proxy"]["partitions"]["high"]["image_sizes"] = [64]
    notes = plan(from_dict(tiny)).notes
    assert "stages.proxy.partitions.low: 3 of 4 images, at 32 pixels, for dinov2" in notes
    assert "stages.proxy.partitions.high: 1 of 4 images, at 64 pixels, for sam" in notes
