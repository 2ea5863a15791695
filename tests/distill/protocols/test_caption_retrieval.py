"""Retrieval by captions against plain loops, with several captions a picture."""

import numpy as np
import pytest
import torch
from in_memory import Owner, blank, given, setting

from distill.datasets.parts import Captions
from distill.probes import retrieval
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import caption_retrieval
from distill.protocols.caption_retrieval import TASK
from students.features import Features

PICTURES, WIDTH = 23, 5


class Tower:
    """Texts `caption N` by heart; summaries through `projection`."""

    def __init__(self, texts, projection):
        self.texts, self.projection, self.batches = texts, projection, []

    def __call__(self, texts):
        self.batches.append(len(texts))
        return torch.stack([self.texts[int(text.split()[1])] for text in texts]).half()

    def project(self, summary):
        return summary @ self.projection


@pytest.fixture
def world():
    """Summaries, embedded texts, the owner of each and the tower's projection; uneven captions."""
    random = torch.Generator().manual_seed(2)
    owner = torch.cat([torch.arange(PICTURES), torch.randint(0, PICTURES, (30,), generator=random)])
    owner = owner[torch.randperm(len(owner), generator=random)]
    meaning = torch.randn(PICTURES, WIDTH, generator=random)
    texts = meaning[owner] + 0.9 * torch.randn(len(owner), WIDTH, generator=random)
    projection = torch.randn(8, WIDTH, generator=random)
    summaries = (meaning @ torch.linalg.pinv(projection)) * torch.rand(
        PICTURES, 1, generator=random
    ).add(0.1)
    return summaries, texts.half().float(), owner, projection


def run(summaries, owner, captions, teachers, reach):
    pictures = blank([(9, 9)] * PICTURES)
    part = Captions(pictures, captions, owner)
    features = given({pictures: (summaries, None)}, "crop")
    return TASK.run(setting("captions", part, features, teachers=teachers, to_space=reach))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_against_loops(world, monkeypatch):
    monkeypatch.setattr(caption_retrieval, "_TEXTS", 7)
    monkeypatch.setattr(caption_retrieval, "_SUMMARIES", 5)
    monkeypatch.setattr(retrieval, "_SCORES", 300)
    summaries, texts, owner, projection = world
    tower = Tower(texts, projection)
    teachers = {"plain": Owner(), "clip": Owner(text_tower=tower)}
    # The model's own space is twice as large and turned; its space of clip undoes that.
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(4)))[0]
    reach = {"clip": lambda f: Features(f.summary @ turn.T / 2, None)}
    captions = tuple(f"caption {i}" for i in range(len(owner)))
    outcome = run(summaries @ turn * 2, owner, captions, teachers, reach)
    assert outcome.samples == PICTURES
    assert set(outcome.values) == set(TASK.metrics)
    assert max(tower.batches) == 7
    assert sum(tower.batches) == len(captions)
    cosine = unit((summaries @ projection).numpy()) @ unit(texts.numpy()).T
    for k in (1, 5, 10):
        forth = 0
        for text in range(len(owner)):
            first = sorted(range(PICTURES), key=lambda i, t=text: -cosine[i, t])[:k]
            forth += int(owner[text]) in first
        back = 0
        for image in range(PICTURES):
            first = sorted(range(len(owner)), key=lambda t, i=image: -cosine[i, t])[:k]
            back += any(int(owner[t]) == image for t in first)
        values = outcome.values
        assert values[f"text_to_image_r{k}"] == pytest.approx(100 * forth / len(owner))
        assert values[f"image_to_text_r{k}"] == pytest.approx(100 * back / PICTURES)
    assert 0 < values["image_to_text_r1"] < values["image_to_text_r10"]
    assert 20 < values["text_to_image_r1"] < 95


def test_equal_captions_of_two_pictures_stay_two():
    texts = torch.eye(2)[[0, 0]]
    tower = Tower(texts, torch.eye(2))
    teachers, reach = {"clip": Owner(text_tower=tower)}, {"clip": lambda f: f}
    pictures = blank([(9, 9)] * 2)
    part = Captions(pictures, ("caption 0", "caption 0"), torch.tensor([0, 1]))
    features = given({pictures: (torch.eye(2), None)})
    outcome = TASK.run(setting("captions", part, features, teachers=teachers, to_space=reach))
    assert outcome.values["text_to_image_r1"] == 50


def test_what_cannot_be_scored(world):
    summaries, texts, owner, projection = world
    captions = tuple(f"caption {i}" for i in range(len(owner)))
    teachers = {"clip": Owner(text_tower=Tower(texts, projection))}
    with pytest.raises(CannotProbe, match="no teacher has a text tower"):
        run(summaries, owner, captions, {"plain": Owner()}, {})
    with pytest.raises(CannotProbe, match="does not reach the space of clip"):
        run(summaries, owner, captions, teachers, {})
    reach = {"clip": lambda f: f}
    with pytest.raises(CannotProbe, match="no summary"):
        run(None, owner, captions, teachers, reach)
    with pytest.raises(NothingToScore, match="no captions"):
        run(summaries, owner[:0], (), teachers, reach)
