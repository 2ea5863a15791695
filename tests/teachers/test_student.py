import json
import shutil

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from distill.export import Origin, export_student
from students import Space, Spaces, UserError, build_student
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
STUDENTS = {
    "dinov3": ("vit_small_patch16_dinov3_qkvb", VIT),
    "average": ("vit_small_patch16_224", VIT | {"global_pool": "avg"}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}),
    "beit": ("beit_base_patch16_224", VIT),
}
SIZE = 64


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        if "norm" in name:
            tensor.abs_().add_(0.5)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """exported(name) -> the folder of an exported student, made once."""
    made = {}

    def make(name: str):
        if name not in made:
            arch, overrides = STUDENTS[name]
            student = build_student(arch, size=SIZE, overrides=overrides)
            randomise(student.model)
            widths = {"dense": (student.dense_dim, 4)}
            space = Space(widths, adapter="linear", hidden=4, normaliser="none")
            folder = tmp_path_factory.mktemp(name)
            origin = Origin("run", name, "stage", 3, [SIZE], licence="cc-by-nc-4.0")
            export_student(student, Spaces({("student", "t"): space}), folder, origin)
            made[name] = folder
        return made[name]

    return make


@pytest.fixture
def copy(exported, tmp_path):
    def make(name: str):
        folder = tmp_path / "copy"
        shutil.copytree(exported(name), folder)
        return TeacherSpec("student", str(folder)), folder

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    return snapshot


def library(folder, pixels):
    """timm's own model of the folder, what its forward_features and its forward give."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    normalised = (pixels - mean) / std
    with torch.no_grad():
        return model, model.forward_features(normalised), model(normalised)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("dinov3", (64, 64)),
        ("dinov3", (48, 80)),
        ("average", (64, 64)),
        ("average", (48, 80)),
        ("beit", (64, 64)),  # takes its own size alone
    ],
)
def test_a_vit_equals_timm(name, size, exported, pixels):
    folder = exported(name)
    model, tokens, pooled = library(folder, pixels(*size))
    features = load_teacher(TeacherSpec("student", str(folder)))(pixels(*size), size)
    patches = tokens[:, model.num_prefix_tokens :].unflatten(1, (size[0] // 8, size[1] // 8))
    assert_close(features.dense, patches, atol=1e-5, rtol=0)
    assert_close(features.summary, pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_a_convnext_equals_timm(size, exported, pixels):
    folder = exported("convnext")
    model, out, pooled = library(folder, pixels(*size))
    features = load_teacher(TeacherSpec("student", str(folder)))(pixels(*size), size)
    with torch.no_grad():
        dense = model.head.norm(out).permute(0, 2, 3, 1)
    assert_close(features.dense, dense, atol=1e-5, rtol=0)
    assert_close(features.summary, pooled, atol=1e-5, rtol=0)


def test_summary_is_what_the_student_pooled_in_training(exported, pixels):
    """A student that was told to pool the average is no class token, as family timm would say."""
    folder = exported("average")
    summary = load_teacher(TeacherSpec("student", str(folder)))(pixels(64)).summary
    class_token = load_teacher(TeacherSpec("timm", str(folder)))(pixels(64)).summary
    assert (summary - class_token).abs().max() > 0.1


def test_layers(exported, pixels):
    folder = str(exported("dinov3"))
    whole = load_teacher(TeacherSpec("student", folder))(pixels(64))
    last = load_teacher(TeacherSpec("student", folder, layer=2))(pixels(64))
    first = load_teacher(TeacherSpec("student", folder, layer=1))(pixels(64))
    assert torch.equal(last.dense, whole.dense)
    assert torch.equal(first.summary, whole.summary)
    assert (first.dense - whole.dense).abs().max() > 0.1


@pytest.mark.parametrize("name", STUDENTS)
def test_description(name, exported):
    folder = exported(name)
    info = describe_teacher(TeacherSpec("student", str(folder)))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert info.fetched
    assert info.source == str(folder)
    assert (info.size, info.stride) == (64, 32 if name == "convnext" else 8)
    assert info.summary_dim == info.dense_dim == model.num_features
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert list(info.mean) == list(model.pretrained_cfg["mean"])
    assert info.statistics_from == "config.json"
    assert info.licence == "cc-by-nc-4.0"


def test_sizes(exported):
    info = describe_teacher(TeacherSpec("student", str(exported("dinov3"))))
    assert size_error(info, (40, 96)) is None
    assert "size 60 is no multiple of its stride 8" in size_error(info, 60)
    fixed = describe_teacher(TeacherSpec("student", str(exported("beit"))))
    assert "does not take size 96" in size_error(fixed, 96)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.bias"), r"1 missing: norm.bias$"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 unexpected: extra$"),
        (lambda w: w.update({"norm.bias": torch.zeros(5)}), r"norm.bias \(is \[5\], not \[32\]\)$"),
    ],
)
def test_every_weight_is_accounted_for(change, message, copy):
    spec, folder = copy("dinov3")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_teacher(spec)


def test_a_plain_timm_folder_is_of_another_family(copy):
    spec, folder = copy("dinov3")
    (folder / "adapters.json").unlink()
    with pytest.raises(UserError, match=r"no adapters.json.*family 'timm'"):
        describe_teacher(spec)
    assert describe_teacher(TeacherSpec("timm", spec.weights)).fetched


def test_a_folder_that_is_no_students(copy):
    spec, folder = copy("dinov3")
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="use family 'siglip'"):
        describe_teacher(spec)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        describe_teacher(spec)


def test_hub_id(hub, exported, pixels):
    spec = TeacherSpec("student", "org/name")
    assert not describe_teacher(TeacherSpec("student", "org/other")).fetched
    folder = exported("dinov3")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, hub)
    info = describe_teacher(spec)
    # As timm leaves it: without the adapters.
    assert (info.fetched, info.source, info.size, info.summary_dim) == (False, "org/name", 64, 32)
    shutil.copy(folder / "adapters.json", hub)
    assert describe_teacher(spec).fetched
    local = load_teacher(TeacherSpec("student", str(folder)))
    assert torch.equal(load_teacher(spec)(pixels(64)).dense, local(pixels(64)).dense)
    assert "adapters.json" in load_teacher(spec).checkpoint.layout.wanted(False, False)
