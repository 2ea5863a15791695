"""Reading recipes: what is accepted, and the line that each mistake gets."""

import dataclasses

import pytest

from distill.recipe import load
from distill.recipe.learning import LossConfig
from distill.recipe.load import (
    RecipeError,
    find_recipe,
    from_dict,
    load_recipe,
    prepare,
    to_yaml,
)
from distill.recipe.schema import Recipe
from students.errors import UserError

SMALL = """
name: small
data: {train: {photos: {source: "folder:/images"}}}
teachers:
  dinov2: {family: dinov2, weights: facebook/dinov2-small}
stages:
  fixed:
    students: {vit: {arch: vit_tiny_patch16_224, teachers: [dinov2]}}
    image_sizes: [224]
    train: {steps: 10, lr: 1e-3}
"""


@pytest.fixture
def read(tmp_path):
    """read(text, *overrides): the recipe in a file that holds this text."""

    def make(text=SMALL, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return make


@pytest.fixture
def wrong(read):
    """wrong(text, *overrides): the lines of the error that it gets."""

    def make(text=SMALL, *overrides):
        with pytest.raises(RecipeError) as error:
            read(text, *overrides)
        assert str(error.value).splitlines() == error.value.problems
        return error.value.problems

    return make


def test_a_recipe_has_what_was_written_and_the_defaults(read):
    recipe = read()
    assert recipe.stages["fixed"].train.lr == 1e-3  # text to PyYAML
    assert recipe.stages["fixed"].train.steps == 10
    assert recipe.stages["fixed"].loss == LossConfig()
    assert recipe.teachers["dinov2"].tokens == ["summary", "dense"]


def test_a_mapping_keeps_its_order(read):
    stage = SMALL[SMALL.index("  fixed:") :]
    text = SMALL + "".join(stage.replace("fixed", name) for name in ("b", "a", "c"))
    assert list(read(text).stages) == ["fixed", "b", "a", "c"]


@pytest.mark.parametrize(
    "author", ["", "1e-3", "yes", "null", "${seed}", "a: b # c", "é\n'\"", "7"]
)
def test_the_resolved_recipe_reads_back_as_it_is(read, tmp_path, author):
    recipe = read()
    recipe.export.author = author
    recipe.stages["fixed"].train.lr = 1e-05
    recipe.stages["fixed"].students["vit"].model = {"depth": 2, "dims": [1, 2], "x": None}
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert from_dict(dataclasses.asdict(recipe)) == recipe


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("stages.fixed.train.steps", "100_000", 100_000),
        ("stages.fixed.train.steps", "1e3", 1000),
        ("stages.fixed.train.steps", "3.0", 3),
        ("stages.fixed.train.lr", "1", 1.0),
        ("stages.fixed.train.lr", "2.5e-4", 2.5e-4),
        ("stages.fixed.train.lr", "'2e-4'", 2e-4),
        ("stages.fixed.train.clip", "null", None),
        ("stages.fixed.image_sizes", "[64,96]", [64, 96]),
        ("stages.fixed.image_sizes[0]", "64", 64),
        ("stages.fixed.students.vit.model.depth", "4", 4),
        ("stages.fixed.students.vit.adapter", "{kind: linear}", None),
        ("teachers.dinov2.weights", "a=b", "a=b"),
        ("data.train.photos.source", "folder:/a b", "folder:/a b"),
        ("validate", "null", None),
    ],
)
def test_an_override_sets_a_value(read, key, text, value):
    node = dataclasses.asdict(read(SMALL, f"{key}={text}"))
    for part in key.replace("[0]", "").split("."):
        node = node[part]
    if key.endswith("adapter"):
        assert node == {"kind": "linear", "hidden": 1536, "depth": 1}
    elif key.endswith("[0]"):
        assert node == [value]
    else:
        assert node == value
        assert type(node) is type(value)


def test_an_override_leaves_the_rest_of_a_default_as_it_is(read):
    loss = read(SMALL, "stages.fixed.loss.dense.mse=0.5").stages["fixed"].loss
    assert loss.dense == LossConfig().dense | {"mse": 0.5}
    assert loss.summary == LossConfig().summary


def test_interpolations_follow_overrides(read):
    text = SMALL + "seed: ${stages.fixed.train.steps}\n"
    assert read(text, "stages.fixed.train.steps=77").seed == 77


def test_a_new_entry_is_given_whole(read, wrong):
    added = "teachers.sam={family: sam, weights: facebook/sam-vit-base}"
    recipe = read(SMALL, added, "teachers.sam.tokens=[dense]")
    assert list(recipe.teachers) == ["dinov2", "sam"]
    assert recipe.teachers["sam"].tokens == ["dense"]
    assert wrong(SMALL, "teachers.sam={family: sam}") == [
        "teachers.sam.weights: missing; give text"
    ]
    # A second source by a misspelt name would silently join the training images.
    (line,) = wrong(SMALL, "data.train.photo.source=folder:/x")
    assert line.startswith("data.train.photo: there is none (did you mean 'photos'?)")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("naem=x", "naem: unknown key (did you mean 'name'?)"),
        (
            "teachers.dinov2.wieghts=x",
            "teachers.dinov2.wieghts: unknown key (did you mean 'weights'?)",
        ),
        (
            "stages.fixed.train.step=3",
            "stages.fixed.train.step: unknown key (did you mean 'steps'?)",
        ),
        ("data.views.polcy=eupe", "data.views.polcy: unknown key (did you mean 'policy'?)"),
        ("seed.x=1", "seed.x: unknown key: seed is a whole number"),
        ("stages.fixde.train.steps=3", "stages.fixde: there is none (did you mean 'fixed'?)"),
        ("stages.fixed.image_sizes[3]=64", "stages.fixed.image_sizes: '3' is no position"),
        ("stages.fixed.image_sizes.first=64", "stages.fixed.image_sizes: 'first' is no position"),
        ("seed", "'seed': an override is written key=value"),
        ("=3", "'=3': an override is written key=value"),
        ("seed=[1,", "seed: no YAML value ("),
        ("seed=${sed}", "seed: Interpolation key 'sed' not found"),
        ("seed=", "seed: expected a whole number, got nothing"),
        ("stages={}", None),
    ],
)
def test_a_bad_override_gets_one_line(read, wrong, override, line):
    if line is None:  # merged into what is there
        assert read(SMALL, override) == read()
        return
    lines = wrong(SMALL, override)
    assert len(lines) == 1
    assert lines[0].startswith(line)


@pytest.mark.parametrize(
    ("right", "misspelt", "line"),
    [
        ("name:", "nme:", "nme: unknown key (did you mean 'name'?)"),
        ("train: {photos", "trian: {photos", "data.trian: unknown key (did you mean 'train'?)"),
        ("source:", "sources:", "data.train.photos.sources: unknown key (did you mean 'source'?)"),
        ("family:", "famly:", "teachers.dinov2.famly: unknown key (did you mean 'family'?)"),
        ("students:", "student:", "stages.fixed.student: unknown key (did you mean 'students'?)"),
        ("image_sizes", "image_size", "stages.fixed.image_size: unknown key (did you mean"),
        ("steps:", "stesp:", "stages.fixed.train.stesp: unknown key (did you mean 'steps'?)"),
        (
            "teachers: [",
            "teacher: [",
            "stages.fixed.students.vit.teacher: unknown key (did you mean 'teachers'?)",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong, right, misspelt, line):
    lines = wrong(SMALL.replace(right, misspelt, 1))
    assert len(lines) == 1  # and not another one, that what was meant is missing
    assert lines[0].startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=true", "seed: expected a whole number, got true"),
        ("seed=1.5", "seed: expected a whole number, got 1.5"),
        ("seed=one", "seed: expected a whole number, got 'one'"),
        ("seed=-1", "seed: -1 must be at least 0"),
        ("seed=null", "seed: expected a whole number, got nothing"),
        ("name=3", "name: expected text, got 3; put it in quotes"),
        ("name={a: 1}", "name: expected text, got {'a': 1}"),
        ("stages.fixed.train.lr=fast", "stages.fixed.train.lr: expected a number, got 'fast'"),
        ("stages.fixed.train.lr=.inf", "stages.fixed.train.lr: expected a number, got inf"),
        ("stages.fixed.train.lr=.nan", "stages.fixed.train.lr: expected a number, got nan"),
        ("stages.fixed.train.lr=0", "stages.fixed.train.lr: 0 must be more than 0.0"),
        ("stages.fixed.train.lr=false", "stages.fixed.train.lr: expected a number, got false"),
        ("stages.fixed.train.ema=1.5", "stages.fixed.train.ema: 1.5 must be at most 1.0"),
        (
            "stages.fixed.train.clip=x",
            "stages.fixed.train.clip: expected a number, or null, got 'x'",
        ),
        ("stages.fixed.train.steps=0", "stages.fixed.train.steps: 0 must be at least 1"),
        (
            "stages.fixed.image_sizes=64",
            "stages.fixed.image_sizes: expected a list of whole numbers, got 64; write [64]",
        ),
        (
            "stages.fixed.image_sizes=[64,a]",
            "stages.fixed.image_sizes[1]: expected a whole number, got 'a'",
        ),
        (
            "stages.fixed.students.vit.proxy=1",
            "stages.fixed.students.vit.proxy: expected true or false, got 1",
        ),
        (
            "stages.fixed.loss.dense.cosine=a",
            "stages.fixed.loss.dense.cosine: expected a number, got 'a'",
        ),
        (
            "stages.fixed.loss.grid=largr",
            "stages.fixed.loss.grid: 'largr' is no choice (did you mean",
        ),
        ("data.views.policy=eup", "data.views.policy: 'eup' is no choice (did you mean 'eupe'?)"),
        ("teachers=[dinov2]", "teachers: expected a mapping (name: value), got ['dinov2']"),
        ("export=null", "export: expected a mapping (licence, author), got nothing"),
        ("teachers.Big={family: a, weights: b}", "teachers.Big: 'Big' is no name (small letters"),
        ("teachers.a/b={family: a, weights: b}", "teachers.a/b: 'a/b' is no name (small letters"),
    ],
)
def test_a_wrong_value_gets_one_line(wrong, override, line):
    lines = wrong(SMALL, override)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_all_errors_come_at_once(wrong):
    text = SMALL.replace("family", "famly").replace("steps: 10", "steps: ten")
    text = text.replace("name: small", "1: small")
    lines = wrong(text, "sed=3", "stages.fixed.train.lr=-1", "seed=${nothing}")
    starts = [
        "sed: unknown key",
        "seed: Interpolation key",
        "1: unknown key",
        "name: missing; give text",
        "teachers.dinov2.famly: unknown key",
        "stages.fixed.train.steps: expected a whole number, got 'ten'",
        "stages.fixed.train.lr: -1 must be more than 0",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: a\nname: b\n", "line 2: found duplicate key name (YAML)"),
        ("name: [1, 2\n", "(YAML)"),
        ("a:\n\t- b\n", "that cannot start any token (YAML)"),
        ("a: 1\n---\nb: 2\n", "another document (YAML)"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: &a [*a]\n", "aliases"),
        ("name: ${\n", "'${'"),
        ("- 1\n", "a recipe is a mapping (name, data,"),
        ("word\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
    ],
)
def test_what_is_no_yaml_mapping_gets_one_line(read, tmp_path, text, part):
    with pytest.raises(UserError) as error:
        read(text)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "recipe.yaml"))
    assert part in message


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.yaml: no YAML text"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: ${name}\n", "name: Recursive interpolation detected"),
        ("name: ???\n", "name: '???' has to be replaced by a value"),
        ("name: ${oc.env:NO_SUCH_VARIABLE}\n", "name: KeyError raised while resolving"),
    ],
)
def test_an_interpolation_that_fails_gets_one_line(wrong, text, line):
    lines = wrong(SMALL.replace("name: small\n", text))
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_an_interpolation_without_end_is_found(wrong):
    ring = "data: {a: '${teachers}', b: '${teachers}'}\nteachers: {a: '${data}', b: '${data}'}\n"
    assert wrong(ring) == ["data: an interpolation that contains itself"]


def test_names_are_looked_up_here_and_then_among_the_shipped(tmp_path, monkeypatch):
    shipped, here = tmp_path / "shipped", tmp_path / "here"
    for folder in (shipped, here):
        folder.mkdir()
    monkeypatch.setattr(load, "shipped_recipes", lambda: shipped)
    monkeypatch.chdir(here)
    (shipped / "quick.yaml").write_text(SMALL)
    (here / "quick").mkdir()  # a folder is no recipe
    for name in ("quick", "quick.yaml"):
        assert find_recipe(name) == shipped / "quick.yaml"
    (here / "quick.yaml").write_text(SMALL)
    for name in ("quick", "quick.yaml", "./quick"):
        assert find_recipe(name).resolve() == here / "quick.yaml"
    with pytest.raises(UserError, match=r"there is no recipe 'quikc' \(did you mean 'quick'\?\)"):
        find_recipe("quikc")
    with pytest.raises(UserError, match=r"did you mean '\.\./here/quick.yaml'"):
        find_recipe("../here/quic.yaml")
    with pytest.raises(UserError, match="the recipe comes first, then key=value"):
        find_recipe("seed=3")


def test_the_shipped_recipes_of_a_checkout_are_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_recipe("quickstart"), Recipe)


def test_what_is_misspelt_does_not_hide_what_cannot_be_found(tmp_path):
    """Keys and types, and what names refer to: all in one go."""
    with pytest.raises(RecipeError) as caught:
        prepare(
            "quickstart",
            [
                "seed=x",
                "stages.fixd.train.steps=3",
                "teachers.dinov2.family=dinov",
                "teachers.sam.weights=./nowhere",
                "stages.fixed.students.vit.teachers=[proxy/prox]",
                "stages.multires.image_sizes=[64,100]",
                "stages.fixed.students.convnext.arch=convnext_tin",
                f"data.train.scenes.source=folder:{tmp_path}",
            ],
        )
    paths = {line.split(": ")[0].split("[")[0] for line in caught.value.problems}
    assert paths >= {
        "seed",
        "stages.fixd",
        "teachers.dinov2.family",
        "teachers.sam.weights",
        "stages.fixed.students.vit.teachers",
        "stages.multires.image_sizes",
        "stages.fixed.students.convnext.arch",
        "data.train.scenes.source",
    }


def test_what_rests_on_an_entry_that_cannot_be_read_is_not_judged():
    with pytest.raises(RecipeError) as caught:
        prepare("quickstart", ["teachers.dinov2.weights=[1]"])
    assert [line.split(": ")[0] for line in caught.value.problems] == ["teachers.dinov2.weights"]
