import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher

FAMILIES = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "clip_with_projection": "clip",
    "metaclip_2": "metaclip",
    "metaclip_2_vision_model": "metaclip",
}
# Texts and their ids: a word at a time, a text of more than 7 tokens, the longest last.
CLIP_TEXTS = {
    "a red": [10, 0, 5, 11],
    "A   RED  b": [10, 0, 5, 6, 11],
    "red red red red red red red": [10, 5, 5, 5, 5, 5, 11],
}
METACLIP_TEXTS = {
    "a star": [0, 4, 7, 2],
    "Red": [0, 11, 2],
    "blue , zebra": [0, 6, 3, 3, 2],
    "a ring and a blue star of a red": [0, 4, 8, 9, 4, 6, 2],
}
TEXTS = {"clip": CLIP_TEXTS, "metaclip_2": METACLIP_TEXTS}


@pytest.fixture
def teacher(checkpoint):
    def load(kind, **more):
        return load_teacher(TeacherSpec(FAMILIES[kind], str(checkpoint(kind)[0]), **more))

    return load


@pytest.fixture
def copy(checkpoint, tmp_path):
    def make(kind):
        shutil.copytree(checkpoint(kind)[0], tmp_path / kind)
        return tmp_path / kind

    return make


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (34, 46)])
def test_equals_the_library(kind, size, checkpoint, teacher, pixels, normalise):
    model = checkpoint(kind)[1]
    vision = getattr(model, "vision_model", model)
    images = pixels(*size)
    with torch.no_grad():
        native = size == (32, 32)
        out = vision(normalise(images), interpolate_pos_encoding=not native)
    features = teacher(kind)(images, size)
    patches = out.last_hidden_state[:, 1:].reshape(3, size[0] // 4, size[1] // 4, 24)
    assert_close(features.summary, out.pooler_output, atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "metaclip_2"])
def test_only_the_summary_is_after_the_post_norm(kind, checkpoint, teacher, pixels, normalise):
    vision = checkpoint(kind)[1].vision_model
    with torch.no_grad():
        tokens = vision(normalise(pixels(32))).last_hidden_state
        after = vision.post_layernorm(tokens)
    features = teacher(kind)(pixels(32))
    assert_close(features.summary, after[:, 0], atol=1e-5, rtol=0)
    assert (features.summary - tokens[:, 0]).abs().max() > 0.1
    assert (features.dense.flatten(1, 2) - after[:, 1:]).abs().max() > 0.1


def test_metaclip_1_is_a_clip(checkpoint, teacher, pixels):
    other = load_teacher(TeacherSpec("metaclip", str(checkpoint("clip")[0])))
    assert torch.equal(other(pixels(32)).dense, teacher("clip")(pixels(32)).dense)
    assert torch.equal(other.text_tower(["a red"]), teacher("clip").text_tower(["a red"]))
    with pytest.raises(UserError, match=r"'metaclip_2', which is not of.*use family 'metaclip'"):
        describe_teacher(TeacherSpec("clip", str(checkpoint("metaclip_2")[0])))


@pytest.mark.parametrize("kind", TEXTS)
def test_text_tower_equals_the_library(kind, checkpoint, teacher):
    model, tower = checkpoint(kind)[1], teacher(kind).text_tower
    with torch.no_grad():
        library = torch.cat(
            [
                model.get_text_features(torch.tensor([ids])).pooler_output
                for ids in TEXTS[kind].values()
            ]
        )
    embeddings = tower(list(TEXTS[kind]))
    assert_close(embeddings, F.normalize(library, dim=1), atol=1e-5, rtol=0)
    assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))


@pytest.mark.parametrize("kind", TEXTS)
def test_score_is_the_cosine_in_the_librarys_logit(kind, checkpoint, teacher, pixels, normalise):
    model, ours = checkpoint(kind)[1], teacher(kind)
    text, ids = next(iter(TEXTS[kind].items()))
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), pixel_values=normalise(pixels(32)))
        cosine = out.logits_per_image / model.logit_scale.exp()
    tower = ours.text_tower
    projected = tower.project(ours(pixels(32)).summary)
    assert projected.shape == (3, 10)
    assert_close(F.normalize(projected, dim=1) @ tower([text]).T, cosine, atol=1e-5, rtol=0)


def test_project_takes_any_leading_shape_and_dtype(checkpoint, teacher):
    weight = checkpoint("clip")[1].visual_projection.weight
    tower = teacher("clip").text_tower
    summary = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(3))
    assert_close(tower.project(summary), summary @ weight.T, atol=1e-5, rtol=0)
    assert tower.project(summary.bfloat16()).dtype == torch.float32
    expected = summary @ weight.T
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(tower.project(summary), expected, atol=1e-5, rtol=0)


def test_text_tower_is_loaded_late_and_has_no_vision_tower(teacher):
    ours = teacher("clip")
    before = sum(p.numel() for p in ours.parameters())
    assert before == ours.info.parameters
    tower = ours.text_tower
    assert ours.text_tower is tower
    assert not any("vision_model" in name for name, _ in tower.named_parameters())
    assert not any(p.requires_grad for p in tower.parameters())
    tower.train()
    assert not any(module.training for module in ours.modules())


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in TEXTS])
def test_vision_only_checkpoint_has_no_text_tower(kind, teacher):
    assert teacher(kind).text_tower is None


@pytest.mark.parametrize("kind", TEXTS)
def test_without_a_tokeniser(kind, copy):
    folder = copy(kind)
    for path in (*folder.glob("tokenizer*"), *folder.glob("special*"), *folder.glob("vocab*")):
        path.unlink()
    ours = load_teacher(TeacherSpec(FAMILIES[kind], str(folder)))
    with pytest.raises(UserError, match="tokeniser"):
        _ = ours.text_tower


@pytest.mark.parametrize(
    "name",
    ["visual_projection.weight", "text_projection.weight", "text_model.final_layer_norm.bias"],
)
def test_missing_text_weight_is_found_with_the_text_tower(name, copy):
    folder = copy("clip")
    change_weights(folder, lambda w: w.pop(name))
    ours = load_teacher(TeacherSpec("clip", str(folder)))
    with pytest.raises(UserError, match=rf"1 missing: {name}$"):
        _ = ours.text_tower


def test_older_files_hold_the_numbers_of_the_positions(copy, teacher, pixels):
    folder = copy("clip")
    numbers = {"vision_model.embeddings.position_ids": torch.arange(65)[None]}
    numbers |= {"text_model.embeddings.position_ids": torch.arange(7)[None]}
    change_weights(folder, lambda w: w.update(numbers))
    ours = load_teacher(TeacherSpec("clip", str(folder)))
    assert ours.info.parameters == teacher("clip").info.parameters
    theirs = teacher("clip")
    for mine, other in ((ours, theirs), (ours.text_tower, theirs.text_tower)):
        held, expected = mine.model.state_dict(), other.model.state_dict()
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[name], expected[name]) for name in held)
    # Two copies of one model may lie differently in memory, which moves the last bits.
    close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-5)
    close(ours(pixels(32)).dense, theirs(pixels(32)).dense)
    close(ours.text_tower(["a red"]), theirs.text_tower(["a red"]))


def test_weight_under_two_names(copy):
    folder = copy("clip")
    name = "post_layernorm.bias"
    change_weights(folder, lambda w: w.update({name: w[f"vision_model.{name}"] + 1}))
    with pytest.raises(UserError, match=f"1 unexpected: {name}$"):
        load_teacher(TeacherSpec("clip", str(folder)))


@pytest.mark.parametrize("kind", ["clip", "metaclip_2_vision_model"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layer_is_before_the_post_norm(kind, layer, checkpoint, teacher, pixels, normalise):
    model = checkpoint(kind)[1]
    vision = getattr(model, "vision_model", model)
    with torch.no_grad():
        out = vision(normalise(pixels(32)), output_hidden_states=True)
    features = teacher(kind, layer=layer)(pixels(32))
    assert_close(features.dense.flatten(1, 2), out.hidden_states[layer][:, 1:], atol=1e-5, rtol=0)
    assert_close(features.summary, out.pooler_output, atol=1e-5, rtol=0)
