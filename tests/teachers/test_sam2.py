"""SAM 2, and what EdgeTAM shares with it: the neck's map, sizes, masks, weights of other parts."""

import json
import shutil
from functools import cache

import pytest
import tiny_sam
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error

KINDS = ("sam2", "sam2_video", "edgetam", "edgetam_video")
# A weight of the encoder and one of the decoder.
NECK = "vision_encoder.neck.convs.1.bias"
PROMPT = "prompt_encoder.no_mask_embed.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("sam2")


@pytest.fixture(scope="module")
def loaded(folders):
    """loaded(kind) -> (teacher, the library's model), loaded once."""

    @cache
    def load(kind, **more):
        folder, model = tiny_sam.saved(kind, folders)
        return load_teacher(spec_of(kind, folder, **more)), model

    return load


@pytest.fixture
def copy(folders, tmp_path):
    """copy(kind, change) -> a spec for a folder of its own, whose weights `change` has changed."""

    def make(kind, change):
        folder = tmp_path / kind
        shutil.copytree(tiny_sam.saved(kind, folders)[0], folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return spec_of(kind, folder)

    return make


def spec_of(kind, folder, **more):
    return TeacherSpec(kind.removesuffix("_video"), str(folder), tokens=("dense",), **more)


def points_in(size, images=3, each=4):
    return torch.rand(images, each, 2, generator=torch.Generator().manual_seed(3)) * size


def still(kind, model, size):
    """The library's image model of this size with these weights: its video models see no point of
    a single image. No weight knows the size."""
    other = tiny_sam.build(kind.removesuffix("_video"), size)
    other.load_state_dict(model.state_dict(), strict=not kind.endswith("_video"))
    return other.eval()


# ---- features


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 96), (64, 96), (128, 32)])
def test_dense_is_the_necks_map_of_stride_16(kind, size, loaded, pixels, normalise):
    teacher, model = loaded(kind)
    images = pixels(*size)
    with torch.no_grad():
        pyramid = model.vision_encoder(normalise(images)).fpn_hidden_states
    features = teacher(images, size)
    assert features.summary is None
    assert features.dense.shape == (3, size[0] // 16, size[1] // 16, 16)
    for y in range(size[0] // 16):
        for x in range(size[1] // 16):
            assert_close(features.dense[:, y, x], pyramid[2][:, :, y, x], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sam2", "edgetam"])
def test_dense_is_before_the_decoders_no_memory_embedding(kind, loaded, pixels, normalise):
    teacher, model = loaded(kind)
    with torch.no_grad():
        embedding = model.get_image_embeddings(normalise(pixels(64)))[-1].permute(0, 2, 3, 1)
    dense = teacher(pixels(64)).dense
    added = model.no_memory_embedding.detach().flatten()
    assert_close(dense + added, embedding, atol=1e-5, rtol=0)
    assert (dense - embedding).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_description(kind, folders):
    folder, model = tiny_sam.saved(kind, folders)
    info = describe_teacher(spec_of(kind, folder))
    assert (info.size, info.stride, info.summary_dim, info.dense_dim) == (64, 16, None, 16)
    assert info.parameters == sum(p.numel() for p in model.vision_encoder.parameters())
    teacher = load_teacher(spec_of(kind, folder))
    assert info.parameters == sum(p.numel() for p in teacher.parameters())
    assert (info.mean, info.layers) == ((0.4, 0.5, 0.6), None)
    with pytest.raises(UserError, match=r"gives no summary; set tokens to \[dense\]"):
        describe_teacher(TeacherSpec(kind.removesuffix("_video"), str(folder), tokens=("summary",)))


@pytest.mark.parametrize("kind", ["sam2_video", "edgetam_video"])
def test_a_configuration_alone_describes(kind, folders, tmp_path, monkeypatch):
    import huggingface_hub

    folder, model = tiny_sam.saved(kind, folders)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    shutil.copy(folder / "config.json", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    info = describe_teacher(spec_of(kind, "org/name"))
    assert (info.fetched, info.size, info.stride, info.dense_dim) == (False, 64, 16, 16)
    assert info.parameters == sum(p.numel() for p in model.vision_encoder.parameters())


# ---- sizes


@pytest.mark.parametrize("kind", ["sam2", "edgetam"])
def test_sizes_are_those_of_whole_tokens_in_every_map(kind, loaded, pixels):
    teacher, model = loaded(kind)
    for size in (16, 28, 32, 40, 48, 60, 62, 64, 72, 80, 96, 104, 112, 128):
        try:
            with torch.no_grad():
                pyramid = model.vision_encoder(pixels(size)).fpn_hidden_states
            works = [tuple(level.shape[2:]) for level in pyramid] == [
                (size // stride, size // stride) for stride in (4, 8, 16)
            ]
        except RuntimeError:
            works = False
        assert (size_error(teacher.info, size) is None) == works == (size % 32 == 0)


def test_other_sizes_are_refused_with_the_nearest(loaded, pixels):
    teacher, _ = loaded("sam2")
    assert "size 60 is no multiple of 32 pixels" in size_error(teacher.info, 60)
    assert size_error(teacher.info, 70).endswith("the nearest is 64")
    assert size_error(teacher.info, 7).endswith("the nearest is 32")
    assert size_error(teacher.info, (64, 90)).endswith("the nearest is (64, 96)")
    assert size_error(teacher.info, (64, 96)) is None
    with pytest.raises(UserError, match="nearest is 64"):
        teacher(pixels(64), 56)
    with pytest.raises(UserError, match="nearest is 64"):
        teacher.segment(pixels(64), points_in(56), 56)


def test_windows_that_need_padding(tmp_path, pixels, normalise):
    windows = {"window_size_per_stage": [8, 4, 14, 7]}  # as published
    model = tiny_sam.build("sam2", 96, **windows)
    model.save_pretrained(tmp_path)
    statistics = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    spec = spec_of("sam2", tmp_path, **statistics)
    with torch.no_grad():
        level = model.vision_encoder(normalise(pixels(96))).fpn_hidden_states[2]
    dense = load_teacher(spec)(pixels(96)).dense
    assert_close(dense, level.permute(0, 2, 3, 1), atol=1e-5, rtol=0)


def test_windows_that_no_size_of_ours_fits_are_refused(folders, tmp_path):
    shutil.copytree(tiny_sam.saved("sam2", folders)[0], tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["vision_config"]["backbone_config"]["window_size_per_stage"][0] = 16
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"begins with 16; .* windows that divide 8"):
        describe_teacher(spec_of("sam2", tmp_path / "x"))


# ---- masks


@pytest.mark.parametrize("kind", KINDS)
def test_segment_equals_the_librarys_whole_model(kind, loaded, pixels, normalise):
    teacher, model = loaded(kind)
    assert teacher.mask_decoder is None
    for size in (64, 96, 32, 64):  # back again: nothing of another size is left behind
        points = points_in(size)
        with torch.no_grad():
            out = still(kind, model, size)(
                pixel_values=normalise(pixels(size)),
                input_points=points[:, :, None],
                input_labels=torch.ones(3, 4, 1, dtype=torch.int64),
                multimask_output=True,
            )
        masks, iou = teacher.segment(pixels(size), points, size)
        assert masks.shape == (3, 4, 3, size // 4, size // 4)
        assert_close(masks, out.pred_masks, atol=1e-5, rtol=0)
        assert_close(iou, out.iou_scores, atol=1e-5, rtol=0)
        assert masks.diff(dim=1).abs().amax() > 1e-2  # each point has an answer of its own
    dense = teacher(pixels(64)).dense
    teacher.segment(pixels(32), points_in(32), 32)
    assert_close(teacher(pixels(64)).dense, dense, atol=0, rtol=0)


def test_segment_at_the_native_size_and_in_parts(loaded, pixels):
    whole, parts = loaded("sam2")[0], loaded("sam2", micro_batch=2)[0]
    masks, iou = whole.segment(pixels(80), points_in(64))  # resized to 64
    some, few = parts.segment(pixels(80), points_in(64), 64)
    assert_close(some, masks, atol=1e-5, rtol=0)
    assert_close(few, iou, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sam2", "edgetam"])
def test_decoder_is_loaded_late_frozen_and_in_float32(kind, loaded, pixels):
    teacher, _ = loaded(kind, dtype="bfloat16")
    before = sum(p.numel() for p in teacher.parameters())
    assert before == teacher.info.parameters
    with torch.autocast("cpu", torch.bfloat16):
        masks, iou = teacher.segment(pixels(64), points_in(64))
    exact, close = loaded(kind)[0].segment(pixels(64), points_in(64))
    assert (masks.dtype, iou.dtype) == (torch.float32, torch.float32)
    assert (iou - close).abs().max() < 0.2
    assert torch.corrcoef(torch.stack([masks.flatten(), exact.flatten()]))[0, 1] > 0.9
    assert sum(p.numel() for p in teacher.parameters()) > before
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert {p.dtype for p in teacher.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in teacher._decoder.mask_decoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("points", [torch.zeros(2, 4, 2), torch.zeros(3, 4, 3), torch.zeros(3, 2)])
def test_points_for_each_image(points, loaded, pixels):
    with pytest.raises(ValueError, match="points"):
        loaded("sam2")[0].segment(pixels(64), points)


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_file_with_one_name_for_the_decoders_frequencies(lacking, copy, loaded, pixels):
    names = [
        "prompt_encoder.shared_embedding.positional_embedding",
        "shared_image_embedding.positional_embedding",
    ]
    both = copy("sam2", lambda w: w.update({names[lacking]: w[names[1 - lacking]].clone()}))
    expected = load_teacher(both).segment(pixels(64), points_in(64))
    shutil.rmtree(both.weights)
    found = load_teacher(copy("sam2", lambda w: w.pop(names[lacking]))).segment(
        pixels(64), points_in(64)
    )
    assert_close(found, expected, atol=0, rtol=0)
    two = loaded("sam2")[0].segment(pixels(64), points_in(64))
    assert (found[0] - two[0]).abs().max() > 1e-3


# ---- weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_the_encoder_is_missed(kind, copy):
    name = NECK.removeprefix("vision_encoder.")
    with pytest.raises(UserError, match=rf"1 missing: {name}$"):
        load_teacher(copy(kind, lambda w: w.pop(NECK)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_the_decoder_is_missed_by_it_alone(kind, copy, pixels):
    teacher = load_teacher(copy(kind, lambda w: w.pop(PROMPT)))
    assert teacher(pixels(64)).dense.shape == (3, 4, 4, 16)
    with pytest.raises(UserError, match=rf"1 missing: {PROMPT}$"):
        teacher.segment(pixels(64), points_in(64))


@pytest.mark.parametrize("kind", ["sam2_video", "edgetam_video"])
def test_a_video_models_memory_is_not_missed(kind, copy, loaded, pixels):
    def forget(weights):
        for name in list(weights):
            if not name.startswith(
                ("vision_", "prompt_", "mask_decoder", "shared_", "no_memory_e")
            ):
                weights.pop(name)

    teacher = load_teacher(copy(kind, forget))
    expected = loaded(kind)[0].segment(pixels(64), points_in(64))
    assert_close(teacher.segment(pixels(64), points_in(64)), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["classifier.weight", "vision_encoder.neck.convs.4.bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_unexpected_weights(kind, name, copy):
    with pytest.raises(UserError, match=rf"1 unexpected: {name}$"):
        load_teacher(copy(kind, lambda w: w.update({name: torch.zeros(16)})))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_of_another_shape(kind, copy):
    with pytest.raises(UserError, match=r"1 of another shape: .*convs.1.bias \(is \[5\], not"):
        load_teacher(copy(kind, lambda w: w.update({NECK: torch.zeros(5)})))
