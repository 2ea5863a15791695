import json
import shutil

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher

SIZES = [(32, 32), (48, 48), (24, 40), (34, 46)]


def run(vision, images, padding=0, **more):
    """The library's NaFlex tower on images (B, 3, H, W), cut by the library's own preprocessing
    and padded by it with `padding` masked patches."""
    from transformers.models.siglip2.image_processing_siglip2 import (
        convert_image_to_patches,
        pad_along_first_dim,
    )

    h, w = images.shape[2] // 4, images.shape[3] // 4
    cut = images[:, :, : h * 4, : w * 4]
    patches, masks = zip(
        *(pad_along_first_dim(convert_image_to_patches(i, 4), h * w + padding) for i in cut),
        strict=True,
    )
    shapes = torch.tensor([[h, w]] * len(images))
    with torch.no_grad():
        return vision(torch.stack(patches), torch.stack(masks), shapes, **more), (h, w)


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_vision_model"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padding", [0, 5])
def test_naflex_equals_the_library(kind, size, padding, checkpoint, pixels, normalise):
    folder, model = checkpoint(kind)
    vision = model.vision_model if kind == "siglip2" else model
    images = pixels(*size)
    out, (h, w) = run(vision, normalise(images), padding)
    features = load_teacher(TeacherSpec("siglip2", str(folder)))(images, size)
    patches = out.last_hidden_state[:, : h * w].reshape(3, h, w, 24)
    assert_close(features.summary, out.pooler_output, atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


def test_images_of_a_batch_stay_apart(checkpoint, pixels):
    teacher = load_teacher(TeacherSpec("siglip2", str(checkpoint("siglip2")[0])))
    images = pixels(24, 40)
    together = teacher(images, (24, 40)).dense
    for i in range(3):
        assert_close(teacher(images[i : i + 1], (24, 40)).dense[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["siglip", "siglip_vision_model"])
def test_fixed_size_is_the_same_in_both_families(kind, checkpoint, pixels):
    folder = str(checkpoint(kind)[0])
    one, two = (load_teacher(TeacherSpec(name, folder)) for name in ("siglip", "siglip2"))
    assert one.info.parameters == two.info.parameters
    for size in SIZES:
        assert torch.equal(one(pixels(32), size).summary, two(pixels(32), size).summary)
        assert torch.equal(one(pixels(32), size).dense, two(pixels(32), size).dense)
    assert (one.text_tower is None) == (kind == "siglip_vision_model") == (two.text_tower is None)


def test_naflex_is_of_siglip2_only(checkpoint):
    with pytest.raises(UserError, match=r"'siglip2', which is not of .*'siglip'; use .*'siglip2'"):
        describe_teacher(TeacherSpec("siglip", str(checkpoint("siglip2")[0])))


def test_native_size_is_the_number_of_patches(checkpoint, tmp_path):
    folder, _ = checkpoint("siglip2")
    info = describe_teacher(TeacherSpec("siglip2", str(folder)))
    assert (info.size, info.stride, info.layers) == (32, 4, 3)  # 64 patches
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "max_num_patches": 37}'
    )
    assert describe_teacher(TeacherSpec("siglip2", str(tmp_path / "copy"))).size == 24


# Pieces: a = 5, a space = 6, red = 11, <eos> = 1, <pad> = 0; always 7 of them.
TEXTS = {
    "A Red!": [5, 6, 11, 1, 0, 0, 0],
    "a": [5, 1, 0, 0, 0, 0, 0],
    "red red red red": [11, 6, 11, 6, 11, 6, 1],
}


def test_naflex_text_tower_equals_the_library(checkpoint):
    folder, model = checkpoint("siglip2")
    tower = load_teacher(TeacherSpec("siglip2", str(folder))).text_tower
    with torch.no_grad():
        library = model.get_text_features(torch.tensor(list(TEXTS.values()))).pooler_output
    assert_close(tower(list(TEXTS)), F.normalize(library, dim=1), atol=1e-5, rtol=0)


def test_naflex_texts_are_padded_at_the_end_whatever_the_class_does(checkpoint, tmp_path):
    folder, _ = checkpoint("siglip2")
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config.pop("padding_side") == "right"
    (tmp_path / "copy" / "tokenizer_config.json").write_text(json.dumps(config))
    said, silent = (
        load_teacher(TeacherSpec("siglip2", str(path))).text_tower
        for path in (folder, tmp_path / "copy")
    )
    assert silent.tokenizer.padding_side == "left"
    assert torch.equal(said(["a red"]), silent(["a red"]))


def test_naflex_score_is_the_cosine_in_the_librarys_logit(checkpoint, pixels, normalise):
    folder, model = checkpoint("siglip2")
    teacher = load_teacher(TeacherSpec("siglip2", str(folder)))
    out, _ = run(model.vision_model, normalise(pixels(32)))
    words = model.get_text_features(torch.tensor([TEXTS["A Red!"]])).pooler_output
    cosine = F.cosine_similarity(out.pooler_output, words)
    tower = teacher.text_tower
    summary = tower.project(teacher(pixels(32)).summary)
    ours = F.normalize(summary, dim=1) @ tower(["a red"]).T
    assert_close(ours[:, 0], cosine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_naflex_layer_is_after_the_final_norm(layer, checkpoint, pixels, normalise):
    folder, model = checkpoint("siglip2")
    out, (h, w) = run(model.vision_model, normalise(pixels(24, 40)), output_hidden_states=True)
    with torch.no_grad():
        dense = model.vision_model.post_layernorm(out.hidden_states[layer])
    teacher = load_teacher(TeacherSpec("siglip2", str(folder), layer=layer))
    features = teacher(pixels(24, 40), (24, 40))
    assert_close(features.dense, dense.reshape(3, h, w, 24), atol=1e-5, rtol=0)
    assert_close(features.summary, out.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [1, 2])
def test_fixed_size_layer_is_after_the_final_norm(layer, checkpoint, pixels, normalise):
    folder, model = checkpoint("siglip")
    with torch.no_grad():
        out = model.vision_model(normalise(pixels(32)), output_hidden_states=True)
        dense = model.vision_model.post_layernorm(out.hidden_states[layer])
    features = load_teacher(TeacherSpec("siglip", str(folder), layer=layer))(pixels(32))
    assert_close(features.dense.flatten(1, 2), dense, atol=1e-5, rtol=0)
    assert_close(features.summary, out.pooler_output, atol=1e-5, rtol=0)
