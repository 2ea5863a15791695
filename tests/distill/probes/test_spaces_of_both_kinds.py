"""Stored features through spaces that read both kinds of token, and spaces that none is read
through: in the probes of a run and in the published protocols."""

from types import SimpleNamespace

import pytest
import torch

from distill.datasets import EvaluationSet
from distill.probes.extract import extract
from distill.probes.models import CannotProbe, ProbedModel
from distill.probes.tasks import Probe
from distill.protocols.agreement import TASK as AGREEMENT
from distill.protocols.spaces import mapped, owner
from distill.protocols.task import Setting, Stored
from students import Features, Space, Spaces

LADDER = "a ladder reads every block of the encoder and serves training only"


def features(images=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    summary = torch.randn(images, 8, generator=generator)
    return Features(summary, torch.randn(images, 3, 2, 8, generator=generator))


def spaces(adapter):
    torch.manual_seed(0)
    widths = {"summary": (8, 6), "dense": (8, 4)}
    made = Space(widths, adapter=adapter, hidden=8, levels=1).requires_grad_(False)
    for parameter in made.adapters.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return Spaces({("student", "clip"): made.eval()})


def model_of(adapter):
    held = spaces(adapter)
    return ProbedModel("vit", "student", "s", 0, None, held.chains(), held.left_out())


def probe_of(model, given, **heads):
    teacher = SimpleNamespace(text_tower=None, mask_decoder=None, segment=None, **heads)
    return Probe(model, None, given, given, {"clip": teacher})


def setting_of(model, text_tower=None):
    teacher = SimpleNamespace(text_tower=text_tower, mask_decoder=None, segment=None)
    teachers = {"clip": teacher} if text_tower else {}
    data = EvaluationSet("memory", "memory", "0", None, {})
    return Setting(model, data, 16, teachers, lambda *_: None)


@pytest.mark.parametrize("adapter", ["attention", "conv"])
@pytest.mark.parametrize("kind", ["summary", "dense"])
def test_stored_features_are_mapped_as_fresh_ones(adapter, kind):
    given, model = features(), model_of(adapter)
    with torch.no_grad():
        expected = spaces(adapter).chains()["clip"](given).get(kind)
    torch.testing.assert_close(probe_of(model, given).mapped("clip", kind), expected)
    stored = Stored(given.summary, given.dense)
    rows = mapped(setting_of(model), "clip", stored, kind)
    assert rows.shape == expected.shape
    assert len(rows) == 5
    torch.testing.assert_close(rows[:], expected)
    picked = torch.tensor([4, 1])
    torch.testing.assert_close(rows[picked], expected[picked])
    assert rows[torch.tensor([]).long()].shape == (0, *expected.shape[1:])


def test_a_kind_that_was_not_kept_is_said_in_one_line():
    given, model = features(), model_of("attention")
    setting = setting_of(model)
    with pytest.raises(CannotProbe, match=r"^vit has no dense features$"):
        probe_of(model, Features(given.summary, None)).mapped("clip", "summary")
    with pytest.raises(CannotProbe, match=r"^vit has no summary features$"):
        mapped(setting, "clip", Stored(None, given.dense), "dense")
    averaged = Stored(given.summary, given.dense.mean((1, 2), keepdim=True), averaged=True)
    with pytest.raises(CannotProbe, match="together") as caught:
        mapped(setting, "clip", averaged, "summary")
    line = "vit's space of clip is made of summary and dense features together, and of the dense "
    assert str(caught.value) == line + "ones this task keeps the averages alone"
    # An adapter of one kind needs no map.
    assert mapped(setting_of(model_of("mlp")), "clip", averaged, "summary").shape == (5, 6)


def test_a_ladder_is_the_reason_where_a_task_needs_its_space():
    model = model_of("ladder")
    assert model.to_space == {}
    probe = probe_of(model, features())
    probe.teachers["clip"].text_tower = object()
    needs = "vit does not reach the space of clip, which a text tower needs"
    for asked in (
        lambda: probe.owner("text_tower"),
        lambda: owner(setting_of(model, object()), "text_tower"),
    ):
        with pytest.raises(CannotProbe) as caught:
            asked()
        assert str(caught.value) == f"{needs}: {LADDER}"
    with pytest.raises(CannotProbe) as caught:
        owner(setting_of(model), "text_tower")
    assert str(caught.value) == f"no teacher that is reached has a text tower: {LADDER}"
    with pytest.raises(CannotProbe) as caught:
        AGREEMENT.run(setting_of(model))
    assert str(caught.value).endswith(f"no other model that is loaded: {LADDER}")
    # Without a ladder there is nothing to add.
    plain = ProbedModel("vit", "student", "s", 0, None)
    with pytest.raises(CannotProbe) as caught:
        owner(setting_of(plain, object()), "text_tower")
    assert str(caught.value) == needs
    with pytest.raises(CannotProbe, match=r"^no teacher has a text tower$"):
        owner(setting_of(plain), "text_tower")


def test_levels_are_not_even_moved():
    class Untouched:
        def map(self, change):
            raise AssertionError("of all images they do not fit")

    def encoder(pixels, size):
        return Features(pixels.mean((2, 3)), None, (Untouched(),))

    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8).numpy()
    found = extract(encoder, images, 16, batch=2)
    assert found.levels == ()
    assert found.summary.shape == (3, 3)
