import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error
from teachers.checkpoint import Checkpoint
from teachers.radio import RadioTeacher


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def copy(checkpoint, tmp_path):
    shutil.copytree(checkpoint("radio")[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (80, 64)])
def test_equals_the_library(size, checkpoint, pixels):
    folder, model = checkpoint("radio")
    images = pixels(*size)
    with torch.no_grad():
        out = model(images)
    features = load_teacher(TeacherSpec("radio", str(folder)))(images, size)
    patches = out.features.reshape(3, size[0] // 4, size[1] // 4, 24)
    assert_close(features.summary, out.summary, atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


def test_summary_and_patches_are_of_their_own_tokens(checkpoint, pixels):
    folder, model = checkpoint("radio")
    with torch.no_grad():
        tokens = model(pixels(32)).last_hidden_state  # 3 class tokens, 2 registers, 64 patches
    features = load_teacher(TeacherSpec("radio", str(folder)))(pixels(32))
    summary = torch.cat([tokens[:, 0], tokens[:, 2]], 1)
    assert_close(features.summary, summary, atol=1e-5, rtol=0)
    assert_close(features.dense.flatten(1, 2), tokens[:, 5:], atol=1e-5, rtol=0)


def test_the_model_normalises_by_itself(checkpoint, pixels):
    folder, model = checkpoint("radio")
    info = describe_teacher(TeacherSpec("radio", str(folder)))
    assert (info.mean, info.std) == ((0.0,) * 3, (1.0,) * 3)
    assert info.statistics_from == "the model normalises its pixels itself"
    teacher = load_teacher(TeacherSpec("radio", str(folder)))
    assert torch.equal(teacher.norm(pixels(32)), pixels(32))
    mean, std = model.input_conditioner.norm_mean, model.input_conditioner.norm_std
    with torch.no_grad():
        embedded = model.embeddings((pixels(32) - mean) / std)
        tokens = model.encoder(embedded).last_hidden_state
    assert_close(teacher(pixels(32)).dense.flatten(1, 2), tokens[:, 5:], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"mean and std cannot be given.*normalises"):
        describe_teacher(TeacherSpec("radio", str(folder), mean=(0.5,) * 3, std=(0.5,) * 3))


def test_no_preprocessor_is_needed(copy):
    (copy / "preprocessor_config.json").unlink()
    assert describe_teacher(TeacherSpec("radio", str(copy))).size == 32
    (copy / "preprocessor_config.json").write_text('{"crop_size": {"height": 48, "width": 48}}')
    assert describe_teacher(TeacherSpec("radio", str(copy))).size == 48


def test_sizes_are_multiples_of_the_patch(checkpoint, pixels):
    spec = TeacherSpec("radio", str(checkpoint("radio")[0]))
    info = describe_teacher(spec)
    assert size_error(info, 36) is None
    assert size_error(info, (24, 40)) is None
    assert size_error(info, 34).endswith(
        "no multiple of RADIO's patch of 4 pixels; the nearest is 32"
    )
    with pytest.raises(UserError, match=r"\(34, 41\) is no multiple .* nearest is \(32, 40\)"):
        load_teacher(spec)(pixels(32), (34, 41))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layer_has_no_norm_behind_it(layer, checkpoint, pixels):
    folder, model = checkpoint("radio")
    with torch.no_grad():
        out = model(pixels(24, 40), output_hidden_states=True)
    teacher = load_teacher(TeacherSpec("radio", str(folder), layer=layer))
    features = teacher(pixels(24, 40), (24, 40))
    assert_close(features.dense.flatten(1, 2), out.hidden_states[layer][:, 5:], atol=1e-5, rtol=0)
    assert_close(features.summary, out.summary, atol=1e-5, rtol=0)


def test_layer_scales_are_all_there_or_none(copy, checkpoint, pixels):
    scales = [
        f"radio_model.model.blocks.{i}.layer_scale{j}.lambda1" for i in range(3) for j in (1, 2)
    ]
    change_weights(copy, lambda w: [w.pop(name) for name in scales[:2]])
    with pytest.raises(UserError, match="has 4 of 6 layer scales"):
        load_teacher(TeacherSpec("radio", str(copy)))
    change_weights(copy, lambda w: [w.pop(name) for name in scales[2:]])
    features = load_teacher(TeacherSpec("radio", str(copy)))(pixels(32))
    plain = shutil.copytree(checkpoint("radio")[0], copy.parent / "ones")
    change_weights(plain, lambda w: w.update({name: torch.ones(24) for name in scales}))
    assert torch.equal(
        features.dense, load_teacher(TeacherSpec("radio", str(plain)))(pixels(32)).dense
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("radio_model.model.blocks.1.norm2.bias", "1 missing: encoder.layer.1.norm2.bias$"),
        ("radio_model.model.blocks.1.attn.qkv.weight", "3 missing: encoder.layer.1.attention.k_"),
        ("radio_model.input_conditioner.norm_mean", "1 missing: input_conditioner.norm_mean$"),
        (
            "radio_model.model.patch_generator.pos_embed",
            "1 missing: embeddings.position_embedding$",
        ),
    ],
)
def test_missing_weight(name, message, copy):
    change_weights(copy, lambda w: w.pop(name))
    with pytest.raises(UserError, match=message):
        load_teacher(TeacherSpec("radio", str(copy)))


# ---- code that the checkpoint brings

CODE = """
from pathlib import Path
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

Path("{witness}").write_text("run")


class OlderConfig(PretrainedConfig):
    def __init__(self, width=6, preferred_resolution=None, broken=False, **kwargs):
        self.width, self.preferred_resolution = width, preferred_resolution
        self.broken = broken
        super().__init__(**kwargs)


class OlderModel(PreTrainedModel):
    config_class = OlderConfig

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.width, 8, 8)
        self.heads = nn.Linear(config.width, 2 * config.width)
        self.register_buffer("offset", torch.zeros(3, 1, 1))
        # What no file holds: the code computes it.
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)
        self.shift = torch.full((1,), 0.5)
        self.post_init()

    def forward(self, x):
        if self.config.broken:
            raise KeyError("broken")
        maps = self.patches(x - self.offset).flatten(2) * self.scale + self.shift
        return {returned}
"""
PAIR = "self.heads(maps.mean(2)), maps.transpose(1, 2)"
NAMED = f"type('Output', (), dict(zip(('summary', 'features'), ({PAIR}))))()"


@pytest.fixture
def older(tmp_path, monkeypatch):
    """older(returned, **config) -> (folder with code and weights, its weights, what it writes)."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "mod"))

    def make(returned=PAIR, **config):
        folder = tmp_path / "older"
        folder.mkdir()
        classes = {"AutoConfig": "code.OlderConfig", "AutoModel": "code.OlderModel"}
        fields = {"auto_map": classes, "preferred_resolution": [32, 32], **config}
        (folder / "config.json").write_text(json.dumps(fields))
        code = CODE.replace("{witness}", str(tmp_path / "ran")).replace("{returned}", returned)
        (folder / "code.py").write_text(code)
        generator = torch.Generator().manual_seed(4)
        shapes = {"patches.weight": (6, 3, 8, 8), "patches.bias": (6,), "offset": (3, 1, 1)}
        shapes |= {"heads.weight": (12, 6), "heads.bias": (12,)}
        weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder, weights, tmp_path / "ran"

    return make


@pytest.mark.parametrize("returned", [PAIR, NAMED])
@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_trusted_code_is_run(returned, size, older, pixels):
    folder, weights, _ = older(returned)
    teacher = load_teacher(TeacherSpec("radio", str(folder), trust_remote_code=True))
    images = pixels(*size)
    maps = torch.nn.functional.conv2d(
        images - weights["offset"], weights["patches.weight"], weights["patches.bias"], stride=8
    )
    maps = maps * 3 + 0.5
    summary = maps.mean((2, 3)) @ weights["heads.weight"].T + weights["heads.bias"]
    features = teacher(images, size)
    assert_close(features.dense, maps.permute(0, 2, 3, 1), atol=1e-5, rtol=0)
    assert_close(features.summary, summary, atol=1e-5, rtol=0)
    info = teacher.info
    assert (info.size, info.stride, info.summary_dim, info.dense_dim) == (32, 8, 12, 6)
    assert (info.layers, info.mean, info.std) == (None, (0.0,) * 3, (1.0,) * 3)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_own_code_runs_in_mixed_precision(older, pixels):
    folder, _, _ = older()
    spec = TeacherSpec("radio", str(folder), trust_remote_code=True)
    short = load_teacher(
        TeacherSpec("radio", str(folder), trust_remote_code=True, dtype="bfloat16")
    )
    assert {p.dtype for p in short.parameters()} == {torch.float32}
    features = short(pixels(32))
    assert features.summary.dtype == features.dense.dtype == torch.bfloat16
    assert_close(features.dense.float(), load_teacher(spec)(pixels(32)).dense, atol=0.6, rtol=0)


def test_code_is_not_run_unless_the_teacher_says_so(older):
    folder, _, witness = older()
    for use in (describe_teacher, load_teacher):
        with pytest.raises(UserError, match=r"auto_map.*set trust_remote_code: true") as error:
            use(TeacherSpec("radio", str(folder)))
        assert "\n" not in str(error.value)
    assert not witness.exists()


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "siglip", "siglip2", "clip", "sam"])
def test_other_families_run_no_code(family, older):
    folder, _, witness = older()
    for trust in (False, True):
        with pytest.raises(UserError, match=rf"'{family}' runs none.*trust_remote_code.*radio"):
            load_teacher(TeacherSpec(family, str(folder), trust_remote_code=trust))
    assert not witness.exists()


def test_the_librarys_class_goes_before_a_checkpoints_code(copy, pixels):
    whole = load_teacher(TeacherSpec("radio", str(copy)))(pixels(32)).dense
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "no.Config", "AutoModel": "no.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    for trust in (False, True):
        spec = TeacherSpec("radio", str(copy), trust_remote_code=trust)
        assert torch.equal(load_teacher(spec)(pixels(32)).dense, whole)


def test_weights_of_own_code_are_all_accounted_for(older):
    folder, weights, _ = older()
    spec = TeacherSpec("radio", str(folder), trust_remote_code=True)
    del weights["heads.bias"]
    save_file(
        weights | {"more": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match=r"1 missing: heads.bias; 1 unexpected: more$"):
        load_teacher(spec)
    weights["heads.bias"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of another shape: heads.bias \(is \[3\], not \[12\]\)"):
        load_teacher(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"broken": True}, r"the code that it brings fails \(KeyError: 'broken'\)"),
        ({"preferred_resolution": None}, "nor preferred_resolution"),
        (
            {"auto_map": {"AutoConfig": "no.C", "AutoModel": "no.M"}},
            "the code that it brings fails",
        ),
    ],
)
def test_code_that_fails(change, message, older):
    folder, _, _ = older(**change)
    with pytest.raises(UserError, match=message) as error:
        describe_teacher(TeacherSpec("radio", str(folder), trust_remote_code=True))
    assert "\n" not in str(error.value)


def test_own_code_of_a_hub_id_that_is_not_all_here_is_not_run(older):
    folder, _, witness = older()
    spec = TeacherSpec("radio", "org/name", trust_remote_code=True)
    info = RadioTeacher.describe(spec, Checkpoint("org/name", folder, fetched=False))
    assert (info.fetched, info.size) == (False, None)
    assert not witness.exists()
