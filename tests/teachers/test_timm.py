import json
import shutil

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg, save_for_hf
from torch.nn import functional as F
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}
ROPE = VIT | {"embed_dim": 48}  # RoPE wants heads of a multiple of 4
EVA = ROPE | {"ref_feat_shape": (8, 8)}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 12, "num_heads": (1, 1, 2, 2)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}

# Architecture, arguments, prefix tokens and what the summary is, from each model's own definition.
VITS = {
    "dinov3": ("vit_small_patch16_dinov3_qkvb", ROPE, 5, "token"),
    "dinov2": ("vit_small_patch14_reg4_dinov2", VIT, 5, "token"),
    "eva02": ("eva02_tiny_patch14_224", EVA, 1, "token"),
    "eva02_clip": ("eva02_base_patch16_clip_224", EVA, 1, "token"),
    "pe_core": ("vit_pe_core_tiny_patch16_384", EVA | {"attn_pool_num_heads": 3}, 1, "attention"),
    "pe_spatial": ("vit_pe_spatial_tiny_patch16_512", EVA, 1, "token"),
    "pe_lang": ("vit_pe_lang_large_patch14_448", EVA, 1, "token"),
    "clip": ("vit_base_patch16_clip_224", VIT, 1, "token"),
    "radio": ("vit_base_patch16_radio_v3", VIT, 8, "token"),
    "aimv2": ("aimv2_large_patch14_224", VIT, 0, "average"),
    "siglip": ("vit_base_patch16_siglip_224", VIT, 0, "attention"),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", ROPE, 1, "token"),
}
FIXED = {"beit": ("beit_base_patch16_224", VIT)}
MAPS = {
    "convnext": ("convnext_atto", CONVNEXT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN | {"depths": (1, 1, 1, 1)}),
    "resnet": ("test_resnet", {}),
    "mambaout": ("test_mambaout", {}),
}
MODELS = {name: entry[:2] for name, entry in (VITS | FIXED | MAPS).items()}
STATISTICS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


def randomise(model):
    """Fresh values for all that is saved: an initial value of 0 or 1 would hide a step left out."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        if "norm" in name or "bn" in name or name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return model.eval()


@pytest.fixture(scope="session")
def timms(tmp_path_factory):
    """timms(name) -> (folder, timm's model that was saved in it), made once."""
    made = {}

    def make(name: str):
        if name not in made:
            arch, arguments = MODELS[name]
            model = timm.create_model(
                arch, num_classes=5, pretrained_cfg_overlay=STATISTICS, **arguments
            )
            folder = tmp_path_factory.mktemp(name)
            save_for_hf(
                randomise(model), str(folder), safe_serialization=True, model_args=arguments
            )
            made[name] = folder, model
        return made[name]

    return make


@pytest.fixture
def copy(timms, tmp_path):
    """copy(name) -> a spec for a folder of its own that a test may damage, and the folder."""

    def make(name: str):
        folder = tmp_path / f"{name}-copy"
        shutil.copytree(timms(name)[0], folder)
        return TeacherSpec("timm", str(folder)), folder

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def into_cache(hub, hub_id, *files):
    """The hub's own layout of its cache."""
    repo = hub / f"models--{hub_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    for file in files:
        shutil.copy(file, snapshot)


def at_size(folder, model, size):
    """timm's model for images of this size, made by timm from the folder."""
    if size == (32, 32):
        return model
    # When timm builds RADIO at another size it resizes the table otherwise than when it runs at it.
    radio = "radio" in model.pretrained_cfg["architecture"]
    other = {"dynamic_img_size": True} if radio else {"img_size": size}
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **other).eval()


def summary_of(kind, model, tokens):
    if kind == "token":
        return tokens[:, 0]
    if kind == "average":
        return tokens.mean(1)
    return model.attn_pool(tokens)


# ---- features


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40)])
def test_a_vit_equals_timm(name, size, timms, pixels, normalise):
    _, _, prefix, kind = VITS[name]
    folder, model = timms(name)
    teacher = load_teacher(TeacherSpec("timm", str(folder)))
    images = pixels(*size)
    with torch.no_grad():
        library = at_size(folder, model, size)
        tokens = library.forward_features(normalise(images))
        summary = summary_of(kind, library, tokens)
    features = teacher(images, size)
    patches = tokens[:, prefix:].unflatten(1, (size[0] // 4, size[1] // 4))
    assert_close(features.dense, patches, atol=1e-5, rtol=0)
    assert_close(features.summary, summary, atol=1e-5, rtol=0)


def test_the_class_token_is_taken_where_timm_pools_the_average(timms, pixels):
    folder, model = timms("dinov3")
    assert model.global_pool == "avg"
    features = load_teacher(TeacherSpec("timm", str(folder)))(pixels(32), 32)
    assert (features.summary - features.dense.mean((1, 2))).abs().max() > 0.1


@pytest.mark.parametrize("name", ["pe_core", "siglip"])
def test_summary_is_the_attention_pool_before_the_projection(name, timms, pixels, normalise):
    folder, model = timms(name)
    features = load_teacher(TeacherSpec("timm", str(folder)))(pixels(32))
    with torch.no_grad():
        logits = model(normalise(pixels(32)))
    assert_close(model.head(features.summary).detach(), logits, atol=1e-4, rtol=0)
    assert (features.summary - features.dense.mean((1, 2))).abs().max() > 0.1


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (80, 112)])
def test_convnext_is_after_the_norm_of_its_head(size, timms, pixels, normalise):
    folder, model = timms("convnext")
    images = pixels(*size)
    with torch.no_grad():
        raw = model.forward_features(normalise(images))
        norm = model.head.norm
        scale = (24,), norm.weight, norm.bias, norm.eps
        dense = F.layer_norm(raw.permute(0, 2, 3, 1), *scale)
        summary = F.layer_norm(raw.mean((2, 3)), *scale)
    features = load_teacher(TeacherSpec("timm", str(folder)))(images, size)
    assert_close(features.dense, dense, atol=1e-5, rtol=0)
    assert_close(features.summary, summary, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "size"), [("swin", (64, 64)), ("resnet", (64, 96))])
def test_a_net_with_its_norm_before_the_head_equals_timm(name, size, timms, pixels, normalise):
    folder, model = timms(name)
    images = pixels(*size)
    with torch.no_grad():
        out = model.forward_features(normalise(images))
    dense = out if name == "swin" else out.permute(0, 2, 3, 1)
    features = load_teacher(TeacherSpec("timm", str(folder)))(images, size)
    assert_close(features.dense, dense, atol=1e-5, rtol=0)
    assert_close(features.summary, dense.mean((1, 2)), atol=1e-5, rtol=0)


def test_a_map_that_is_channels_last_is_normed_by_its_head(timms, pixels, normalise):
    folder, model = timms("mambaout")
    with torch.no_grad():
        out = model.forward_features(normalise(pixels(64)))
        norm = model.head.norm
        dense = F.layer_norm(out, (64,), norm.weight, norm.bias, norm.eps)
    features = load_teacher(TeacherSpec("timm", str(folder)))(pixels(64), 64)
    assert_close(features.dense, dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dinov3", "pe_core", "siglip", "beit"])
def test_layers(name, timms, pixels, normalise):
    folder, model = timms(name)
    seen = []
    handles = [
        block.register_forward_hook(lambda *call: seen.append(call[2])) for block in model.blocks
    ]
    with torch.no_grad():
        model.forward_features(normalise(pixels(32)))
    for handle in handles:
        handle.remove()
    prefix = seen[0].shape[1] - 64
    last = load_teacher(TeacherSpec("timm", str(folder)))
    assert last.info.layers == 3
    whole = last(pixels(32), 32)
    for layer in (1, 2, 3):
        features = load_teacher(TeacherSpec("timm", str(folder), layer=layer))(pixels(32), 32)
        with torch.no_grad():
            expected = model.norm(seen[layer - 1])[:, prefix:].unflatten(1, (8, 8))
        assert_close(features.dense, expected, atol=1e-5, rtol=0)
        assert torch.equal(features.summary, whole.summary)
    assert torch.equal(features.dense, whole.dense)


def test_only_what_is_asked_for_is_computed(timms, pixels):
    folder, _ = timms("pe_core")
    spec = TeacherSpec("timm", str(folder), tokens=("dense",), layer=1)
    teacher = load_teacher(spec)
    whole = load_teacher(TeacherSpec("timm", str(folder), layer=1))
    used = []
    for module in (teacher.model.attn_pool, teacher.model.blocks[2]):
        module.register_forward_hook(lambda module, *_: used.append(module))
    features = teacher(pixels(32))
    assert features.summary is None
    assert torch.equal(features.dense, whole(pixels(32)).dense)
    assert not used


def test_dense_is_a_view(timms, pixels):
    teacher = load_teacher(TeacherSpec("timm", str(timms("dinov2")[0])))
    assert teacher(pixels(32)).dense._base is not None


# ---- sizes, known without weights


def test_a_vit_takes_whole_patches(timms):
    info = describe_teacher(TeacherSpec("timm", str(timms("clip")[0])))
    assert size_error(info, 64) is None
    assert size_error(info, (24, 40)) is None
    assert "does not take size 34" in size_error(info, 34)
    assert "divisible by patch size (4)" in size_error(info, 34)
    assert "smaller than its patch" in size_error(info, 3)


def test_a_model_that_takes_its_own_size_alone_says_so(timms, pixels):
    folder, _ = timms("beit")
    teacher = load_teacher(TeacherSpec("timm", str(folder)))
    assert size_error(teacher.info, 32) is None
    problem = size_error(teacher.info, (32, 48))
    assert "doesn't match model (32)" in problem
    assert problem.endswith("its own is 32")
    with pytest.raises(UserError, match="does not take size 48"):
        teacher(pixels(48), 48)
    with pytest.raises(UserError, match="does not take size 48"):
        load_teacher(TeacherSpec("timm", str(folder), sizes=(48,)))


def test_a_convolutional_net_takes_any_size(timms, pixels):
    teacher = load_teacher(TeacherSpec("timm", str(timms("resnet")[0])))
    assert size_error(teacher.info, (70, 90)) is None
    assert teacher(pixels(70, 90), (70, 90)).dense.shape[1:3] == (3, 3)


# ---- descriptions


@pytest.mark.parametrize("name", MODELS)
def test_description(name, timms):
    folder, model = timms(name)
    info = describe_teacher(TeacherSpec("timm", str(folder)))
    teacher = load_teacher(TeacherSpec("timm", str(folder)))
    head = sum(p.numel() for p in model.get_classifier().parameters())
    assert info == teacher.info
    assert info.fetched
    assert info.source == str(folder)
    assert info.parameters == sum(p.numel() for p in model.parameters()) - head
    assert info.parameters == sum(p.numel() for p in teacher.parameters())
    assert (info.mean, info.std) == (STATISTICS["mean"], STATISTICS["std"])
    assert info.statistics_from == "config.json"
    assert info.licence == model.pretrained_cfg.get("license")
    stated = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert stated["input_size"] == [3, info.size, info.size]
    assert info.size == {"dinov3": 256, "convnext": 224, "swin": 64}.get(
        name, 160 if "test" in MODELS[name][0] else 32
    )
    assert info.layers == (3 if name in VITS | FIXED else None)
    if info.stride == 4:
        assert (info.dense_dim, info.summary_dim) == (model.embed_dim, model.embed_dim)


def test_licence_of_the_model_card_where_timm_states_none(copy):
    spec, folder = copy("clip")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "fair-noncommercial-research-license"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert describe_teacher(spec).licence == "fair-noncommercial-research-license"
    del config["pretrained_cfg"]["license"]
    (folder / "config.json").write_text(json.dumps(config))
    assert describe_teacher(spec).licence == "mit"


def test_loading_leaves_random_numbers_alone_and_says_nothing(timms, capfd):
    folder, _ = timms("eva02")
    before = torch.get_rng_state()
    capfd.readouterr()
    teacher = load_teacher(TeacherSpec("timm", str(folder)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(capfd.readouterr())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.train().modules())


def test_bfloat16(timms, pixels):
    folder, _ = timms("dinov3")
    exact = load_teacher(TeacherSpec("timm", str(folder)))(pixels(32), 32)
    short = load_teacher(TeacherSpec("timm", str(folder), dtype="bfloat16"))(pixels(32), 32)
    assert short.dense.dtype == short.summary.dtype == torch.bfloat16
    cosine = F.cosine_similarity(short.dense.float(), exact.dense, dim=-1)
    assert cosine.min() > 0.99


# ---- every weight is accounted for

A_WEIGHT = {
    "dinov3": "blocks.1.norm2.bias",
    "siglip": "attn_pool.latent",
    "convnext": "head.norm.bias",
    "resnet": "layer1.0.bn1.running_var",
}


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", A_WEIGHT)
def test_missing_weight(name, copy):
    spec, folder = copy(name)
    change_weights(folder, lambda w: w.pop(A_WEIGHT[name]))
    with pytest.raises(UserError, match=rf"1 missing: {A_WEIGHT[name]}$"):
        load_teacher(spec)


@pytest.mark.parametrize("name", A_WEIGHT)
def test_unexpected_weights(name, copy):
    spec, folder = copy(name)
    change_weights(folder, lambda w: w.update({"extra.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"1 unexpected: extra.weight$"):
        load_teacher(spec)


def test_weights_of_another_shape_and_missing_ones(copy):
    spec, folder = copy("dinov3")
    change_weights(folder, lambda w: w.update({"norm.bias": torch.zeros(5)}))
    change_weights(folder, lambda w: w.pop("cls_token"))
    with pytest.raises(
        UserError, match=r"missing: cls_token; 1 of.*: norm.bias \(is \[5\], not \[48\]"
    ):
        load_teacher(spec)


def test_what_timm_itself_loads_leniently_is_complete(tmp_path):
    model = timm.create_model("dla46_c", num_classes=0)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    change_weights(tmp_path, lambda w: w.pop("level2.tree1.conv1.weight"))
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True) is not None
    with pytest.raises(UserError, match=r"1 missing: level2.tree1.conv1.weight$"):
        load_teacher(TeacherSpec("timm", str(tmp_path)))


def test_a_position_table_of_another_grid_is_resized_as_timm_does(copy, timms, pixels, normalise):
    spec, folder = copy("siglip")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["img_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    library = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert library.pos_embed.shape[1] == 144
    with torch.no_grad():
        tokens = library.forward_features(normalise(pixels(48)))
    teacher = load_teacher(spec)
    assert teacher.size == 48
    assert_close(teacher(pixels(48)).dense.flatten(1, 2), tokens, atol=1e-5, rtol=0)


def test_timms_conversion_of_foreign_weights_is_applied(copy, timms, pixels):
    """EVA's masked-image models call the norm behind the pool `norm` and bring a mask token."""
    spec, folder = copy("eva02")

    def foreign(weights):
        for part in ("weight", "bias"):
            weights[f"norm.{part}"] = weights.pop(f"fc_norm.{part}")
        weights["mask_token"] = torch.zeros(1, 1, 48)

    change_weights(folder, foreign)
    ours = load_teacher(spec)(pixels(32))
    assert torch.equal(
        ours.dense, load_teacher(TeacherSpec("timm", str(timms("eva02")[0])))(pixels(32)).dense
    )


def test_damaged_files(copy):
    spec, folder = copy("clip")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        describe_teacher(spec)


def test_pickles_only_on_request(copy, timms, pixels):
    spec, folder = copy("clip")
    (folder / "model.safetensors").unlink()
    torch.save(timms("clip")[1].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights.*allow_pickle: true"):
        describe_teacher(spec)
    allowed = load_teacher(TeacherSpec("timm", spec.weights, allow_pickle=True))
    safe = load_teacher(TeacherSpec("timm", str(timms("clip")[0])))
    assert torch.equal(allowed(pixels(32)).dense, safe(pixels(32)).dense)


# ---- what is not a timm checkpoint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (None, "has no config.json"),
        (
            {"model_type": "dinov2"},
            r"names no architecture; it says model_type 'dinov2': use family 'dinov2'",
        ),
        ({}, r"names no architecture; timm.models.save_for_hf"),
        (
            {"architecture": "vit_bas_patch16_224"},
            r"timm has no architecture.*did you mean 'vit_base",
        ),
        ({"architecture": "resnet10t", "pretrained_cfg": 3}, "says pretrained_cfg 3"),
        ({"architecture": "resnet10t", "pretrained_cfg": {}}, r"config.json says mean None"),
        (
            {
                "architecture": "vit_tiny_patch16_224",
                "model_args": {"widht": 3},
                "pretrained_cfg": STATISTICS,
            },
            "timm cannot build it: .*widht",
        ),
    ],
)
def test_bad_config(fields, message, copy):
    spec, folder = copy("resnet")
    (folder / "config.json").unlink()
    if fields is not None:
        (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message) as error:
        describe_teacher(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            "vit_base_patch16_dinov",
            "no such folder, and no model of timm's.*did you mean 'vit_base_patch16_dinov3'",
        ),
        ("vit_base_patch16_dinov3.lvd1689", "has no such tag.*did you mean 'lvd1689m'"),
        ("vit_small_patch16_36x1_224", "timm has no weights for it"),
        ("gcvit_tiny.in1k", r"timm has them at https://.* and not on the hub.*save_for_hf"),
        ("./no/such/folder", "no such folder"),
    ],
)
def test_names_that_cannot_be_used(weights, message, hub):
    with pytest.raises(UserError, match=message):
        describe_teacher(TeacherSpec("timm", weights))


def test_a_model_without_a_map_gives_summaries_alone(hub):
    spec = TeacherSpec("timm", "crossvit_9_240.in1k")
    with pytest.raises(UserError, match=r"gives no map of the image; set tokens to \[summary\]"):
        describe_teacher(spec)
    info = describe_teacher(TeacherSpec("timm", spec.weights, tokens=("summary",)))
    assert (info.summary_dim, info.dense_dim) == (384, None)


# ---- names and hub ids

PUBLISHED = "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize(
    "weights",
    [PUBLISHED, "vit_small_patch16_dinov3", f"timm/{PUBLISHED}", f"hf-hub:timm/{PUBLISHED}"],
)
def test_a_published_model_is_described_by_timms_table(weights, hub):
    info = describe_teacher(TeacherSpec("timm", weights))
    cfg = get_pretrained_cfg(PUBLISHED)
    assert (info.fetched, info.source) == (False, f"timm/{PUBLISHED}")
    assert (info.size, info.stride, info.layers) == (256, 16, 12)
    assert (info.summary_dim, info.dense_dim) == (384, 384)
    assert (info.mean, info.std, info.statistics_from) == (
        cfg.mean,
        cfg.std,
        "timm's pretrained_cfg",
    )
    assert info.licence == cfg.license == "dinov3-license"
    assert size_error(info, 512) is None
    assert "divisible" in size_error(info, 260)
    assert not hub.exists()
    with pytest.raises(UserError, match=rf"hf download timm/{PUBLISHED}"):
        load_teacher(TeacherSpec("timm", weights))


def test_a_hub_id_that_timm_does_not_know(hub):
    info = describe_teacher(TeacherSpec("timm", "org/name"))
    assert (info.fetched, info.source, info.size) == (False, "org/name", None)
    assert size_error(info, 7) is None


def test_a_name_whose_weights_alone_are_in_the_cache(hub, tmp_path, pixels):
    """timm, asked for a name, puts nothing but the weights there."""
    name = "test_vit.r160_in1k"
    model = randomise(timm.create_model(name))
    save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    assert not describe_teacher(TeacherSpec("timm", name)).fetched
    into_cache(hub, f"timm/{name}", tmp_path / "saved" / "model.safetensors")
    info = describe_teacher(TeacherSpec("timm", name))
    assert info.fetched
    assert not describe_teacher(TeacherSpec("timm", f"timm/{name}")).fetched
    images = pixels(160)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (info.mean, info.std))
    with torch.no_grad():
        tokens = model.forward_features((images - mean) / std)
    features = load_teacher(TeacherSpec("timm", name))(images)
    assert_close(features.dense.flatten(1, 2), tokens[:, 1:], atol=1e-5, rtol=0)


def test_hub_id_in_the_cache(hub, timms, pixels):
    folder, _ = timms("dinov2")
    into_cache(hub, "org/name", folder / "config.json")
    spec = TeacherSpec("timm", "hf-hub:org/name")
    info = describe_teacher(spec)
    assert (info.fetched, info.size, info.mean) == (False, 32, STATISTICS["mean"])
    shutil.copy(folder / "model.safetensors", hub / "models--org--name/snapshots/abc")
    assert describe_teacher(spec).fetched
    local = load_teacher(TeacherSpec("timm", str(folder)))
    assert torch.equal(load_teacher(spec)(pixels(32)).dense, local(pixels(32)).dense)
