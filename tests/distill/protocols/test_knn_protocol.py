"""kNN over blocks of a gallery, against scikit-learn, a plain loop and a whole sort."""

import math

import classified
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from distill.probes import knn as search
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols.knn import TASK


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(search, "_BLOCK", 16)
    monkeypatch.setattr(search, "_CHUNK", 7)


def clouds(seed, train, test, classes=6, width=12):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width))
    labels = [random.integers(0, classes, count) for count in (train, test)]
    points = [centres[which] + 2.5 * random.normal(size=(len(which), width)) for which in labels]
    points[0] *= random.uniform(0.1, 5, (train, 1))  # lengths say nothing
    return (
        [torch.from_numpy(array).float() for array in points],
        [torch.from_numpy(array) for array in labels],
    )


def loop(train, labels, query, k):
    """The class that the k nearest of one query choose, by a plain loop."""
    near = []
    for row, other in enumerate(train.tolist()):
        dot = sum(a * b for a, b in zip(query, other, strict=True))
        near.append((-dot / math.hypot(*query) / math.hypot(*other), row))
    votes = {}
    for negative, row in sorted(near)[:k]:
        label = int(labels[row])
        votes[label] = votes.get(label, 0.0) + math.exp(-negative / 0.07)
    return min(votes, key=lambda label: (-votes[label], label))


@pytest.mark.usefixtures("small_blocks")
def test_the_task_against_scikit_learn_and_a_loop():
    points, labels = clouds(0, 250, 60)
    setting = classified.setting(*(classified.Features(p) for p in points), labels, 6)
    outcome = TASK.run(setting)
    assert outcome.samples == 60
    assert set(outcome.values) == set(TASK.metrics)
    assert setting.features.views == [("short side 256/224 bicubic, centre crop", 224)] * 2
    train, test = (p.double().numpy() for p in points)
    for k in (10, 20, 100, 200):
        oracle = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(train, labels[0])
        expected = 100 * oracle.score(test, labels[1])
        assert outcome.values[f"accuracy_k{k}"] == pytest.approx(expected)
        slow = [loop(points[0], labels[0], query, k) for query in points[1].tolist()]
        assert outcome.values[f"accuracy_k{k}"] == pytest.approx(
            100 * np.mean(np.array(slow) == labels[1].numpy())
        )
    assert len(set(outcome.values.values())) > 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 3, 16, 30, 95])
def test_neighbours_are_those_of_a_stable_sort_of_everything(k):
    draw = torch.Generator().manual_seed(k)
    # Whole numbers of one length: cosines are exact, most of them equal, within and across blocks.
    signs = torch.randint(0, 2, (95, 4), generator=draw) * 2.0 - 1
    queries = torch.randint(0, 2, (20, 4), generator=draw) * 2.0 - 1
    cosine, rows = search.neighbours(signs, queries, k)
    expected = (queries @ signs.T / 4).sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, expected.indices[:, :k])
    assert torch.equal(cosine, expected.values[:, :k])


@pytest.mark.usefixtures("small_blocks")
def test_the_gallery_is_read_once_in_blocks():
    points, labels = clouds(1, 100, 30)

    class Rows:
        shape, read = points[0].shape, []

        def __len__(self):
            return 100

        def __getitem__(self, index):
            self.read.append((index.start, index.stop))
            return points[0][index]

    told = []
    found = search.accuracies(
        Rows(), labels[0], points[1], labels[1], (10, 5), progress=lambda *now: told.append(now)
    )
    assert Rows.read == [(start, start + 16) for start in range(0, 100, 16)]
    assert told[-1] == (100, 100)
    assert len(told) == 7
    for k in (5, 10):
        assert found[k] == search.knn(points[0], labels[0], points[1], labels[1], k)


def test_a_k_above_the_number_of_images_is_left_out():
    points, labels = clouds(2, 50, 5)
    outcome = TASK.run(classified.setting(*(classified.Features(p) for p in points), labels, 6))
    assert set(outcome.values) == {"accuracy_k10", "accuracy_k20"}
    few = classified.Features(points[0][:9])
    with pytest.raises(NothingToScore, match="9 training images"):
        TASK.run(
            classified.setting(few, classified.Features(points[1]), [labels[0][:9], labels[1]], 6)
        )


def test_a_model_without_a_summary_cannot():
    dense = classified.Features(dense=torch.ones(20, 2, 2, 3))
    labels = torch.zeros(20, dtype=torch.int64)
    with pytest.raises(CannotProbe, match="vit has no summary"):
        TASK.run(classified.setting(dense, dense, [labels, labels], 1))


@pytest.mark.parametrize("width", [5, 8, 64, 65])
def test_where_is_nonzero(width):
    wanted = torch.rand(30, width, generator=torch.Generator().manual_seed(width)) < 0.1
    row, column = search._where(wanted)
    assert torch.stack([row, column], 1).tolist() == np.argwhere(wanted.numpy()).tolist()
    assert len(row)
