"""Recipes with a student a subset, against the same written by hand."""

import dataclasses

import pytest

from distill.compare.expansion import expand
from distill.engine.learner import Learner, build_learner, initial_student, planned_students
from distill.recipe.build import NAME, RecipeError
from distill.recipe.load import from_dict, to_yaml
from distill.recipe.resolve import problems
from distill.recipe.schema import CompareConfig
from distill.runner import run

VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
ARCH = "vit_small_patch16_dinov3_qkvb"
SEEDS = [0, 1, 2]


def values(stages, **more):
    return {
        "name": "by-hand",
        "data": {"train": {"scenes": {"source": "scenes:count=16,size=32"}}},
        "teachers": {
            "dinov2": {"family": "dinov2", "weights": "builtin:dinov2-tiny"},
            "siglip": {"family": "siglip", "weights": "builtin:siglip-tiny"},
            "sam": {"family": "sam", "weights": "builtin:sam-tiny", "tokens": ["dense"]},
        },
        "stages": stages,
        **more,
    }


def stage(students, **more):
    return {"students": students, "image_sizes": [64], **more}


def new(*teachers, **more):
    return {"arch": ARCH, "model": VIT, "teachers": [*teachers], **more}


def direct():
    return from_dict(values({"fixed": stage({"vit": new("dinov2", "siglip", "sam")})}))


def staged(**more):
    return from_dict(
        values(
            {
                "proxy": stage({"proxy": new("dinov2", "siglip", "sam", proxy=True)}),
                "fixed": stage({"vit": new("proxy/proxy")}),
                "multires": stage({"vit": {"init": "fixed/vit", "teachers": ["proxy/proxy"]}}),
            },
            **more,
        )
    )


def fault(recipe, **config):
    with pytest.raises(RecipeError) as caught:
        expand(recipe, CompareConfig(**config))
    return caught.value.problems


def test_the_direct_path_by_hand():
    pairs = (
        ("dinov2",),
        ("siglip",),
        ("sam",),
        ("dinov2", "siglip"),
        ("dinov2", "sam"),
        ("siglip", "sam"),
        ("dinov2", "siglip", "sam"),
    )
    by_hand = {
        "vit.dinov2": new("dinov2", seeds=SEEDS),
        "vit.siglip": new("siglip", seeds=SEEDS),
        "vit.sam": new("sam", seeds=SEEDS),
        "vit.dinov2-siglip": new("dinov2", "siglip", seeds=SEEDS),
        "vit.dinov2-sam": new("dinov2", "sam", seeds=SEEDS),
        "vit.siglip-sam": new("siglip", "sam", seeds=SEEDS),
        "vit.dinov2-siglip-sam": new("dinov2", "siglip", "sam", seeds=SEEDS),
    }
    made = expand(direct(), CompareConfig())
    assert tuple(subset.teachers for subset in made.subsets) == pairs
    assert to_yaml(made.recipe) == to_yaml(from_dict(values({"fixed": stage(by_hand)})))
    assert problems(made.recipe) == []
    assert list(made.replicas) == [f"fixed/{name}" for name in by_hand]
    assert {replica.student for replica in made.replicas.values()} == {"fixed/vit"}
    assert all(NAME.fullmatch(name) for name in by_hand)


def test_every_subset_has_a_proxy_of_its_own():
    config = CompareConfig(subsets=[["sam", "siglip"], ["dinov2"]], seeds=[4])
    made = expand(staged(validate={"stages": ["proxy", "multires"]}), config)
    one, two = "dinov2", "siglip-sam"
    by_hand = {
        "proxy": stage(
            {
                f"proxy.{one}": new("dinov2", proxy=True, seeds=[4]),
                f"proxy.{two}": new("siglip", "sam", proxy=True, seeds=[4]),
            }
        ),
        "fixed": stage({f"vit.{s}": new(f"proxy/proxy.{s}", seeds=[4]) for s in (one, two)}),
        "multires": stage(
            {
                f"vit.{s}": {
                    "init": f"fixed/vit.{s}",
                    "teachers": [f"proxy/proxy.{s}"],
                    "seeds": [4],
                }
                for s in (one, two)
            }
        ),
    }
    written = from_dict(values(by_hand, validate={"stages": ["proxy", "multires"]}))
    assert to_yaml(made.recipe) == to_yaml(written)
    assert problems(made.recipe) == []


def test_stages_that_are_left_out_are_stepped_over():
    config = CompareConfig(subsets=[["dinov2"], ["sam"]], through=["multires"], seeds=[0])
    made = expand(staged(validate={"stages": ["proxy", "multires"]}), config)
    by_hand = {
        "multires": stage(
            {"vit.dinov2": new("dinov2", seeds=[0]), "vit.sam": new("sam", seeds=[0])}
        )
    }
    written = from_dict(values(by_hand, validate={"stages": ["multires"]}))
    assert to_yaml(made.recipe) == to_yaml(written)
    proxied = expand(staged(), dataclasses.replace(config, through=["proxy", "multires"]))
    student = proxied.recipe.stages["multires"].students["vit.sam"]
    assert (student.init, student.arch, student.teachers) == (None, ARCH, ["proxy/proxy.sam"])


def test_teachers_that_do_not_vary_are_in_every_subset():
    made = expand(direct(), CompareConfig(teachers=["sam", "siglip"]))
    students = made.recipe.stages["fixed"].students
    assert {name: student.teachers for name, student in students.items()} == {
        "vit.siglip": ["dinov2", "siglip"],
        "vit.sam": ["dinov2", "sam"],
        "vit.siglip-sam": ["dinov2", "siglip", "sam"],
    }
    assert {replica.always for replica in made.replicas.values()} == {("dinov2",)}


def test_a_student_that_no_varying_teacher_reaches_stays():
    recipe = from_dict(
        values({"fixed": stage({"vit": new("dinov2", "siglip"), "own": new("sam", seeds=[7])})})
    )
    made = expand(recipe, CompareConfig(teachers=["dinov2", "siglip"]))
    students = made.recipe.stages["fixed"].students
    assert students["own"] == recipe.stages["fixed"].students["own"]
    assert "fixed/own" not in made.replicas
    assert len(students) == 4


def test_a_named_seed_stays_named():
    recipe = from_dict(
        values(
            {
                "proxy": stage({"proxy": new("dinov2", "sam", seeds=[0, 1])}),
                "fixed": stage({"vit": new("proxy/proxy.seed1")}),
            }
        )
    )
    made = expand(recipe, CompareConfig(teachers=["dinov2", "sam"], seeds=[0, 1]))
    student = made.recipe.stages["fixed"].students["vit.sam"]
    assert student.teachers == ["proxy/proxy.sam.seed1"]
    assert problems(made.recipe) == []


def test_the_recipe_given_is_left_as_it_was():
    recipe = staged()
    before = to_yaml(recipe)
    made = expand(recipe, CompareConfig())
    made.recipe.stages["fixed"].students["vit.sam"].model["depth"] = 9
    assert to_yaml(recipe) == before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"subsets": "leave_one_out"}, ["ds", "dm", "sm", "dsm"]),
        ({"sizes": [1, 3]}, ["d", "s", "m", "dsm"]),
        ({"subsets": [["sam", "dinov2"], ["siglip"]]}, ["s", "dm"]),
        ({"subsets": [["sam"], ["siglip"], ["dinov2", "sam"]], "sizes": [1]}, ["s", "m"]),
        ({"teachers": ["siglip", "dinov2"], "subsets": "all"}, ["d", "s", "ds"]),
    ],
)
def test_subsets_by_size_then_by_the_recipe(config, expected):
    letters = {"dinov2": "d", "siglip": "s", "sam": "m"}
    made = expand(direct(), CompareConfig(**config))
    assert ["".join(letters[t] for t in s.teachers) for s in made.subsets] == expected


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"subsets": [["dinov2"], []]},
            "compare.subsets[1]: names no teacher; give at least one of dinov2, siglip, sam",
        ),
        (
            {"subsets": [["dinov2"], ["siglp"]]},
            "compare.subsets[1]: unknown teacher 'siglp' (did you mean 'siglip'?)",
        ),
        ({"subsets": [["sam", "sam"], ["dinov2"]]}, "compare.subsets[0]: sam is given twice"),
        (
            {"subsets": [["sam", "dinov2"], ["sam"], ["dinov2", "sam"]]},
            "compare.subsets: dinov2 + sam is given 2 times",
        ),
        (
            {"subsets": ["dinov2", "sam"]},
            "compare.subsets: each subset is a list of its own; write [[dinov2, sam]]",
        ),
        (
            {"subsets": "leave_one"},
            "compare.subsets: 'leave_one' is no choice (did you mean 'leave_one_out'?)",
        ),
        (
            {"subsets": 3},
            "compare.subsets: expected all, leave_one_out or a list of lists of teachers, got 3",
        ),
        (
            {"subsets": [["sam"]]},
            "compare.subsets: only sam is left; a comparison takes at least two",
        ),
        (
            {"teachers": ["dinov2", "siglip"], "subsets": [["sam"], ["dinov2"]]},
            "compare.subsets[0]: 'sam' does not vary; add it to compare.teachers",
        ),
        (
            {"teachers": ["dino"]},
            "compare.teachers: unknown teacher 'dino' (did you mean 'dinov2'?)",
        ),
        (
            {"teachers": ["sam"]},
            "compare.teachers: only sam varies; give at least two, or nothing for all",
        ),
        (
            {"sizes": [4]},
            "compare.sizes: 4 is no number of teachers in a subset; 3 vary (dinov2, siglip, sam)",
        ),
        ({"through": ["fxed"]}, "compare.through: unknown stage 'fxed' (did you mean 'fixed'?)"),
        (
            {"tasks": ["knnn"]},
            "compare.tasks: 'knnn' is not among validate.tasks (did you mean 'knn'?)",
        ),
        ({"seeds": []}, "compare.seeds: is empty; give at least one"),
        ({"seeds": [1, 1]}, "compare.seeds: 1 is given twice"),
    ],
)
def test_what_is_wrong_is_said(config, line):
    assert fault(direct(), **config) == [line]


def test_everything_wrong_is_said_at_once():
    found = fault(direct(), through=["a"], tasks=["b"], sizes=[9], seeds=[])
    assert [line.split(":")[0] for line in found] == [
        "compare.through",
        "compare.tasks",
        "compare.sizes",
        "compare.seeds",
    ]


def test_a_student_without_a_teacher_is_an_error():
    recipe = from_dict(
        values({"fixed": stage({"vit": new("dinov2", "siglip", "sam"), "own": new("sam")})})
    )
    assert fault(recipe) == [
        "stages.fixed.students.own.teachers: nothing is left of sam in the subset dinov2; leave "
        "the student out, or give compare.subsets that all have a teacher of it"
    ]


def test_a_teacher_of_nobody_is_an_error():
    recipe = from_dict(values({"fixed": stage({"vit": new("dinov2", "sam")})}))
    assert fault(recipe) == [
        "compare.teachers: no student of fixed learns from 'siglip'; leave it out"
    ]


def test_no_probes_is_an_error():
    recipe = dataclasses.replace(direct(), validate=None)
    assert fault(recipe) == ["compare: nothing is probed; give validate.tasks"]


def test_names_that_meet_are_an_error():
    teachers = {
        name: {"family": "dinov2", "weights": "builtin:dinov2-tiny"} for name in ("a", "b", "a-b")
    }
    given = values({"fixed": stage({"vit": new("a", "b", "a-b")})})
    found = fault(from_dict(given | {"teachers": teachers}))
    assert (
        "stages.fixed.students.vit: two students would be called 'vit.a-b'; rename a teacher"
        in found
    )


def test_a_seed_starts_every_subset_alike(tmp_path):
    """Equal weights in the encoder and in the adapter of a teacher that two subsets share; other
    seeds, other weights. What a student sees goes by seed too, and by no name of a student."""
    made = expand(direct(), CompareConfig(seeds=[0, 1])).recipe
    started = {}
    for plan in planned_students(made, "fixed"):
        student, _ = initial_student(made, made.stages["fixed"], plan, tmp_path)
        widths = {name: {"dense": 12} for name in plan.config.teachers}
        kinds = dict.fromkeys(plan.config.teachers, "none")
        adapter = made.stages["fixed"].adapter
        learner = build_learner(student, widths, kinds, adapter, seed=plan.seed, name=student.arch)
        started[plan.name] = learner
    first = {name: learner for name, learner in started.items() if name.endswith("seed0")}
    assert len(first) == 7
    reference = first["vit.dinov2-siglip-sam.seed0"]
    for learner in first.values():
        own = learner.student.state_dict()
        for key, tensor in reference.student.state_dict().items():
            assert tensor.equal(own[key])
        for teacher in learner.teachers:
            wanted = reference.space(teacher).state_dict()
            for key, tensor in learner.space(teacher).state_dict().items():
                assert tensor.equal(wanted[key])
    other = started["vit.sam.seed1"].student.state_dict()
    assert any(not t.equal(other[k]) for k, t in reference.student.state_dict().items())


def test_every_subset_sees_the_same_views_at_the_same_sizes(tiny, tmp_path, monkeypatch):
    fixed = tiny["stages"]["multires"]
    student = {"arch": ARCH, "model": VIT, "teachers": ["dinov2", "sam"]}
    tiny["stages"] = {"fixed": fixed | {"students": {"vit": student}}}
    tiny["validate"] = {"tasks": ["knn"]}
    made = expand(from_dict(tiny), CompareConfig(seeds=[0]))
    seen = {}
    forward = Learner.forward

    def watched(self, pixels, size, rows=None):
        seen.setdefault(tuple(self.teachers), []).append((size, pixels.double().sum().item()))
        return forward(self, pixels, size, rows)

    monkeypatch.setattr(Learner, "forward", watched)
    run(dataclasses.replace(made.recipe, validate=None), run_dir=tmp_path / "run", quiet=True)
    assert set(seen) == {("dinov2",), ("sam",), ("dinov2", "sam")}
    first, *others = seen.values()
    assert all(one == first for one in others)
    assert len({size for size, _ in first}) == 2
    assert len({pixels for _, pixels in first}) == 6
