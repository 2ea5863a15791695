import shutil

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, load_teacher


@pytest.mark.parametrize("kind", ["siglip", "siglip_vision_model"])
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (34, 46)])
def test_equals_the_library(kind, size, checkpoint, pixels, normalise):
    folder, model = checkpoint(kind)
    teacher = load_teacher(TeacherSpec("siglip", str(folder)))
    vision = model.vision_model if kind == "siglip" else model
    images = pixels(*size)
    with torch.no_grad():
        native = size == (32, 32)
        out = vision(normalise(images), interpolate_pos_encoding=not native)
    features = teacher(images, size)
    patches = out.last_hidden_state.reshape(3, size[0] // 4, size[1] // 4, 24)
    assert_close(features.summary, out.pooler_output, atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


def test_summary_is_the_attention_pool_not_the_average(checkpoint, pixels):
    folder, model = checkpoint("siglip")
    features = load_teacher(TeacherSpec("siglip", str(folder)))(pixels(32))
    tokens = features.dense.flatten(1, 2)
    with torch.no_grad():
        pooled = model.vision_model.head(tokens)
    assert_close(features.summary, pooled, atol=1e-5, rtol=0)
    assert (features.summary - tokens.mean(1)).abs().max() > 0.1


def test_text_tower_equals_the_library(checkpoint):
    folder, model = checkpoint("siglip")
    teacher = load_teacher(TeacherSpec("siglip", str(folder)))
    # Words 3.. in the order of the vocabulary, </s> = 1, <pad> = 0, <unk> = 2, up to 7 tokens.
    texts = ["a red star", "blue", "a ring of star and a red blue", "a zebra"]
    ids = [
        [3, 4, 6, 1, 0, 0, 0],
        [5, 1, 0, 0, 0, 0, 0],
        [3, 7, 9, 6, 8, 3, 1],
        [3, 2, 1, 0, 0, 0, 0],
    ]
    with torch.no_grad():
        library = model.get_text_features(torch.tensor(ids)).pooler_output
    embeddings = teacher.text_tower(texts)
    assert_close(embeddings, F.normalize(library, dim=1), atol=1e-5, rtol=0)
    assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert teacher.text_tower is teacher.text_tower


def test_score_is_the_cosine_in_the_librarys_logit(checkpoint, pixels, normalise):
    folder, model = checkpoint("siglip")
    teacher = load_teacher(TeacherSpec("siglip", str(folder)))
    ids = torch.tensor([[3, 4, 6, 1, 0, 0, 0]])
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=normalise(pixels(32))).logits_per_image
        cosine = (logits - model.logit_bias) / model.logit_scale.exp()
    ours = F.normalize(teacher(pixels(32)).summary, dim=1) @ teacher.text_tower(["a red star"]).T
    assert_close(ours, cosine, atol=1e-5, rtol=0)


def test_texts_are_lower_cased_and_stripped_of_punctuation(checkpoint):
    folder, _ = checkpoint("siglip")
    tower = load_teacher(TeacherSpec("siglip", str(folder))).text_tower
    assert_close(tower(["  A red, STAR!"]), tower(["a red star"]), atol=0, rtol=0)


def test_text_tower_is_loaded_late_and_frozen(checkpoint):
    folder, _ = checkpoint("siglip")
    teacher = load_teacher(TeacherSpec("siglip", str(folder)))
    before = sum(p.numel() for p in teacher.parameters())
    assert before == teacher.info.parameters
    tower = teacher.text_tower
    assert sum(p.numel() for p in teacher.parameters()) > before
    assert not any(p.requires_grad for p in teacher.parameters())
    tower.train()
    assert not any(module.training for module in tower.modules())


def test_vision_only_checkpoint_has_no_text_tower(checkpoint):
    folder, _ = checkpoint("siglip_vision_model")
    assert load_teacher(TeacherSpec("siglip", str(folder))).text_tower is None


def test_without_a_tokeniser(checkpoint, tmp_path):
    source, _ = checkpoint("siglip")
    folder = tmp_path / "copy"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    teacher = load_teacher(TeacherSpec("siglip", str(folder)))
    with pytest.raises(UserError, match="tokeniser"):
        _ = teacher.text_tower
