"""Attribute recall against scikit-learn's logistic regression and a loop over images."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from distill.probes.attributes import (
    attribute_recall,
    logistic_scores,
    r_precision,
    standardise,
)


def world(n=160, width=10, pairs=5, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, width)) * random.uniform(0.1, 30, width) + 7
    truth = (x - 7) / x.std(0) @ random.normal(size=(width, pairs)) + random.normal(
        size=(n, pairs)
    ) > 1.0
    truth[:, 0] |= ~truth.any(1)
    return x, truth


def test_scores_against_scikit_learn():
    x, truth = world()
    train, test = standardise(torch.from_numpy(x[:100]), torch.from_numpy(x[100:]))
    scaler = StandardScaler().fit(x[:100])
    np.testing.assert_allclose(test.numpy(), scaler.transform(x[100:]), atol=1e-9)
    for c in (0.1, 1.0):
        scores = logistic_scores(train, torch.from_numpy(truth[:100]), test, penalty_c=c)
        for pair in range(truth.shape[1]):
            oracle = LogisticRegression(C=c, tol=1e-8, max_iter=1000)
            oracle.fit(train.numpy(), truth[:100, pair])
            expected = oracle.decision_function(test.numpy())
            np.testing.assert_allclose(scores[:, pair].numpy(), expected, atol=2e-3)


def test_r_precision_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(50, 8, generator=generator)
    truth = torch.rand(50, 8, generator=generator) < 0.3
    shares = []
    for row, true in zip(scores.tolist(), truth.tolist(), strict=True):
        m = sum(true)
        if m:
            best = sorted(range(8), key=lambda j: -row[j])[:m]
            shares.append(sum(true[j] for j in best) / m)
    assert len(shares) < 50  # rows without a true column are left out
    assert r_precision(scores, truth) == pytest.approx(100 * sum(shares) / len(shares), abs=1e-4)


def test_extremes():
    truth = torch.tensor([[True, False, True], [False, True, False]])
    assert r_precision(truth.float(), truth) == 100
    assert r_precision(-truth.float(), truth) == pytest.approx(25)  # one of two by pigeonhole
    with pytest.raises(ValueError, match="no row"):
        r_precision(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_a_constant_channel_and_a_pair_never_seen_do_no_harm():
    x, truth = world()
    x[:, 3] = 5.0
    truth[:100, 4] = False
    tensors = [torch.from_numpy(a).float() for a in (x[:100], x[100:])]
    first = attribute_recall(
        tensors[0], torch.from_numpy(truth[:100]), tensors[1], torch.from_numpy(truth[100:])
    )
    again = attribute_recall(
        tensors[0], torch.from_numpy(truth[:100]), tensors[1], torch.from_numpy(truth[100:])
    )
    assert first == again
    assert first > 60  # chance is about 40


def test_the_probe_follows_the_summary_not_the_order():
    x, truth = world(n=400)
    a, b = torch.from_numpy(x[:200]).float(), torch.from_numpy(x[200:]).float()
    t, u = torch.from_numpy(truth[:200]), torch.from_numpy(truth[200:])
    shuffled = t[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert attribute_recall(a, t, b, u) > attribute_recall(a, shuffled, b, u) + 15
