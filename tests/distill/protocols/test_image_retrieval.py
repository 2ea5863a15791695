"""Retrieval of a class against torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
from in_memory import blank, given, setting
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from distill.datasets.parts import Classification, Labelled
from distill.probes import retrieval
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols.image_retrieval import TASK


def run(summary, labels):
    test, train = blank([(9, 9)] * len(labels)), blank([(9, 9)])
    part = Classification(Labelled(train, labels[:1]), Labelled(test, labels), ("a", "b"))
    return TASK.run(setting("classification", part, given({test: (summary, None)}, "crop")))


@pytest.fixture(params=[2**24, 200])
def chunked(request, monkeypatch):
    monkeypatch.setattr(retrieval, "_SCORES", request.param)


def drawn(seed, offset):
    random = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.randint(0, 9, (60,), generator=random), torch.tensor([98, 99])])
    kinds = torch.randn(9, 6, generator=random)[labels % 9]
    return 0.6 * kinds + torch.randn(62, 6, generator=random) + offset, labels


def pairs(summary, labels):
    """Scores, relevance and query number of every ordered pair, of queries that ask."""
    cosine = F.normalize(summary.double(), dim=1) @ F.normalize(summary.double(), dim=1).T
    query, other = (~torch.eye(len(labels), dtype=torch.bool)).nonzero().T
    relevant = labels[query] == labels[other]
    asks = torch.bincount(query, relevant.double())[query] > 0
    return cosine[query, other][asks], relevant[asks], query[asks]


def test_against_torchmetrics_on_positive_scores(chunked):
    summary, labels = drawn(0, 2.5)
    scores, relevant, query = pairs(summary, labels)
    assert scores.min() > 0
    outcome = run(summary, labels)
    assert outcome.samples == len(query.unique()) == 60
    assert set(outcome.values) == set(TASK.metrics)
    expected = {"map": RetrievalMAP()} | {
        f"recall_at_{k}": RetrievalHitRate(top_k=k) for k in (1, 5, 10)
    }
    for metric, oracle in expected.items():
        truth = 100 * oracle(scores, relevant, indexes=query).item()
        assert outcome.values[metric] == pytest.approx(truth, abs=1e-3), metric
    assert outcome.values["recall_at_1"] < outcome.values["recall_at_5"] < 100


def test_against_scikit_learn_with_negative_scores_and_ties(chunked):
    summary, labels = drawn(1, 0.0)
    # Axis-aligned, so that equal cosines are equal numbers.
    summary = F.one_hot(summary.argmax(1), 6).float() - F.one_hot(summary.argmin(1), 6).float()
    scores, relevant, query = pairs(summary, labels)
    assert scores.min() < 0
    assert len(scores.mul(100).round().unique()) < 10
    precisions = [
        average_precision_score(relevant[query == q], scores[query == q].mul(100).round())
        for q in query.unique()
    ]
    assert run(summary, labels).values["map"] == pytest.approx(100 * np.mean(precisions), abs=1e-3)


def test_a_collapsed_model_is_at_chance_whatever_the_order():
    labels = torch.arange(5).repeat_interleave(4)
    for order in (torch.arange(20), torch.randperm(20, generator=torch.Generator().manual_seed(0))):
        outcome = run(torch.ones(20, 3), labels[order])
        assert outcome.values["map"] == pytest.approx(100 * 3 / 19)


def test_what_cannot_be_scored():
    with pytest.raises(NothingToScore, match="no two images"):
        run(torch.eye(4), torch.arange(4))
    with pytest.raises(CannotProbe, match="no summary"):
        run(None, torch.zeros(4))
