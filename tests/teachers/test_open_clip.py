import json
import shutil

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 4, "layers": 3, "width": 24, "head_width": 8}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "star", "ring"]
POOL = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5}


def timm_tower(name, pool, projection, size=160):
    fields = {"timm_model_name": name, "timm_pool": pool, "timm_proj": projection}
    return fields | {"image_size": size}


CONFIGS = {
    "clip": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "clipa": {
        "vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT,
    },
    "coca": {
        "vision_cfg": VIT | POOL | {"output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
        "custom_text": True,
    },
    "resnet": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 8},
        "text_cfg": TEXT,
    },
    "siglip": {
        "vision_cfg": timm_tower("test_vit3", "map", "none"),
        "text_cfg": TEXT
        | {"vocab_size": 8, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        | {"hf_tokenizer_name": "org/tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"}},
        "custom_text": True,
        "init_logit_bias": -10,
        "embed_dim": 96,
    },
    "timm": {"vision_cfg": timm_tower("test_vit", "token", "linear"), "text_cfg": TEXT},
    "resized": {"vision_cfg": timm_tower("test_vit", "", "linear", size=64), "text_cfg": TEXT},
    "convnext": {"vision_cfg": timm_tower("test_convnext", "", "mlp"), "text_cfg": TEXT},
}
CONFIGS = {name: {"embed_dim": 20} | config for name, config in CONFIGS.items()}
VITS = ("clip", "clipa", "coca")
# What is pooled, its width, and whether its projection is taken off.
SUMMARIES = {"clip": 24, "clipa": 24, "coca": 20, "resnet": 20, "siglip": 96, "timm": 20}
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def randomise(model):
    """Fresh values for all that is saved: an initial value of 0 or 1 would hide a step left out."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        if any(part in name for part in ("ln_", "norm", "bn", "running_var")):
            tensor.abs_().add_(0.5)
    return model.eval()


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    """The configurations above in open_clip's registry, as tiny-NAME."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"tiny-{name}.json").write_text(json.dumps(config))
    patch = pytest.MonkeyPatch()
    patch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    patch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    open_clip.add_model_config(folder)
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def models(configs, tmp_path_factory):
    """models(name) -> (folder, open_clip's model that was saved in it), made once."""
    made = {}

    def make(name: str):
        if name not in made:
            size = 64 if name == "resized" else None
            model = randomise(open_clip.create_model(f"tiny-{name}", force_image_size=size))
            folder = tmp_path_factory.mktemp(name)
            open_clip.set_model_preprocess_cfg(model, STATISTICS)
            model.visual.image_mean, model.visual.image_std = STATISTICS.values()
            save_config_for_hf(model, folder / "open_clip_config.json", CONFIGS[name])
            save_file(model.state_dict(), folder / "open_clip_model.safetensors")
            if name == "siglip":
                write_tokenizer(folder)
            made[name] = folder, model
        return made[name]

    return make


@pytest.fixture
def copy(models, tmp_path):
    """copy(name) -> a spec for a folder of its own that a test may damage, and the folder."""

    def make(name: str):
        folder = tmp_path / f"{name}-copy"
        shutil.copytree(models(name)[0], folder)
        return TeacherSpec("open_clip", str(folder)), folder

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


def teacher_of(folder, **fields):
    return load_teacher(TeacherSpec("open_clip", str(folder), **fields))


def library_features(model, pixels, **options):
    """What open_clip gives of normalised pixels: the image embedding and the patch tokens."""
    options = {"normalize_intermediates": True, "image_output_fmt": "NLC"} | options
    with torch.no_grad():
        embedding = model.encode_image(pixels, normalize=False)
        out = model.forward_intermediates(image=pixels, image_indices=[-1], **options)
    return embedding, out["image_intermediates"][0]


# ---- features


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (34, 46)])
def test_a_vit_equals_open_clip(name, size, models, pixels, normalise):
    folder, model = models(name)
    if size != (32, 32):
        model = open_clip.create_model(f"local-dir:{folder}", force_image_size=size).eval()
    # CoCa's ln_post is as wide as its embedding and no norm of its tokens.
    normed = {"normalize_intermediates": name != "coca"}
    embedding, tokens = library_features(model, normalise(pixels(*size)), **normed)
    teacher = teacher_of(folder)
    features = teacher(pixels(*size), size)
    patches = tokens.unflatten(1, (size[0] // 4, size[1] // 4))
    assert_close(features.dense, patches, atol=1e-5, rtol=0)
    projected = teacher.text_tower.project(features.summary)
    assert_close(projected, embedding, atol=1e-5, rtol=0)
    assert features.summary.shape == (3, SUMMARIES[name])


def test_summary_of_a_clip_is_the_normed_class_token(models, pixels, normalise):
    folder, model = models("clip")
    with torch.no_grad():
        out = model.forward_intermediates(
            image=normalise(pixels(32)),
            image_indices=[-1],
            image_output_extra_tokens=True,
            image_output_fmt="NLC",
        )
        expected = model.visual.ln_post(out["image_intermediates_prefix"][0][:, 0])
    features = teacher_of(folder)(pixels(32))
    assert_close(features.summary, expected, atol=1e-5, rtol=0)
    raw = out["image_intermediates"][0].unflatten(1, (8, 8))
    assert (features.dense - raw).abs().max() > 0.1


@pytest.mark.parametrize("name", ["siglip", "timm"])
@pytest.mark.parametrize("size", [(160, 160), (192, 192), (128, 176)])
def test_a_timm_vit_equals_open_clip(name, size, models, pixels, normalise):
    folder, model = models(name)
    if size != (160, 160):
        model = open_clip.create_model(f"local-dir:{folder}", force_image_size=size).eval()
    embedding, tokens = library_features(model, normalise(pixels(*size)))
    teacher = teacher_of(folder)
    features = teacher(pixels(*size), size)
    patches = tokens.unflatten(1, (size[0] // 16, size[1] // 16))
    assert_close(features.dense, patches, atol=1e-5, rtol=0)
    assert_close(features.summary, embedding, atol=1e-5, rtol=0)
    assert teacher.text_tower.project(features.summary) is features.summary


def test_a_timm_tower_that_was_saved_at_another_size(models, pixels, normalise):
    folder, model = models("resized")
    embedding, tokens = library_features(model, normalise(pixels(64)))
    teacher = teacher_of(folder)
    assert teacher.size == 64
    features = teacher(pixels(64))
    assert_close(features.dense, tokens.unflatten(1, (4, 4)), atol=1e-5, rtol=0)
    assert_close(features.summary, embedding, atol=1e-5, rtol=0)


def test_a_timm_tower_at_the_size_that_its_configuration_states(copy, models, pixels, normalise):
    spec, folder = copy("timm")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 96
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=96).eval()
    embedding, _ = library_features(model, normalise(pixels(96)))
    teacher = load_teacher(spec)
    assert teacher.size == 96
    assert_close(teacher(pixels(96)).summary, embedding, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "size"), [("resnet", (64, 64)), ("convnext", (96, 160))])
def test_a_convolutional_tower_equals_open_clip(name, size, models, pixels, normalise):
    folder, model = models(name)
    embedding, maps = library_features(model, normalise(pixels(*size)), image_output_fmt="NCHW")
    dense = maps.permute(0, 2, 3, 1)
    if name == "convnext":
        norm = model.visual.trunk.head.norm
        dense = F.layer_norm(dense, (64,), norm.weight, norm.bias, norm.eps).detach()
    features = teacher_of(folder)(pixels(*size), size)
    assert_close(features.dense, dense, atol=1e-5, rtol=0)
    assert_close(features.summary, embedding, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clip", "coca", "siglip"])
def test_layers(name, models, pixels, normalise):
    folder, model = models(name)
    size = model.visual.image_size[0]
    whole = teacher_of(folder)(pixels(size))
    depth = teacher_of(folder).info.layers
    assert depth == (9 if name == "siglip" else 3)
    for layer in (1, depth):
        with torch.no_grad():
            out = model.forward_intermediates(
                image=normalise(pixels(size)),
                image_indices=[layer - 1],
                normalize_intermediates=name != "coca",
                image_output_fmt="NLC",
            )
        features = teacher_of(folder, layer=layer)(pixels(size))
        tokens = out["image_intermediates"][0]
        assert_close(features.dense.flatten(1, 2), tokens, atol=1e-5, rtol=0)
        assert torch.equal(features.summary, whole.summary)
    assert torch.equal(features.dense, whole.dense)


def test_only_what_is_asked_for_is_computed(models, pixels):
    folder, _ = models("coca")
    teacher = teacher_of(folder, tokens=("dense",), layer=1)
    used = []
    for module in (teacher.model.attn_pool, teacher.model.transformer.resblocks[2]):
        module.register_forward_hook(lambda module, *_: used.append(module))
    features = teacher(pixels(32))
    assert features.summary is None
    assert torch.equal(features.dense, teacher_of(folder, layer=1)(pixels(32)).dense)
    assert not used


def test_a_size_seen_twice_is_resized_once(models, pixels):
    teacher = teacher_of(models("clip")[0])
    first = teacher(pixels(48), 48)
    before = sum(p.numel() for p in teacher.parameters())
    assert torch.equal(teacher(pixels(48), 48).dense, first.dense)
    assert teacher._tower(48, 48, torch.device("cpu")) is teacher._tower(
        48, 48, torch.device("cpu")
    )
    assert sum(p.numel() for p in teacher.parameters()) == before == teacher.info.parameters
    assert_close(teacher(pixels(32)).dense, teacher_of(models("clip")[0])(pixels(32)).dense)


# ---- texts

# CLIP's own vocabulary: <start> 49406, "a" 320, "photo" 1125, "of" 539, "cat" 2368, <end> 49407.
PHOTO = [49406, 320, 1125, 539, 320, 2368, 49407, 0]
LONG = [49406, 2368, 2368, 2368, 2368, 2368, 2368, 49407]


@pytest.mark.parametrize("name", ["clip", "clipa", "coca", "timm"])
def test_text_tower_equals_open_clip(name, models):
    folder, model = models(name)
    tower = teacher_of(folder).text_tower
    texts = ["A photo  of a cat", "cat cat cat cat cat cat cat cat"]
    with torch.no_grad():
        expected = model.encode_text(torch.tensor([PHOTO, LONG]), normalize=True)
    assert_close(tower(texts), expected, atol=1e-5, rtol=0)
    assert_close(tower(texts).norm(dim=1), torch.ones(2))


def test_text_tower_with_the_tokeniser_of_its_folder(models):
    folder, model = models("siglip")
    ids = [[3, 4, 6, 1, 0, 0, 0, 0], [3, 2, 1, 0, 0, 0, 0, 0]]
    with torch.no_grad():
        expected = model.encode_text(torch.tensor(ids), normalize=True)
    # As the configuration has it: lower-case, without punctuation.
    assert_close(
        teacher_of(folder).text_tower(["A red, STAR!", "a zebra"]), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["clip", "coca", "siglip"])
def test_score_is_open_clips(name, models, pixels, normalise):
    folder, model = models(name)
    teacher = teacher_of(folder)
    size = teacher.size
    text = "a photo of a cat" if name != "siglip" else "a red star"
    ids = PHOTO if name != "siglip" else [3, 4, 6, 1, 0, 0, 0, 0]
    with torch.no_grad():
        images = model.encode_image(normalise(pixels(size)), normalize=True)
        expected = images @ model.encode_text(torch.tensor([ids]), normalize=True).T
    summary = teacher.text_tower.project(teacher(pixels(size)).summary)
    ours = F.normalize(summary, dim=1) @ teacher.text_tower([text]).T
    assert_close(ours, expected, atol=1e-5, rtol=0)


def test_text_tower_is_loaded_late_and_frozen(models):
    teacher = teacher_of(models("clip")[0])
    before = sum(p.numel() for p in teacher.parameters())
    assert before == teacher.info.parameters
    tower = teacher.text_tower
    assert teacher.text_tower is tower
    assert sum(p.numel() for p in teacher.parameters()) > before
    assert not any(p.requires_grad for p in teacher.parameters())
    tower.train()
    assert not any(module.training for module in tower.modules())


def test_short_floats(models, pixels):
    exact, short = (teacher_of(models("clip")[0], dtype=d) for d in ("float32", "bfloat16"))
    for size in (32, 48):
        ours, theirs = (t(pixels(size), size) for t in (short, exact))
        assert ours.dense.dtype == ours.summary.dtype == torch.bfloat16
        assert F.cosine_similarity(ours.dense.float(), theirs.dense, dim=-1).min() > 0.98
    assert short.text_tower.project(ours.summary).dtype == torch.bfloat16
    assert short.text_tower(["a cat"]).dtype == torch.bfloat16


def test_without_a_tokeniser(copy):
    spec, folder = copy("siglip")
    for path in folder.glob("*token*"):
        path.unlink()
    teacher = load_teacher(spec)
    with pytest.raises(UserError, match="no tokeniser"):
        _ = teacher.text_tower


# ---- sizes, known without weights


def test_sizes(models):
    clip = describe_teacher(TeacherSpec("open_clip", str(models("clip")[0])))
    assert size_error(clip, 33) is None
    assert size_error(clip, (48, 32)) is None
    assert "smaller than its patch" in size_error(clip, (32, 3))
    # open_clip tells grids apart by their number of patches.
    assert "as many patches as its own grid (8, 8)" in size_error(clip, (16, 64))
    resnet = describe_teacher(TeacherSpec("open_clip", str(models("resnet")[0])))
    assert size_error(resnet, 64) is None
    assert "does not take size 96" in size_error(resnet, 96)
    timm = describe_teacher(TeacherSpec("open_clip", str(models("timm")[0])))
    assert size_error(timm, 320) is None
    assert "divisible by patch size" in size_error(timm, 168)


# ---- descriptions


@pytest.mark.parametrize("name", CONFIGS)
def test_description(name, models):
    folder, model = models(name)
    info = describe_teacher(TeacherSpec("open_clip", str(folder)))
    size, stride, dense = {
        "resnet": (64, 32, 512),
        "siglip": (160, 16, 96),
        "timm": (160, 16, 64),
        "resized": (64, 16, 64),
        "convnext": (160, 32, 64),
    }.get(name, (32, 4, 24))
    assert info == teacher_of(folder).info
    assert info.fetched
    assert info.source == str(folder)
    assert (info.size, info.stride, info.dense_dim) == (size, stride, dense)
    assert info.summary_dim == SUMMARIES.get(name, 20)
    assert info.parameters == sum(p.numel() for p in model.visual.parameters())
    assert (info.mean, info.std) == tuple(tuple(values) for values in STATISTICS.values())
    assert info.statistics_from == "open_clip_config.json"
    assert info.licence is None


def test_licence_is_the_model_cards(copy):
    spec, folder = copy("clip")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert describe_teacher(spec).licence == "mit"


def test_loading_leaves_random_numbers_alone_and_says_nothing(models, capfd):
    folder, _ = models("siglip")
    before = torch.get_rng_state()
    capfd.readouterr()
    _ = teacher_of(folder).text_tower
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(capfd.readouterr())


# ---- every weight is accounted for

A_WEIGHT = {
    "clip": "visual.ln_post.bias",
    "siglip": "visual.trunk.attn_pool.latent",
    "resnet": "visual.attnpool.positional_embedding",
}


def change_weights(folder, change):
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize("name", A_WEIGHT)
def test_missing_weight(name, copy):
    spec, folder = copy(name)
    change_weights(folder, lambda w: w.pop(A_WEIGHT[name]))
    with pytest.raises(UserError, match=rf"1 missing: {A_WEIGHT[name]}$"):
        load_teacher(spec)


@pytest.mark.parametrize("name", A_WEIGHT)
def test_unexpected_weights(name, copy):
    spec, folder = copy(name)
    extra = {"visual.extra": torch.zeros(2), "stranger": torch.zeros(2)}
    change_weights(folder, lambda w: w.update(extra))
    with pytest.raises(UserError, match=r"2 unexpected: stranger, visual.extra$"):
        load_teacher(spec)


@pytest.mark.parametrize("name", A_WEIGHT)
def test_weight_of_another_shape(name, copy):
    spec, folder = copy(name)
    change_weights(folder, lambda w: w.update({A_WEIGHT[name]: torch.zeros(1, 5)}))
    with pytest.raises(
        UserError, match=rf"1 of another shape: {A_WEIGHT[name]} \(is \[1, 5\], not"
    ):
        load_teacher(spec)


@pytest.mark.parametrize(
    ("name", "weight"),
    [("clip", "text_projection"), ("coca", "text.cls_emb"), ("siglip", "text.ln_final.bias")],
)
def test_missing_text_weight_is_found_with_the_text_tower(name, weight, copy):
    spec, folder = copy(name)
    change_weights(folder, lambda w: w.pop(weight))
    teacher = load_teacher(spec)
    with pytest.raises(UserError, match=rf"1 missing: {weight}$"):
        _ = teacher.text_tower


def test_pickles_only_on_request(copy, models, pixels):
    spec, folder = copy("clip")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(models("clip")[1].state_dict(), folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights.*allow_pickle: true"):
        describe_teacher(spec)
    allowed = teacher_of(folder, allow_pickle=True)
    assert torch.equal(allowed(pixels(32)).dense, teacher_of(models("clip")[0])(pixels(32)).dense)
    assert allowed.text_tower(["a cat"]).shape == (1, 20)


# ---- what is not an open_clip checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_cfg": None}, "has no model_cfg of vision_cfg and text_cfg"),
        ({"model_cfg": {"embed_dim": 3}}, "has no model_cfg of vision_cfg and text_cfg"),
        ({"preprocess_cfg": {}}, "open_clip_config.json says mean None"),
        ({"preprocess_cfg": {"mean": [0.5], "std": [1, 1, 1]}}, r"says mean \[0.5\]"),
        (
            {"model_cfg": CONFIGS["clip"] | {"vision_cfg": {"widht": 3}}},
            "open_clip cannot build it: .*widht",
        ),
    ],
)
def test_bad_config(change, message, copy):
    spec, folder = copy("clip")
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        describe_teacher(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("ViT-B-16", "name the tag too: ViT-B-16:openai"),
        ("ViT-B-61:openai", r"no weights of 'ViT-B-61'.*did you mean 'ViT-B-16'"),
        ("ViT-B-16:laion2b_s34b_b8k", r"no such tag.*did you mean 'laion2b_s34b_b88k'"),
        ("./no/such/folder", "no such folder"),
    ],
)
def test_names_that_cannot_be_used(weights, message, hub):
    with pytest.raises(UserError, match=message):
        describe_teacher(TeacherSpec("open_clip", weights))


def test_folder_without_configuration(copy):
    spec, folder = copy("clip")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"has no open_clip_config\.json"):
        describe_teacher(spec)


# ---- open_clip's table, and hub ids


@pytest.mark.parametrize(
    ("weights", "hub_id", "size", "widths", "mean"),
    [
        (
            "ViT-B-16:laion2b_s34b_b88k",
            "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
            224,
            (768, 768),
            open_clip.OPENAI_DATASET_MEAN,
        ),
        ("ViT-B-16-SigLIP2:webli", "timm/ViT-B-16-SigLIP2", 224, (768, 768), (0.5, 0.5, 0.5)),
        ("PE-Core-B-16:meta", "timm/PE-Core-B-16", 224, (1024, 768), (0.5, 0.5, 0.5)),
    ],
)
def test_a_published_model_is_described_by_the_table(weights, hub_id, size, widths, mean, hub):
    info = describe_teacher(TeacherSpec("open_clip", weights))
    assert (info.fetched, info.source) == (False, hub_id)
    assert (info.size, info.stride, info.layers) == (size, 16, 12)
    assert (info.summary_dim, info.dense_dim) == widths
    assert (info.mean, info.statistics_from) == (tuple(mean), "open_clip's pretrained table")
    assert not hub.exists()
    with pytest.raises(UserError, match=rf"hf download {hub_id}"):
        load_teacher(TeacherSpec("open_clip", weights))


def in_table(monkeypatch, **fields):
    cfg = STATISTICS | {"url": "", "hf_hub": "org/name/"} | fields
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clipa", {"mine": cfg})
    return TeacherSpec("open_clip", "tiny-clipa:mine")


def test_a_tag_whose_weights_alone_are_in_the_cache(hub, models, monkeypatch, pixels, normalise):
    """open_clip, asked for a tag, puts nothing but the weights there."""
    folder, model = models("clipa")
    spec = in_table(monkeypatch)
    assert not describe_teacher(spec).fetched
    into_cache(hub, "org/name", folder / "open_clip_model.safetensors")
    teacher = load_teacher(spec)
    assert teacher.info.fetched
    embedding, _ = library_features(model, normalise(pixels(32)))
    tower = teacher.text_tower
    assert_close(tower.project(teacher(pixels(32)).summary), embedding, atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = model.encode_text(torch.tensor([PHOTO]), normalize=True)
    assert_close(tower(["a photo of a cat"]), expected, atol=1e-5, rtol=0)


def test_a_tag_gets_the_activation_that_its_weights_were_trained_with(
    hub, models, monkeypatch, pixels, normalise
):
    folder, model = models("clipa")
    file = folder / "open_clip_model.safetensors"
    into_cache(hub, "org/name", file)
    options = {"pretrained": str(file), "force_quick_gelu": True}
    quick = open_clip.create_model("tiny-clipa", **options).eval()
    _, tokens = library_features(quick, normalise(pixels(32)))
    teacher = load_teacher(in_table(monkeypatch, quick_gelu=True))
    features = teacher(pixels(32))
    assert_close(features.dense.flatten(1, 2), tokens, atol=1e-5, rtol=0)
    assert (
        features.dense.flatten(1, 2) - library_features(model, normalise(pixels(32)))[1]
    ).abs().max() > 0.01


def test_a_tag_that_is_not_on_the_hub(hub, configs, monkeypatch):
    spec = in_table(monkeypatch, hf_hub="", url="https://example.org/x.pt")
    with pytest.raises(UserError, match=r"has them at https://example.org/x.pt and not on the hub"):
        describe_teacher(spec)


def test_a_tag_of_a_pickle(hub, configs, monkeypatch, models, tmp_path, pixels):
    spec = in_table(monkeypatch, hf_hub="org/name/pytorch_model.bin")
    torch.save(models("clipa")[1].state_dict(), tmp_path / "pytorch_model.bin")
    into_cache(hub, "org/name", tmp_path / "pytorch_model.bin")
    assert not describe_teacher(spec).fetched
    with pytest.raises(UserError, match="safetensors"):
        load_teacher(spec)
    allowed = load_teacher(TeacherSpec("open_clip", spec.weights, allow_pickle=True))
    local = teacher_of(models("clipa")[0])
    assert torch.equal(allowed(pixels(32)).dense, local(pixels(32)).dense)


def test_hub_id_in_the_cache(hub, models, pixels):
    folder, _ = models("clip")
    spec = TeacherSpec("open_clip", "hf-hub:org/name")
    info = describe_teacher(spec)
    assert (info.fetched, info.source, info.size) == (False, "org/name", None)
    assert size_error(info, 7) is None
    into_cache(hub, "org/name", folder / "open_clip_config.json")
    info = describe_teacher(spec)
    assert (info.fetched, info.size, info.summary_dim) == (False, 32, 24)
    shutil.copy(folder / "open_clip_model.safetensors", hub / "models--org--name/snapshots/abc")
    assert torch.equal(load_teacher(spec)(pixels(32)).dense, teacher_of(folder)(pixels(32)).dense)
