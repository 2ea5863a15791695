"""Zero-shot classification against a plain loop, through a text tower and a space."""

from types import SimpleNamespace

import classified
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from distill.probes.models import CannotProbe
from distill.protocols.task import Stored
from distill.protocols.zero_shot import TASK, TEMPLATES, places
from students.features import Features

CLASSES = ("cat", "tabby_dog", "owl", "red panda", "eel", "ant", "bee")
WIDTH = 5


class Tower:
    """Texts to unit vectors that depend on every letter; summaries are projected by a matrix."""

    def __init__(self):
        self.matrix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        rows = []
        for text in texts:
            draw = np.random.default_rng(list(text.encode()))
            row = draw.normal(size=WIDTH)
            rows.append(torch.from_numpy(row / np.linalg.norm(row)))
        return torch.stack(rows).float()

    def project(self, summary):
        return summary @ self.matrix


def teacher(tower):
    return SimpleNamespace(text_tower=tower, mask_decoder=None, segment=None, stride=4)


def shown(count=300):
    draw = torch.Generator().manual_seed(2)
    labels = torch.randint(0, len(CLASSES), (count,), generator=draw)
    return torch.randn(count, WIDTH, generator=draw), labels


def to_clip(features):
    """The space: twice the summary, and one more."""
    return Features(2 * features.summary + 1, None)


def asked(summary, labels, classes=CLASSES, **more):
    pictures = classified.Features(summary)
    more = {"teachers": {"clip": teacher(Tower())}, "to_space": {"clip": to_clip}} | more
    return classified.setting(pictures, pictures, [labels, labels], classes, **more)


def slow(summary, tower, names):
    """Cosines (N, K) by a plain loop."""
    scores = []
    for row in summary:
        image = (2 * row + 1) @ tower.matrix
        mine = []
        for name in names:
            total = torch.zeros(WIDTH)
            for template in TEMPLATES:
                total += tower([template.replace("{}", name)])[0]
            mine.append(float(torch.dot(image, total) / image.norm() / total.norm()))
        scores.append(mine)
    return torch.tensor(scores)


def test_scores_are_those_of_a_plain_loop_through_space_and_tower():
    summary, labels = shown()
    names = [name.replace("_", " ") for name in CLASSES]
    scores = slow(summary[:100], Tower(), names)
    outcome = TASK.run(asked(summary[:100], labels[:100]))
    assert outcome.samples == 100
    for k in (1, 5):
        expected = multiclass_accuracy(scores, labels[:100], len(CLASSES), top_k=k, average="micro")
        assert outcome.values[f"top{k}"] == pytest.approx(100 * float(expected), abs=1e-4)
    assert 0 < outcome.values["top1"] < outcome.values["top5"] < 100


def test_names_without_underscores_are_put_into_each_template_once():
    tower = Tower()
    summary, labels = shown(10)
    TASK.run(asked(summary, labels, teachers={"clip": teacher(tower)}))
    assert len(tower.texts) == len(set(tower.texts)) == 7 * len(CLASSES)
    assert "a photo of the large tabby dog." in tower.texts


def test_pictures_are_taken_in_parts(monkeypatch):
    summary, labels = shown()
    whole = TASK.run(asked(summary, labels)).values
    monkeypatch.setattr("distill.protocols.zero_shot._PICTURES", 7)
    monkeypatch.setattr("distill.protocols.zero_shot._TEXTS", 3)
    told = []
    done = TASK.run(asked(summary, labels, progress=lambda *now: told.append(now)))
    assert done.values == pytest.approx(whole)
    assert told[-1] == (300, 300)


def test_the_place_of_the_right_class_among_equals():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]]).repeat(4, 1)
    assert places(scores, torch.arange(4)).tolist() == [3, 0, 1, 2]


def test_five_of_five_says_nothing_and_is_left_out():
    summary, labels = shown(20)
    assert set(TASK.run(asked(summary, labels % 5, CLASSES[:5])).values) == {"top1"}


def test_reasons_where_there_is_no_text_tower():
    summary, labels = shown(20)
    with pytest.raises(CannotProbe, match="no teacher has a text tower"):
        TASK.run(asked(summary, labels, teachers={"clip": teacher(None)}))
    with pytest.raises(CannotProbe, match="vit does not reach the space of clip, which a text"):
        TASK.run(asked(summary, labels, to_space={"dino": to_clip}))
    dense = torch.ones(20, 2, 2, WIDTH)
    alone = asked(summary, labels)
    part = alone.data.parts["classification"]
    part.test.pictures.stored = Stored(None, dense)
    with pytest.raises(CannotProbe, match="vit has no summary"):
        TASK.run(alone)
    with pytest.raises(CannotProbe, match="vit's space of clip has no summary"):
        TASK.run(asked(summary, labels, to_space={"clip": lambda f: Features(None, f.summary)}))
    broken = asked(summary, labels, to_space={"clip": lambda f: Features(f.summary / 0, None)})
    with pytest.raises(CannotProbe, match="vit in the space of clip is not finite"):
        TASK.run(broken)
