"""A learner's adapters of every kind: what it hands them, keeps, and gives outside."""

import pytest
import torch

from distill.engine.learner import build_learner
from distill.engine.rows import Rows
from distill.recipe.learning import AdapterConfig
from students import Space, Spaces, UserError, build_student

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8}
TEACHERS = {"dino": {"summary": 5, "dense": 7}, "sam": {"summary": None, "dense": 4}}
NORMALISERS = {"dino": "standardise", "sam": "none"}
KINDS = ("linear", "mlp", "ladder", "attention", "conv")


def vit(overrides=VIT):
    return build_student("vit_small_patch16_dinov3_qkvb", size=32, overrides=overrides).eval()


def learner_of(kind, start=None, hidden=12, depth=2, student=None):
    config = AdapterConfig(kind=kind, hidden=hidden, depth=depth)
    return build_learner(
        student or vit(), TEACHERS, NORMALISERS, config, seed=0, name="vit", start=start
    )


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_rows_are_rows_of_predictions(kind):
    learner = learner_of(kind).eval()
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([3, 0])
    with torch.no_grad():
        whole = learner(pixels, 32)
        some = learner(pixels, 32, {"dino": Rows(index), "sam": Rows(torch.tensor([]).long())})
    torch.testing.assert_close(some["dino"].summary, whole["dino"].summary[index])
    torch.testing.assert_close(some["dino"].dense, whole["dino"].dense[index])
    assert whole["sam"].summary is None
    assert some["sam"].dense.shape == (0, 4, 4, 4)
    for found in (*whole.values(), *some.values(), learner.encode(pixels)):
        assert found.levels == ()
    assert learner.student.with_levels == (kind == "ladder")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_an_equal_config_are_kept(kind, tmp_path):
    before = learner_of(kind, student=vit())
    with torch.no_grad():
        for parameter in before.spaces.parameters():
            parameter.add_(1)
    before.own_spaces().save(tmp_path, {})
    start = Spaces.load(tmp_path)
    own, same = before.space("dino").adapters, learner_of(kind, start).space("dino").adapters
    assert len(own.state_dict()) == len(same.state_dict())
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    others = [learner_of(kind, start, hidden=13)]
    if kind == "attention":
        others.append(learner_of(kind, start, depth=1))
    for other in others:
        for name, tensor in other.space("dino").adapters.state_dict().items():
            assert not torch.equal(tensor, own.state_dict()[name]), name


def test_a_published_space_has_its_normaliser_inside_and_is_not_gone_on_from():
    before = learner_of("mlp")
    folded = before.own_spaces().folded()
    assert isinstance(folded.steps["student", "dino"], Space)
    again, fresh = (learner_of("mlp", start).space("dino") for start in (folded, None))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_weights_of_mlps_are_drawn_as_they_always_were():
    """Runs of before are repeated bit for bit."""
    from students.keys import key

    learner = learner_of("mlp")
    torch.manual_seed(key("adapter", 0, "vit", "dino"))
    for width in (5, 7):
        drawn = torch.nn.Linear(32, 12, bias=False), torch.nn.Linear(12, width, bias=False)
        head = learner.space("dino").adapters["summary" if width == 5 else "dense"]
        assert torch.equal(head[0].weight, drawn[0].weight)
        assert torch.equal(head[3].weight, drawn[1].weight)


def test_an_encoder_that_does_not_fit_is_said_in_one_line():
    small = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "output_stride": 8}
    convnext = build_student("convnext_tiny", size=32, overrides=small)
    with pytest.raises(UserError, match="adapter ladder: convnext_tiny gives no class token"):
        learner_of("ladder", student=convnext)
    uneven = build_student("mobilenetv4_conv_small", size=32)
    with pytest.raises(UserError, match="adapter attention") as caught:
        learner_of("attention", student=uneven)
    assert "\n" not in str(caught.value)
