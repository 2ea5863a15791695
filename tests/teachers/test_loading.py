import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import teachers.checkpoint
from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error

KINDS = {
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "sam": "sam",
}


@pytest.fixture
def copy(checkpoint, tmp_path):
    """copy(kind) -> a spec for a folder of its own that a test may damage, and the folder."""

    def make(kind: str):
        folder = tmp_path / f"{kind}-copy"
        shutil.copytree(checkpoint(kind)[0], folder)
        return TeacherSpec(KINDS[kind], str(folder)), folder

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path, **fields):
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


# ---- what is known without weights


@pytest.mark.parametrize("kind", KINDS)
def test_description(kind, checkpoint):
    folder, model = checkpoint(kind)
    info = describe_teacher(TeacherSpec(KINDS[kind], str(folder)))
    vision = {"siglip": "vision_model", "sam": "vision_encoder"}.get(kind)
    encoder = getattr(model, vision) if vision else model
    assert info.fetched
    assert info.source == str(folder)
    assert (info.size, info.stride) == (32, 4)
    assert info.summary_dim == (None if kind == "sam" else 24)
    assert info.dense_dim == (16 if kind == "sam" else 24)
    assert info.parameters == sum(p.numel() for p in encoder.parameters())
    assert info.mean == (0.4, 0.5, 0.6)
    assert info.std == (0.2, 0.25, 0.3)
    assert info.licence is None


def test_native_size_is_the_preprocessors_crop(copy):
    spec, folder = copy("dinov2")
    change_json(folder / "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    assert describe_teacher(spec).size == 24
    change_json(folder / "preprocessor_config.json", do_center_crop=False)
    assert describe_teacher(spec).size == 32


def test_statistics_may_be_in_the_newer_file(copy):
    spec, folder = copy("siglip")
    old = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(old.read_text())})
    )
    old.unlink()
    assert describe_teacher(spec).std == (0.2, 0.25, 0.3)


def test_licence_is_the_model_cards(copy):
    spec, folder = copy("dinov2")
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\nlicense: mit\n")
    assert describe_teacher(spec).licence == "cc-by-nc-4.0"
    (folder / "README.md").write_text("# A model\nlicense: mit\n")
    assert describe_teacher(spec).licence is None


def test_size_error_of_patches(checkpoint):
    info = describe_teacher(TeacherSpec("dinov2", str(checkpoint("dinov2")[0])))
    assert size_error(info, 33) is None
    assert size_error(info, (32, 48)) is None
    assert "smaller than its patch" in size_error(info, (32, 3))


# ---- frozen


@pytest.mark.parametrize("kind", KINDS)
def test_frozen(kind, checkpoint, pixels):
    teacher = load_teacher(TeacherSpec(KINDS[kind], str(checkpoint(kind)[0])))
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    images = pixels(32).requires_grad_()
    for tokens in (teacher(images).summary, teacher(images).dense):
        assert tokens is None or not (tokens.requires_grad or tokens.is_inference())


def test_a_teacher_in_a_trained_model_stays_in_eval(checkpoint):
    model = torch.nn.ModuleList([load_teacher(TeacherSpec("sam", str(checkpoint("sam")[0])))])
    model.train()
    assert not any(module.training for module in model[0].modules())


def test_tokens_are_those_asked_for(checkpoint, pixels):
    folder = str(checkpoint("siglip")[0])
    features = load_teacher(TeacherSpec("siglip", folder, tokens=("summary",)))(pixels(32))
    assert features.dense is None
    features = load_teacher(TeacherSpec("siglip", folder, tokens=("dense",)))(pixels(32))
    assert features.summary is None


def test_own_dtype_whatever_is_stored(copy, pixels):
    spec, folder = copy("dinov2")
    change_weights(folder, lambda w: w.update({k: v.half() for k, v in w.items()}))
    teacher = load_teacher(spec)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher(pixels(32)).dense
    assert torch.equal(inside, teacher(pixels(32)).dense)
    short = load_teacher(TeacherSpec("dinov2", spec.weights, dtype="bfloat16"))
    assert short(pixels(32)).dense.dtype == torch.bfloat16


def test_pixels_must_be_floats(checkpoint):
    teacher = load_teacher(TeacherSpec("dinov2", str(checkpoint("dinov2")[0])))
    with pytest.raises(TypeError, match="uint8"):
        teacher(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_loading_says_nothing(checkpoint, capfd):
    folder, _ = checkpoint("siglip")
    capfd.readouterr()  # what the library says while it makes the checkpoint
    load_teacher(TeacherSpec("siglip", str(folder)))
    out, err = capfd.readouterr()
    assert out + err == ""


# ---- every weight is accounted for

A_WEIGHT = {
    "dinov2": "encoder.layer.1.norm2.bias",
    "dinov2_with_registers": "embeddings.register_tokens",
    "siglip": "vision_model.post_layernorm.weight",
    "siglip_vision_model": "head.probe",
    "sam": "mask_decoder.iou_token.weight",
}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_weight(kind, copy):
    spec, folder = copy(kind)
    change_weights(folder, lambda w: w.pop(A_WEIGHT[kind]))
    name = A_WEIGHT[kind].removeprefix("vision_model.")
    with pytest.raises(UserError, match=rf"1 missing: {name}$"):
        load_teacher(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_unexpected_weights(kind, copy):
    spec, folder = copy(kind)
    extra = {f"classifier.{i}.weight": torch.zeros(2) for i in range(6)}
    change_weights(folder, lambda w: w.update(extra))
    with pytest.raises(UserError, match=r"6 unexpected: classifier.0.weight, .*3.weight, \.\.\.$"):
        load_teacher(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_of_another_shape(kind, copy):
    spec, folder = copy(kind)
    change_weights(folder, lambda w: w.update({A_WEIGHT[kind]: torch.zeros(1, 5)}))
    with pytest.raises(UserError, match=r"1 of another shape: .*is \[1, 5\], not"):
        load_teacher(spec)


def test_weight_under_two_names(copy):
    spec, folder = copy("siglip")
    key = A_WEIGHT["siglip"]
    bare = key.removeprefix("vision_model.")
    change_weights(folder, lambda w: w.update({bare: w[key] + 1}))
    with pytest.raises(UserError, match=f"1 unexpected: {bare}$"):
        load_teacher(spec)


def test_missing_text_weight_is_found_with_the_text_tower(copy):
    spec, folder = copy("siglip")
    change_weights(folder, lambda w: w.pop("text_model.head.bias"))
    teacher = load_teacher(spec)
    with pytest.raises(UserError, match=r"1 missing: head.bias"):
        _ = teacher.text_tower


def test_tied_weight_of_sam_may_be_stored_twice(copy, checkpoint, pixels):
    spec, folder = copy("sam")
    tied = "prompt_encoder.shared_embedding.positional_embedding"
    shared = "shared_image_embedding.positional_embedding"
    change_weights(folder, lambda w: w.update({tied: w[shared].clone()}))
    assert load_teacher(spec)(pixels(32)).dense.shape == (3, 8, 8, 16)


def test_shards(copy, checkpoint, pixels):
    spec, folder = copy("dinov2")
    whole = load_teacher(spec)(pixels(32)).dense
    (folder / "model.safetensors").unlink()
    checkpoint("dinov2")[1].save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    teacher = load_teacher(spec)
    assert torch.equal(teacher(pixels(32)).dense, whole)
    assert teacher.info.parameters == sum(p.numel() for p in teacher.parameters())
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name} is missing"):
        describe_teacher(spec)


def test_damaged_file(copy):
    spec, folder = copy("dinov2")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        describe_teacher(spec)


# ---- what is not a checkpoint of the family


def test_weights_of_another_family(checkpoint):
    folder = str(checkpoint("siglip")[0])
    with pytest.raises(UserError, match=r"'siglip', which is not of family 'dinov2'; use family"):
        describe_teacher(TeacherSpec("dinov2", folder))


def test_weights_of_no_family(copy):
    spec, folder = copy("dinov2")
    change_json(folder / "config.json", model_type="bert")
    with pytest.raises(UserError, match=r"'bert', .*families: .*dinov2.*sam.*siglip"):
        describe_teacher(spec)


def test_family_that_does_not_exist(checkpoint):
    with pytest.raises(UserError, match=r"'dino2'.*did you mean 'dinov2'"):
        describe_teacher(TeacherSpec("dino2", str(checkpoint("dinov2")[0])))


def test_builtin_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.checkpoint, "BUILTIN", tmp_path)
    (tmp_path / "dinov2-tiny").mkdir()
    (tmp_path / "dinov2-tiny" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="did you mean 'dinov2-tiny'"):
        describe_teacher(TeacherSpec("dinov2", "builtin:dino-tiny"))


def test_builtin_is_a_folder_of_the_package(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.checkpoint, "BUILTIN", tmp_path)
    shutil.copytree(checkpoint("dinov2")[0], tmp_path / "x")
    info = describe_teacher(TeacherSpec("dinov2", "builtin:x"))
    assert (info.source, info.licence) == (str(tmp_path / "x"), "apache-2.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "fp16"}, "dtype 'fp16'.*did you mean 'float16'"),
        ({"tokens": ("densse",)}, "tokens 'densse'.*did you mean 'dense'"),
        ({"tokens": ()}, "tokens is empty"),
        ({"sizes": (32, 2)}, "size 2 is smaller"),
    ],
)
def test_bad_fields(change, message, checkpoint):
    spec = TeacherSpec("dinov2", str(checkpoint("dinov2")[0]), **change)
    with pytest.raises(UserError, match=message):
        load_teacher(spec)


def test_sam_has_no_summary(checkpoint):
    spec = TeacherSpec("sam", str(checkpoint("sam")[0]), tokens=("summary",))
    with pytest.raises(UserError, match="gives no summary"):
        describe_teacher(spec)


def test_no_such_folder(tmp_path, hub):
    for weights in (str(tmp_path / "no"), "./no", "~/no/such", "no", "a/b/c", "a/b--c"):
        with pytest.raises(UserError, match="no such folder"):
            describe_teacher(TeacherSpec("dinov2", weights))


def test_a_file_is_no_folder(copy):
    _, folder = copy("dinov2")
    with pytest.raises(UserError, match="name the folder"):
        describe_teacher(TeacherSpec("dinov2", str(folder / "model.safetensors")))


def test_folder_without_weights(copy):
    spec, folder = copy("dinov2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        describe_teacher(spec)


def test_pickled_weights_are_refused(copy):
    spec, folder = copy("dinov2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights \(pytorch_model.bin\).*safetensors"):
        load_teacher(spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{", "no valid JSON"),
        ("[]", "no JSON object"),
        ("{}", "no model_type"),
        ('{"model_type": "dinov2", "hidden_size": "wide"}', "config.json is not valid: .*wide"),
    ],
)
def test_bad_config(content, message, copy):
    spec, folder = copy("dinov2")
    (folder / "config.json").unlink()
    if content:
        (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        describe_teacher(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [None, [0.5], ["a", "b", "c"], [0.5, 0.5, 0.0]])
def test_bad_statistics(bad, copy):
    spec, folder = copy("dinov2")
    change_json(folder / "preprocessor_config.json", image_std=bad)
    with pytest.raises(UserError, match=r"preprocessor_config.json says std"):
        describe_teacher(spec)


def test_no_statistics(copy):
    spec, folder = copy("dinov2")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config.json.*mean: \[0.5"):
        describe_teacher(spec)


# ---- hub ids


def into_cache(hub: Path, source: Path, *names: str) -> str:
    """The hub's own layout of its cache; no names: every file."""
    repo = hub / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in source.iterdir():
        if not names or path.name in names:
            shutil.copy(path, snapshot)
    return "org/name"


def test_hub_id_that_is_not_fetched_is_no_error(hub):
    info = describe_teacher(TeacherSpec("dinov2", "org/name"))
    assert (info.fetched, info.source, info.size) == (False, "org/name", None)
    assert size_error(info, 7) is None
    assert not hub.exists()


def test_hub_id_without_a_network(hub):
    with pytest.raises(UserError, match=r"cannot be reached.*hf download org/name"):
        load_teacher(TeacherSpec("dinov2", "org/name"))


def test_hub_id_in_the_cache(hub, checkpoint, pixels):
    folder, _ = checkpoint("dinov2")
    spec = TeacherSpec("dinov2", into_cache(hub, folder))
    assert describe_teacher(spec).fetched
    local = load_teacher(TeacherSpec("dinov2", str(folder)))
    assert torch.equal(load_teacher(spec)(pixels(32)).dense, local(pixels(32)).dense)


@pytest.mark.parametrize("kind", KINDS)
def test_hub_id_with_its_configuration_alone(kind, hub, checkpoint):
    folder, _ = checkpoint(kind)
    whole = describe_teacher(TeacherSpec(KINDS[kind], str(folder)))
    spec = TeacherSpec(KINDS[kind], into_cache(hub, folder, "config.json"))
    info = describe_teacher(spec)
    assert not info.fetched
    assert (info.size, info.stride, info.mean) == (32, 4, None)
    assert (info.summary_dim, info.dense_dim) == (whole.summary_dim, whole.dense_dim)
    assert info.parameters == whole.parameters
    with pytest.raises(UserError, match="hf download org/name"):
        load_teacher(spec)


def test_hub_id_without_its_preprocessor_is_not_all_there(hub, checkpoint):
    folder, _ = checkpoint("dinov2")
    weights = into_cache(hub, folder, "config.json", "model.safetensors")
    assert not describe_teacher(TeacherSpec("dinov2", weights)).fetched
