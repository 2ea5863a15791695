"""SAM 3: the ViT's tokens, its only size, the tracker's masks, weights of other parts."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import tiny_sam
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error

# "published": sam3_video with the names of facebook/sam3, which the library reads but does not
# write; it repeats "tracker_model.".
KINDS = ("sam3", "sam3_video", "sam3_tracker", "sam3_tracker_video", "published")
TRACKED = KINDS[1:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(kind) -> (folder, the library's model that was saved in it)."""
    folders = tmp_path_factory.mktemp("sam3")

    @cache
    def save(kind):
        folder, model = tiny_sam.saved("sam3_video" if kind == "published" else kind, folders)
        if kind == "published":
            change(shutil.copytree(folder, folders / kind), published)
            folder = folders / kind
        return folder, model

    return save


@pytest.fixture(scope="module")
def loaded(saved):
    """loaded(kind) -> (teacher, the library's model), loaded once."""

    @cache
    def load(kind, **more):
        folder, model = saved(kind)
        return load_teacher(spec_of(folder, **more)), model

    return load


@pytest.fixture
def copy(saved, tmp_path):
    """copy(kind, edit) -> a spec for a folder of its own, its weights edited."""

    def make(kind, edit):
        folder = shutil.copytree(saved(kind)[0], tmp_path / kind)
        change(folder, edit)
        return spec_of(folder)

    return make


def change(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def published(weights):
    for name in list(weights):
        weights[name.replace("tracker_model.tracker_model.", "tracker_model.")] = weights.pop(name)


def spec_of(folder, **more):
    return TeacherSpec("sam3", str(folder), tokens=("dense",), **more)


def vision(model):
    """The library's vision model, of the detector where there is one."""
    return getattr(model, "detector_model", model).vision_encoder


def tracker(model):
    """The library's Sam3TrackerModel of these weights: the ViT is the detector's."""
    whole = tiny_sam.build("sam3_tracker", 56)
    ours, state = model.state_dict(), {}
    for name in whole.state_dict():
        if not hasattr(model, "detector_model"):
            place = name
        elif name.startswith("vision_encoder.backbone."):
            place = f"detector_model.{name}"
        elif name.startswith("vision_encoder.neck."):
            place = name.replace("vision_encoder.neck.", "tracker_neck.")
        else:
            place = f"tracker_model.{name}"
        state[name] = ours[place]
    whole.load_state_dict(state)
    return whole


POINTS = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(3)) * 56


# ---- features


@pytest.mark.parametrize("kind", KINDS)
def test_dense_is_the_backbones_last_tokens(kind, loaded, pixels, normalise):
    teacher, model = loaded(kind)
    with torch.no_grad():
        out = vision(model)(normalise(pixels(56)))
    features = teacher(pixels(56))
    assert features.summary is None
    assert features.dense.shape == (3, 4, 4, 24)
    for y in range(4):
        for x in range(4):
            token = out.last_hidden_state[:, 4 * y + x]
            assert_close(features.dense[:, y, x], token, atol=1e-5, rtol=0)
    assert_close(teacher(pixels(90)).dense.shape, features.dense.shape)  # resized to 56


@pytest.mark.parametrize("kind", ["sam3", "sam3_video"])
def test_the_librarys_pyramid_is_made_from_it(kind, loaded, pixels, normalise):
    teacher, model = loaded(kind)
    with torch.no_grad():
        pyramid = vision(model)(normalise(pixels(56))).fpn_hidden_states
        ours, _ = vision(model).neck(teacher(pixels(56)).dense.permute(0, 3, 1, 2))
    assert len(ours) == 4
    for level, given in zip(ours, pyramid, strict=True):
        assert_close(level, given, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_description(kind, saved):
    folder, model = saved(kind)
    info = describe_teacher(spec_of(folder))
    assert (info.size, info.stride, info.summary_dim, info.dense_dim) == (56, 14, None, 24)
    assert info.parameters == sum(p.numel() for p in vision(model).backbone.parameters())
    teacher = load_teacher(spec_of(folder))
    assert info.parameters == sum(p.numel() for p in teacher.parameters())
    with pytest.raises(UserError, match=r"gives no summary; set tokens to \[dense\]"):
        describe_teacher(TeacherSpec("sam3", str(folder), tokens=("summary",)))


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_configuration_alone_describes(kind, saved, tmp_path, monkeypatch):
    import huggingface_hub

    folder, model = saved(kind)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    shutil.copy(folder / "config.json", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    info = describe_teacher(spec_of("org/name"))
    assert (info.fetched, info.size, info.stride, info.dense_dim) == (False, 56, 14, 24)
    assert info.parameters == sum(p.numel() for p in vision(model).backbone.parameters())


def test_no_size_but_its_own(loaded, pixels):
    teacher, _ = loaded("sam3")
    assert size_error(teacher.info, 56) is None
    assert size_error(teacher.info, (56, 56)) is None
    for size in (28, 84, (56, 84), 57):
        assert f"size {size} is not SAM 3's 56 pixels" in size_error(teacher.info, size)
        with pytest.raises(UserError, match="its only size"):
            teacher(pixels(56), size)


# ---- masks


@pytest.mark.parametrize("kind", TRACKED)
def test_segment_equals_the_librarys_tracker(kind, loaded, pixels, normalise):
    teacher, model = loaded(kind)
    assert teacher.mask_decoder is None
    with torch.no_grad():
        out = tracker(model)(
            pixel_values=normalise(pixels(56)),
            input_points=POINTS[:, :, None],
            input_labels=torch.ones(3, 4, 1, dtype=torch.int64),
            multimask_output=True,
        )
    for size in (None, 56):
        masks, iou = teacher.segment(pixels(56), POINTS, size)
        assert masks.shape == (3, 4, 3, 16, 16)
        assert_close(masks, out.pred_masks, atol=1e-5, rtol=0)
        assert_close(iou, out.iou_scores, atol=1e-5, rtol=0)
    assert masks.diff(dim=1).abs().amax() > 1e-2  # each point has an answer of its own
    with pytest.raises(UserError, match="its only size"):
        teacher.segment(pixels(56), POINTS, 84)


def test_the_detector_alone_answers_no_points(loaded):
    assert loaded("sam3")[0].segment is None
    assert loaded("sam3")[0].mask_decoder is None


def test_decoder_is_loaded_late_frozen_and_in_float32(loaded, pixels):
    teacher, _ = loaded("sam3_video", dtype="bfloat16")
    before = sum(p.numel() for p in teacher.parameters())
    assert before == teacher.info.parameters
    masks, iou = teacher.segment(pixels(56), POINTS)
    exact, close = loaded("sam3_video")[0].segment(pixels(56), POINTS)
    assert (masks.dtype, iou.dtype) == (torch.float32, torch.float32)
    assert (iou - close).abs().max() < 0.1
    assert torch.corrcoef(torch.stack([masks.flatten(), exact.flatten()]))[0, 1] > 0.9
    assert sum(p.numel() for p in teacher.parameters()) > before
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {p.dtype for p in teacher.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in teacher._decoder.vision_encoder.neck.parameters()} == {torch.float32}


# ---- weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_the_encoder_is_missed(kind, copy):
    name = "layers.2.mlp.fc1.bias"

    def edit(weights):
        weights.pop(next(n for n in weights if n.endswith(f"vision_encoder.backbone.{name}")))

    with pytest.raises(UserError, match=rf"1 missing: {name}$"):
        load_teacher(copy(kind, edit))


@pytest.mark.parametrize("kind", TRACKED)
def test_a_weight_of_the_tracker_is_missed_by_it_alone(kind, copy, pixels):
    name = "prompt_encoder.no_mask_embed.weight"

    def edit(weights):
        weights.pop(next(n for n in weights if n.endswith(name)))

    teacher = load_teacher(copy(kind, edit))
    assert teacher(pixels(56)).dense.shape == (3, 4, 4, 24)
    with pytest.raises(UserError, match=rf"1 missing: {name}$"):
        teacher.segment(pixels(56), POINTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["", "layers.2."])
def test_unexpected_weights(kind, where, copy):
    found = []

    def edit(weights):
        known = "vision_encoder.backbone.layers.2.mlp.fc1.bias"
        above = next(n for n in weights if n.endswith(known)).removesuffix("layers.2.mlp.fc1.bias")
        found.append(f"{above}{where}extra" if where else "classifier.weight")
        weights[found[0]] = torch.zeros(3)

    spec = copy(kind, edit)
    with pytest.raises(UserError, match=rf"1 unexpected: {found[0]}$"):
        load_teacher(spec)


@pytest.mark.parametrize("kind", ["sam3", "published"])
def test_other_parts_are_neither_read_nor_missed(kind, copy, loaded, pixels):
    def edit(weights):
        for name in list(weights):
            if "vision_encoder.backbone." not in name:
                weights.pop(name)

    expected = loaded(kind)[0](pixels(56)).dense
    assert_close(load_teacher(copy(kind, edit))(pixels(56)).dense, expected, atol=0, rtol=0)


def test_a_damaged_configuration(copy):
    spec = copy("sam3_video", lambda weights: None)
    path = Path(spec.weights) / "config.json"
    config = json.loads(path.read_text())
    config["detector_config"]["vision_config"]["backbone_config"]["hidden_size"] = "wide"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json is not valid: .*wide"):
        describe_teacher(spec)
