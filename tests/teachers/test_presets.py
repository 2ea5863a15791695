"""Every preset against what the libraries themselves say of the checkpoint it names."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import constants

from students.errors import UserError
from teachers import TeacherSpec, all_presets, describe_teacher, families, preset, size_error

PRESETS = all_presets()


# ---- configurations as published: the library's classes, built from them, are the truth


def vit(width, blocks, heads, mlp=None, **more):
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    return sizes | ({"intermediate_size": mlp} if mlp else {}) | more


SMALL, BASE, LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
BASE_MLP, LARGE_MLP = (*BASE, 3072), (*LARGE, 4096)
SO400M, GIANT_OPT = (1152, 27, 16, 4304), (1536, 40, 16, 6144)
HUGE, BIG_G = (1280, 32, 16, 5120), (1664, 48, 16, 8192)
DINOV2_SIZES = {"s": SMALL, "b": BASE, "l": LARGE, "g": (1536, 40, 24)}


def dinov2(size, **more):
    fields = vit(*DINOV2_SIZES[size], image_size=518, patch_size=14, model_type="dinov2")
    return fields | {"use_swiglu_ffn": size == "g"} | more


def dinov3(*sizes, **more):
    return vit(*sizes, model_type="dinov3_vit", num_register_tokens=4, **more)


def convnext(depths, width):
    widths = [width, 2 * width, 4 * width, 8 * width]
    return {"model_type": "dinov3_convnext", "depths": depths, "hidden_sizes": widths}


def siglip(sizes, patch, side):
    image = {"patch_size": patch, "image_size": side}
    return {"model_type": "siglip", "vision_config": vit(*sizes) | image}


def clip(sizes, patch, side, model_type="clip"):
    image = {"patch_size": patch, "image_size": side}
    return {"model_type": model_type, "vision_config": vit(*sizes) | image}


def naflex(sizes):
    return {"model_type": "siglip2", "vision_config": vit(*sizes, patch_size=16, num_patches=256)}


def sam(*sizes, layers):
    vision = vit(*sizes, global_attn_indexes=list(layers), mlp_dim=4 * sizes[0])
    return {"model_type": "sam", "vision_config": vision}


def sam2(width, heads, blocks, windows, global_blocks, background=7):
    widths = [width * 2**stage for stage in range(4)]
    trunk = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "num_attention_heads": heads,
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "window_size_per_stage": windows,
        "global_attention_blocks": global_blocks,
        "window_positional_embedding_background_size": [background, background],
    }
    vision = {"backbone_config": trunk, "backbone_channel_list": widths[::-1]}
    return {"model_type": "sam2_video", "vision_config": vision}


REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 1000,
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}


def depth_anything(size):
    return {"model_type": "depth_anything", "backbone_config": dinov2(size)}


STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CROP_224 = {"crop_size": {"height": 224, "width": 224}}
CONFIGS = {
    **{f"dinov2-{size}": dinov2(size) for size in DINOV2_SIZES},
    **{
        f"dinov2-{size}-reg": dinov2(
            size, model_type="dinov2_with_registers", num_register_tokens=4
        )
        for size in DINOV2_SIZES
    },
    "dinov3-s": dinov3(*SMALL, 1536),
    "dinov3-s-plus": dinov3(*SMALL, 1536, use_gated_mlp=True),
    "dinov3-b": dinov3(*BASE_MLP),
    "dinov3-l": dinov3(*LARGE_MLP),
    "dinov3-l-sat": dinov3(*LARGE_MLP),
    "dinov3-h-plus": dinov3(1280, 32, 20, 5120, use_gated_mlp=True),
    "dinov3-7b": dinov3(4096, 40, 32, 8192, use_gated_mlp=True, query_bias=False, value_bias=False),
    "dinov3-7b-sat": dinov3(
        4096, 40, 32, 8192, use_gated_mlp=True, query_bias=False, value_bias=False
    ),
    "dinov3-convnext-t": convnext([3, 3, 9, 3], 96),
    "dinov3-convnext-s": convnext([3, 3, 27, 3], 96),
    "dinov3-convnext-b": convnext([3, 3, 27, 3], 128),
    "dinov3-convnext-l": convnext([3, 3, 27, 3], 192),
    **{f"siglip-b16-{side}": siglip(BASE_MLP, 16, side) for side in (224, 256, 384, 512)},
    "siglip-b16-256-i18n": siglip(BASE_MLP, 16, 256),
    **{f"siglip-l16-{side}": siglip(LARGE_MLP, 16, side) for side in (256, 384)},
    **{f"siglip-so400m14-{side}": siglip(SO400M, 14, side) for side in (224, 384)},
    "siglip-so400m16-256-i18n": siglip(SO400M, 16, 256),
    "siglip2-b32-256": siglip(BASE_MLP, 32, 256),
    **{f"siglip2-b16-{side}": siglip(BASE_MLP, 16, side) for side in (224, 256, 384, 512)},
    **{f"siglip2-l16-{side}": siglip(LARGE_MLP, 16, side) for side in (256, 384, 512)},
    **{f"siglip2-so400m14-{side}": siglip(SO400M, 14, side) for side in (224, 384)},
    **{f"siglip2-so400m16-{side}": siglip(SO400M, 16, side) for side in (256, 384, 512)},
    **{f"siglip2-g16-{side}": siglip(GIANT_OPT, 16, side) for side in (256, 384)},
    "siglip2-b16-naflex": naflex(BASE_MLP),
    "siglip2-so400m16-naflex": naflex(SO400M),
    "clip-b32": clip(BASE_MLP, 32, 224),
    "clip-b16": clip(BASE_MLP, 16, 224),
    "clip-l14": clip(LARGE_MLP, 14, 224),
    "clip-l14-336": clip(LARGE_MLP, 14, 336),
    **{f"metaclip-b32{data}": clip(BASE_MLP, 32, 224) for data in ("", "-400m")},
    **{f"metaclip-b16{data}": clip(BASE_MLP, 16, 224) for data in ("", "-400m")},
    **{f"metaclip-l14{data}": clip(LARGE_MLP, 14, 224) for data in ("", "-400m")},
    "metaclip-h14": clip(HUGE, 14, 224),
    "metaclip2-h14": clip(HUGE, 14, 224, "metaclip_2"),
    "metaclip2-h14-378": clip(HUGE, 14, 378, "metaclip_2"),
    "metaclip2-g14": clip(BIG_G, 14, 224, "metaclip_2"),
    "metaclip2-g14-378": clip(BIG_G, 14, 378, "metaclip_2"),
    "sam-b": sam(*BASE, layers=(2, 5, 8, 11)),
    "sam-l": sam(*LARGE, layers=(5, 11, 17, 23)),
    "sam-h": sam(1280, 32, 16, layers=(7, 15, 23, 31)),
    "sam2-t": sam2(96, 1, [1, 2, 7, 2], [8, 4, 14, 7], [5, 7, 9]),
    "sam2-s": sam2(96, 1, [1, 2, 11, 2], [8, 4, 14, 7], [7, 10, 13]),
    "sam2-b-plus": sam2(112, 2, [2, 3, 16, 3], [8, 4, 14, 7], [12, 16, 20], background=14),
    "sam2-l": sam2(144, 2, [2, 6, 36, 4], [8, 4, 16, 8], [23, 33, 43]),
    "sam3": {"model_type": "sam3_video"},
    "edgetam": {"model_type": "edgetam", "vision_config": {"backbone_config": REPVIT}},
    "radio-v4-h": {"model_type": "radio"},
    **{f"depth-anything-{size}": depth_anything(size) for size in "sbl"},
    **{f"depth-anything-v2-{size}": depth_anything(size) for size in "sbl"},
}
PREPROCESSORS = {name: CROP_224 for name in PRESETS if name.startswith("dinov2-")}
FACTS = ("size", "stride", "summary_dim", "dense_dim", "parameters", "layers")


def facts(thing):
    return {key: getattr(thing, key) for key in FACTS}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def into_cache(hub, weights, files):
    """Configuration files of a hub id as the hub's own cache has them; returns their folder."""
    repo = hub / f"models--{weights.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    folder = repo / "snapshots" / "abc"
    folder.mkdir(parents=True)
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields))
    return folder


# ---- the table


def test_every_entry_is_whole():
    assert len(PRESETS) > 90
    known = families()
    for name, entry in PRESETS.items():
        assert entry.name == name
        assert entry.family in known, name
        assert entry.read.strip(), name
        assert entry.size % entry.stride == 0 or entry.stride == 14, name
        assert entry.dense_dim or entry.summary_dim, name
        assert entry.parameters is None or entry.parameters > 1e6, name


def test_no_checkpoint_has_two_names():
    weights = [entry.weights for entry in PRESETS.values()]
    assert len(set(weights)) == len(weights)


# timm and open_clip take seconds to build a model, even without memory for its weights.
QUICK = ("pe-core-b", "eupe-s", "dfn-b16")


def is_slow(entry):
    return entry.family in ("timm", "open_clip") and entry.name not in QUICK


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if is_slow(entry) else ())
        for name, entry in PRESETS.items()
    ],
)
def test_facts_are_those_of_the_librarys_class(name, hub):
    entry = PRESETS[name]
    if entry.family not in ("timm", "open_clip"):
        files = {"config.json": CONFIGS[name]}
        if name in PREPROCESSORS:
            files["preprocessor_config.json"] = STATISTICS | PREPROCESSORS[name]
        into_cache(hub, entry.weights, files)
    info = describe_teacher(preset(name))
    assert facts(info) == facts(entry)


@pytest.mark.parametrize("name", [n for n, entry in PRESETS.items() if entry.family == "timm"])
def test_names_and_licences_are_timms(name):
    import timm

    entry = PRESETS[name]
    assert entry.weights in timm.list_pretrained()
    cfg = timm.models.get_pretrained_cfg(entry.weights)
    assert entry.licence == cfg.license
    assert (3, entry.size, entry.size) == cfg.input_size


@pytest.mark.parametrize("name", [n for n, e in PRESETS.items() if e.family == "open_clip"])
def test_names_are_open_clips(name):
    import open_clip

    assert tuple(PRESETS[name].weights.split(":")) in open_clip.list_pretrained()


# Hub ids whose weights timm has too: its table names the licence under which it has them.
SAME_WEIGHTS = {
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-g-reg": "vit_giant_patch14_reg4_dinov2.lvd142m",
    "dinov3-7b": "vit_7b_patch16_dinov3.lvd1689m",
    "dinov3-l-sat": "vit_large_patch16_dinov3.sat493m",
    "dinov3-convnext-t": "convnext_tiny.dinov3_lvd1689m",
    "siglip-so400m14-384": "vit_so400m_patch14_siglip_384.webli",
    "siglip2-g16-384": "vit_giantopt_patch16_siglip_384.v2_webli",
    "siglip2-b16-naflex": "naflexvit_base_patch16_siglip.v2_webli",
    "metaclip-h14": "vit_huge_patch14_clip_224.metaclip_2pt5b",
    "metaclip2-g14-378": "vit_gigantic_patch14_clip_378.metaclip2_worldwide",
    "sam-h": "samvit_huge_patch16.sa1b",
    "sam2-t": "sam2_hiera_tiny.fb_r896_2pt1",
}


@pytest.mark.parametrize("name", SAME_WEIGHTS)
def test_licences_are_those_timm_states_of_the_same_weights(name):
    import timm

    assert PRESETS[name].licence == timm.models.get_pretrained_cfg(SAME_WEIGHTS[name]).license


# ---- using one


def test_a_preset_is_a_spec():
    spec = preset("dinov2-b", sizes=(224, 448), tokens=("dense",))
    assert spec == TeacherSpec(
        "dinov2", "facebook/dinov2-base", sizes=(224, 448), tokens=("dense",)
    )


def test_a_name_that_is_none_has_the_nearest():
    with pytest.raises(UserError, match=r"'dinov2b' is no preset \(did you mean 'dinov2-b'\?\)"):
        preset("dinov2b")


def test_what_is_not_fetched_is_known_from_the_preset(hub):
    info = describe_teacher(preset("sam-b", tokens=("dense",)))
    assert not info.fetched
    assert facts(info) == facts(PRESETS["sam-b"])
    assert (info.licence, info.mean) == ("apache-2.0", None)
    assert "the nearest is 1024" in size_error(info, 1020)
    assert not hub.exists()


def test_a_layer_is_checked_against_the_preset(hub):
    assert describe_teacher(preset("dinov2-b", layer=12)).layers == 12
    with pytest.raises(UserError, match="layer 13 is not one of 1 to 12"):
        describe_teacher(preset("dinov2-b", layer=13))
    with pytest.raises(UserError, match="offers no earlier layer"):
        describe_teacher(preset("sam-b", layer=1, tokens=("dense",)))


def test_the_checkpoints_own_files_go_first(hub):
    entry = PRESETS["dinov2-s"]
    folder = into_cache(hub, entry.weights, {"config.json": dinov2("b")})
    info = describe_teacher(preset("dinov2-s"))
    assert (info.dense_dim, info.size) == (768, 518)
    assert info.licence == entry.licence
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert describe_teacher(preset("dinov2-s")).licence == "mit"


def test_a_licence_without_a_word_of_the_hubs_has_the_cards(hub):
    folder = into_cache(hub, "facebook/dinov3-vits16-pretrain-lvd1689m", {})
    (folder / "config.json").write_text(json.dumps(CONFIGS["dinov3-s"]))
    card = "---\ntags: [x]\nlicense: {}\nlicense_name: {}\n---\nlicense: mit\n"
    (folder / "README.md").write_text(card.format("other", "a-new-one"))
    assert describe_teacher(preset("dinov3-s")).licence == "a-new-one"
    (folder / "README.md").write_text(card.format("apple-amlr", "an-old-one"))
    assert describe_teacher(preset("dinov3-s")).licence == "apple-amlr"


def test_the_same_weights_in_another_family_are_not_the_presets(hub):
    spec = replace(preset("siglip2-b16-256"), family="siglip")
    assert describe_teacher(spec).size is None
