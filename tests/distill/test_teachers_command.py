"""`distill teachers`: what it prints of families, presets and single teachers, and its errors."""

import json
import re
import shutil

import pytest
from huggingface_hub import constants

from distill import cli
from distill.teachers_command import find_family
from students.errors import UserError
from teachers import all_presets, families
from teachers.checkpoint import BUILTIN


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def printed(capsys):
    """printed(word, ...) -> what the command prints of a teacher, by the key of each row."""

    def run(*words):
        assert cli.main(["teachers", *words]) == 0
        out = re.sub(r" *\n {3,}", " ", capsys.readouterr().out)  # a long value is folded
        lines = out.splitlines()
        return dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines)

    return run


@pytest.fixture
def refused(capsys):
    """refused(word, ...) -> the one line on stderr."""

    def run(*words):
        assert cli.main(["teachers", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return run


# ---- all of them


def test_families_and_presets_are_listed(capsys):
    assert cli.main(["teachers"]) == 0
    out = capsys.readouterr().out
    starts = {line.split(" ", 1)[0] for line in out.splitlines()}
    assert set(families()) <= starts
    assert set(all_presets()) <= starts
    row = next(line for line in out.splitlines() if line.startswith("dinov2-b "))
    assert re.fullmatch(r"dinov2-b +dinov2 +224 +14 +86,580,480 +768 +768 +apache-2.0 *", row)
    row = next(line for line in out.splitlines() if line.startswith("sam-b "))
    assert row.split()[-3:] == ["-", "256", "apache-2.0"]


def test_markdown_is_the_table_of_families_and_nothing_else(capsys):
    assert cli.main(["teachers", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "|---|---|---|---|---|---|---|"
    assert [line.split("`")[1] for line in lines[2:]] == list(families())
    assert {line.count("|") for line in lines} == {8}


def test_help_mentions_it(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "print the teachers' families and presets" in out
    assert "distill teachers dinov2-b" in out


# ---- one of them


def test_a_preset_that_is_not_fetched(printed, hub):
    found = printed("dinov2-b")
    assert found["preset"] == "dinov2-b"
    assert "README of facebookresearch/dinov2" in found["source"]
    assert found["family"] == "dinov2 (transformers: Dinov2Model, Dinov2WithRegistersModel)"
    assert found["weights"] == "facebook/dinov2-base"
    assert found["fetched"] == "not yet; a run will fetch it"
    assert found["licence"] == "apache-2.0"
    assert found["parameters"] == "86,580,480"
    assert found["native size"] == "224 pixels"
    assert found["stride"] == "14 pixels"
    assert found["summary"] == "768 wide: class token after the final norm"
    assert found["dense"] == "768 wide: patch tokens after the final norm"
    assert found["layers"].startswith("1 to 12 ")
    assert found["pixels"] == "unknown until it is fetched"
    assert found["text tower"] == found["mask decoder"] == "none"
    assert not hub.exists()


def test_a_builtin(printed):
    found = printed("builtin:sam-tiny", "tokens=[dense]")
    assert found["family"] == "sam (transformers: SamModel)"
    assert (found["fetched"], found["licence"]) == ("yes", "apache-2.0")
    assert found["summary"] == "none"
    assert found["dense"].startswith("64 wide: ")
    assert found["layers"] == "the last only"
    assert found["pixels"] == (
        "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225 (preprocessor_config.json)"
    )
    assert found["text tower"] == "none"
    assert found["mask decoder"] == "of dense features, a student's too"
    assert "preset" not in found
    assert printed("builtin:siglip-tiny")["text tower"].startswith("of this family")
    assert printed("sam2-t", "tokens=[dense]")["mask decoder"].endswith("own pixels only")


def test_a_folder_with_the_recipes_keys(printed, tmp_path):
    shutil.copytree(BUILTIN / "dinov2-tiny", tmp_path / "mine")
    (tmp_path / "mine" / "preprocessor_config.json").unlink()
    found = printed(str(tmp_path / "mine"), "mean=[0.5,0.25,0.125]", "std=[1,1,1]", "layer=2")
    assert found["pixels"] == "mean 0.5, 0.25, 0.125; std 1, 1, 1 (the recipe)"
    assert found["licence"] == "not stated"


def test_a_hub_id_of_which_nothing_is_known(printed):
    found = printed("org/name", "family=dinov2")
    unknown = {key for key, value in found.items() if value == "unknown until it is fetched"}
    assert unknown == {
        *("licence", "parameters", "native size", "stride", "summary", "dense", "layers", "pixels")
    }


def test_a_timm_name(printed):
    found = printed("vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m")
    assert found["family"].startswith("timm (")
    assert found["licence"] == "fair-noncommercial-research-license"
    assert found["pixels"].endswith("(timm's pretrained_cfg)")


# ---- the family


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"config.json": {"model_type": "dinov2_with_registers"}}, "dinov2"),
        ({"config.json": {"model_type": "siglip"}}, "siglip"),
        ({"config.json": {"model_type": "siglip2"}}, "siglip2"),
        ({"config.json": {"model_type": "clip"}}, "clip"),
        ({"config.json": {"model_type": "metaclip_2"}}, "metaclip"),
        ({"config.json": {"model_type": "sam"}}, "sam"),
        ({"config.json": {"architecture": "vit_tiny_patch16_224"}}, "timm"),
        ({"open_clip_config.json": {"model_cfg": {}}}, "open_clip"),
        (
            {"config.json": {"architecture": "vit_tiny_patch16_224"}, "adapters.json": {}},
            "student",
        ),
    ],
)
def test_the_family_is_what_the_files_say(tmp_path, hub, files, family):
    repo = hub / "models--org--name"
    for folder in (tmp_path / "folder", repo / "snapshots" / "abc"):
        folder.mkdir(parents=True)
        for name, fields in files.items():
            (folder / name).write_text(json.dumps(fields))
    assert find_family(str(tmp_path / "folder")) == family
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    assert find_family("org/name") == family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("facebook/dinov2-base", "dinov2"),
        ("timm/vit_base_patch14_dinov2.lvd142m", "timm"),
        ("vit_base_patch14_dinov2.lvd142m", "timm"),
        ("vit_base_patch14_dinov2", "timm"),
        ("ViT-B-16:dfn2b", "open_clip"),
        ("ViT-B-16:laion2b_s34b_b88k", "open_clip"),
    ],
)
def test_the_family_of_a_name(name, family):
    assert find_family(name) == family


def test_a_family_that_cannot_be_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UserError, match=r"its files do not say .*; add family=\.\.\., one of clip,"
    ):
        find_family(str(tmp_path))
    with pytest.raises(UserError, match=r"'org/name' is no preset \(.*; add family=\.\.\., one of"):
        find_family("org/name")


def test_a_damaged_configuration(refused, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "is no valid JSON" in refused(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dinov2b"], "distill: 'dinov2b' is no preset (did you mean 'dinov2-b'?), and no folder"),
        (["family=dinov2"], "distill: 'family=dinov2' is no teacher: the teacher comes first"),
        (["dinov2-b", "224"], "distill: '224': a key of the teacher is written key=value"),
        (["dinov2-b", "familly=x"], "distill: familly: unknown key (did you mean 'family'?)"),
        (["dinov2-b", "sizes=big"], "distill: sizes: expected a list of whole numbers"),
        (["dinov2-b", "mean=[0.5"], "distill: mean=[0.5: "),
        (["dinov2-b", "family=sam"], "distill: family: the preset 'dinov2-b' is of family"),
        (["org/name", "family=dino"], "distill: teacher family 'dino' (did you mean 'dinov"),
        (["builtin:sam"], "distill: weights 'builtin:sam': no such built-in teacher (did you"),
        (["builtin:dinov2-tiny", "layer=9"], "distill: builtin:dinov2-tiny: layer 9 is not one of"),
        (["dinov2-b", "sizes=[3]"], "distill: facebook/dinov2-base: size 3 is smaller than"),
    ],
)
def test_one_line_for_what_is_wrong(refused, words, line):
    assert refused(*words).startswith(line)
