"""kNN against scikit-learn's neighbours and a plain loop."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from distill.probes.knn import knn


def slow(train, train_labels, test, test_labels, k, temperature):
    hits = 0
    for query, truth in zip(test.tolist(), test_labels.tolist(), strict=True):
        scored = []
        for row, other in enumerate(train.tolist()):
            dot = sum(a * b for a, b in zip(query, other, strict=True))
            scored.append((-dot / math.hypot(*query) / math.hypot(*other), row))
        votes: dict[int, float] = {}
        for negative, row in sorted(scored)[:k]:
            label = int(train_labels[row])
            votes[label] = votes.get(label, 0.0) + math.exp(-negative / temperature)
        hits += min(votes, key=lambda c: (-votes[c], c)) == truth
    return 100 * hits / len(test)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_against_scikit_learn_and_a_loop(k):
    random = np.random.default_rng(k)
    centres = random.normal(size=(6, 12))
    labels, test_labels = random.integers(0, 6, 80), random.integers(0, 6, 60)
    scale = random.uniform(0.1, 5, (80, 1))  # lengths say nothing
    train = (centres[labels] + 1.5 * random.normal(size=(80, 12))) * scale
    test = centres[test_labels] + 1.5 * random.normal(size=(60, 12))
    value = knn(*(torch.from_numpy(a) for a in (train, labels, test, test_labels)), k=k)

    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(train, labels)
    assert value == pytest.approx(100 * oracle.score(test, test_labels))
    assert value == pytest.approx(slow(train, labels, test, test_labels, k, 0.07))
    assert 20 < value < 100


def test_the_temperature_lets_one_near_neighbour_outvote_two_far_ones():
    train = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, -0.5]])
    labels, query, truth = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert knn(train, labels, query, truth, k=3, temperature=0.07) == 100
    assert knn(train, labels, query, truth, k=3, temperature=10.0) == 0


def test_ties_go_to_the_first_image_and_the_lowest_class():
    one = torch.tensor([[1.0, 0.0]])
    train, labels = one.repeat(40, 1), torch.arange(40).flip(0)
    # 40 equally near images: the first (class 39) is the neighbour.
    assert knn(train, labels, one, torch.tensor([39]), k=1) == 100
    # The first three, of classes 39, 38 and 37, have equal votes.
    assert knn(train, labels, one, torch.tensor([37]), k=3) == 100


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_fit(k):
    four = torch.eye(4)
    with pytest.raises(ValueError, match=f"k = {k}"):
        knn(four, torch.arange(4), four, torch.arange(4), k=k)
