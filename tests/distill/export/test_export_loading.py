"""Exported folders in a process that cannot import this project: their cards' own Python, run."""

import json

import pytest
import torch
from hub_server import TOKEN, HubServer
from safetensors.torch import load_file
from tiny_students import BUILTIN, VIT, elsewhere, make_clip, make_run, python_blocks

from distill.export import Origin, export_student, exported_steps
from distill.export.command import add_arguments, export_command
from distill.export.contents import complete, copy
from distill.export.place import Place
from distill.export.select import find_student
from students import Features, Space, Spaces, UserError, build_student, load_student
from students.encoder import encode
from teachers import TeacherSpec, load_teacher

KINDS = ("vit", "plain_vit", "convnext")
TEXTS = ["a photo of a cat", "a photo of a dog"]

CARD = """
import json, sys
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
jobs, out = json.loads(sys.argv[1]), {}
for name, blocks in jobs.items():
    before = list(sys.path)
    sys.modules.pop("adapters", None)
    ns, scores = {}, []
    for block in blocks:
        exec(block, ns)
        if "scores" in ns:
            scores.append(ns.pop("scores"))
    sys.path[:] = before
    found = {key: ns[key] for key in ("pixels", "summary", "dense", "image_summary", "image_dense",
                                      "masks")}
    found["scores"] = torch.cat(scores)
    found["pooled"] = torch.tensor(ns["pooled"])
    found["processed"] = ns["inputs"]["pixel_values"]
    found["again.summary"], found["again.dense"] = ns["features"]
    adapters = ns["adapters"]
    with torch.no_grad():
        for teacher in adapters.chains:
            for kind, tokens in adapters(teacher, ns["features"])._asdict().items():
                if tokens is not None:
                    found[f"to.{teacher}.{kind}"] = tokens
        # The same through what transformers loaded.
        other = ns["encode"](ns["encoder"], ns["pixels"])
    assert torch.equal(other.dense, ns["features"].dense)
    assert not any(adapters.is_direction(teacher) for teacher in adapters.chains)
    if name == "convnext":
        import timm
        parts = timm.create_model(f"local-dir:./{name}", pretrained=True, features_only=True)
        with torch.no_grad():
            found["features_only"] = parts.eval()(ns["pixels"])[-1]
    out |= {f"{name}|{key}": value.contiguous().clone() for key, value in found.items()}
save_file(out, "out.safetensors")
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(run's folder, what the cards' Python gave elsewhere: kind of student -> name -> tensor)."""
    home = tmp_path_factory.mktemp("loading")
    make_run(home / "run", KINDS, make_clip(home / "clip"))
    cards = {}
    for kind in KINDS:
        found = find_student(home / "run/fixed" / kind)
        copy(complete(found, Place(kind)), home / kind)
        cards[kind] = python_blocks((home / kind / "README.md").read_text())
    elsewhere(CARD, home, json.dumps(cards), OMP_NUM_THREADS="1")
    given = {kind: {} for kind in KINDS}
    for name, tensor in load_file(home / "out.safetensors").items():
        kind, _, key = name.partition("|")
        given[kind][key] = tensor
    return home / "run", given


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_same_bit_for_bit(loaded, kind):
    run, given = loaded
    ours, theirs = load_student(run / "fixed" / kind).eval(), given[kind]
    with torch.no_grad():
        features = encode(ours.model, theirs["pixels"])
        shown = encode(ours.model, theirs["processed"])
    for name in ("summary", "dense"):
        assert torch.equal(theirs[name], features.get(name))  # timm
        assert torch.equal(theirs[f"again.{name}"], features.get(name))  # adapters.py
        assert torch.equal(theirs[f"image_{name}"], shown.get(name))  # transformers
    assert torch.allclose(theirs["pooled"], shown.summary, atol=1e-7, rtol=0)  # as Python floats
    assert theirs["processed"].shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_a_vits_summary_is_its_class_token(loaded):
    run, given = loaded
    for kind in ("vit", "plain_vit"):
        model = load_student(run / "fixed" / kind).eval().model
        with torch.no_grad():
            tokens = model.forward_features(given[kind]["pixels"])
        assert torch.equal(given[kind]["summary"], tokens[:, 0])
        assert not torch.allclose(given[kind]["summary"], tokens[:, 1:].mean(1), atol=1e-2)


@pytest.mark.slow
def test_a_convnexts_map_is_after_the_norm(loaded):
    """By a layer norm written out; what the library calls features is before it."""
    run, given = loaded
    weights = load_file(run / "fixed/convnext/model.safetensors")
    before = given["convnext"]["features_only"].permute(0, 2, 3, 1)
    mean, var = before.mean(-1, keepdim=True), before.var(-1, keepdim=True, unbiased=False)
    expected = (before - mean) / (var + 1e-6).sqrt()
    expected = expected * weights["head.norm.weight"] + weights["head.norm.bias"]
    assert torch.allclose(given["convnext"]["dense"], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(before, expected, atol=1e-2)


def near(theirs, ours):
    """Equal to 1e-5 of their scale."""
    torch.testing.assert_close(theirs, ours, atol=1e-5 * float(ours.abs().max()), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_teachers_space_is_the_one_of_training(loaded, kind):
    run, given = loaded
    theirs, folder = given[kind], run / "fixed" / kind
    features = Features(theirs["summary"], theirs["dense"])
    chains = Spaces.load(folder).chains()
    assert {key.split(".")[1] for key in theirs if key.startswith("to.")} == set(chains)
    assert set(chains) == {"proxy/proxy", "dinov2", "siglip", "sam", "clip"}
    for teacher, chain in chains.items():
        with torch.no_grad():
            there = chain(features)
        for name in ("summary", "dense"):
            expected = there.get(name)
            if expected is None:
                assert f"to.{teacher}.{name}" not in theirs
            else:
                near(theirs[f"to.{teacher}.{name}"], expected)
    assert "to.sam.dense" in theirs
    assert "to.sam.summary" not in theirs


@pytest.mark.slow
def test_zero_shot_scores_and_masks_are_those_of_training(loaded):
    run, given = loaded
    theirs = given["vit"]
    chains = Spaces.load(run / "fixed/vit").chains()
    features = Features(theirs["summary"], theirs["dense"])
    expected = []
    for family, weights in (("clip", run.parent / "clip"), ("siglip", BUILTIN / "siglip-tiny")):
        tower = load_teacher(TeacherSpec(family, str(weights))).text_tower
        with torch.no_grad():
            seen = tower.project(chains[family](features).summary)
            expected.append(torch.nn.functional.normalize(seen, dim=-1) @ tower(TEXTS).T)
    torch.testing.assert_close(theirs["scores"], torch.cat(expected), atol=1e-5, rtol=0)
    assert theirs["scores"].shape == (2, 2)
    sam = load_teacher(TeacherSpec("sam", str(BUILTIN / "sam-tiny")))
    with torch.no_grad():
        there = chains["sam"](features).dense
        masks, _ = sam.mask_decoder(there, torch.tensor([[[16.0, 16.0]]]), 32)
    near(theirs["masks"], masks)


PULL = """
import sys
import timm, torch
from safetensors.torch import save_file
torch.set_num_threads(1)
ns = {}
exec(sys.argv[1], ns)
main = timm.create_model("hf-hub:me/student", pretrained=True).eval()
with torch.no_grad():
    other = main(ns["pixels"])
found = {key: ns[key] for key in ("pixels", "summary", "dense", "scores")}
save_file({**{k: v.contiguous().clone() for k, v in found.items()}, "other": other}, "out")
"""


@pytest.mark.slow
def test_pushed_and_pulled(run_folder, tmp_path, capsys, monkeypatch):
    """The card's Python by the repository's name: timm, transformers, adapters; of a branch."""
    from argparse import ArgumentParser

    from huggingface_hub import HfApi

    server = HubServer()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=server.url, token=TOKEN))
    parser = ArgumentParser()
    add_arguments(parser)
    for words in (["--revision", "v1"], []):
        asked = parser.parse_args([str(run_folder), "--push", "me/student", "--private", *words])
        export_command(asked)
    said = capsys.readouterr()
    assert "6 files of " in said.out
    assert "me/student: 6 files" in said.out
    assert TOKEN not in said.out + said.err
    repository = server.repositories["me/student"]
    assert repository.private
    assert len(repository.commits) == 3  # the empty one of the Hub, v1 and main
    files = repository.commits[repository.branches["v1"]]
    card = files["README.md"].decode()
    assert "hf-hub:me/student@v1" in card
    assert 'from_pretrained("me/student", revision="v1")' in card
    said = elsewhere(
        PULL,
        tmp_path,
        "\n".join(python_blocks(card)),
        HF_ENDPOINT=server.url,
        HF_HOME=str(tmp_path / "hf"),
        HF_TOKEN=TOKEN,
        HF_HUB_OFFLINE="0",
        TRANSFORMERS_OFFLINE="0",
        OMP_NUM_THREADS="1",
    )
    server.shutdown()
    server.server_close()
    theirs = load_file(tmp_path / "out")
    with torch.no_grad():
        ours = encode(load_student(run_folder / "fixed/vit").eval().model, theirs["pixels"])
    assert torch.equal(theirs["summary"], ours.summary)
    assert torch.equal(theirs["dense"], ours.dense)
    assert torch.equal(theirs["other"], ours.summary)
    assert theirs["scores"].shape == (1, 2)
    assert TOKEN not in said
    for path in run_folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_folder_says_what_it_is(tmp_path):
    student = build_student("vit_small_patch16_dinov3_qkvb", size=32, overrides=VIT).eval()
    space = Space({"summary": (32, 6), "dense": (32, 6)}, hidden=8)
    origin = Origin(
        run="demo",
        name="vit",
        stage="fixed",
        steps=7,
        image_sizes=[32],
        licence="apache-2.0",
        teachers={"dinov2": {"family": "dinov2", "weights": "a/b", "licence": None}},
        data={"photos": "folder:/x"},
    )
    export_student(student, Spaces({("student", "dinov2"): space}), tmp_path / "student", origin)
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "apache-2.0"  # not the architecture's own
    assert config["pretrained_cfg"]["tag"] == "demo"
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert "num_classes" not in config["model_args"]
    assert exported_steps(tmp_path / "student") == 7
    assert exported_steps(tmp_path / "nowhere") == 0
    card = (tmp_path / "student/README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "| dinov2 | dinov2 | a/b | unknown |" in card
    assert f"{student.parameter_count:,} parameters" in card
    again = load_student(tmp_path / "student")
    assert again.info == student.info
    with torch.no_grad():
        pixels = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again.eval()(pixels, 40).dense, student(pixels, 40).dense)


def test_weights_of_another_architecture_are_named(tmp_path):
    make_run(tmp_path / "run", ("vit", "convnext"))
    a, b = (tmp_path / f"run/fixed/{name}/model.safetensors" for name in ("vit", "convnext"))
    a.write_bytes(b.read_bytes())
    with pytest.raises(UserError, match="does not fit vit_small"):
        load_student(a.parent)
