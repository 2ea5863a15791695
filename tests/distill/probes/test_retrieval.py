"""Retrieval against scikit-learn's average precision and plain loops."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from distill.probes.retrieval import average_precision, image_retrieval, text_retrieval


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_image_retrieval_against_scikit_learn_with_negative_scores():
    random = np.random.default_rng(0)
    labels = np.concatenate([random.integers(0, 8, 60), [98, 99]])  # the last two are alone
    summary = random.normal(size=(8, 5))[labels % 8] * 0.7 + random.normal(size=(62, 5))
    cosine = unit(summary) @ unit(summary).T
    assert (cosine < 0).mean() > 0.3
    precisions, first = [], []
    for query in range(62):
        others = np.arange(62) != query
        relevant = labels[others] == labels[query]
        if relevant.any():
            precisions.append(average_precision_score(relevant, cosine[query, others]))
            first.append(relevant[cosine[query, others].argmax()])
    scores, queries = image_retrieval(torch.from_numpy(summary), torch.from_numpy(labels))
    assert queries == len(precisions) == 60
    assert scores["map"] == pytest.approx(100 * np.mean(precisions))
    assert scores["recall_at_1"] == pytest.approx(100 * np.mean(first))


def test_an_image_does_not_find_itself():
    summary = torch.eye(4)
    scores, queries = image_retrieval(summary, torch.tensor([0, 1, 0, 1]))
    assert queries == 4
    assert scores["recall_at_1"] < 100
    with pytest.raises(ValueError, match="no two images"):
        image_retrieval(summary, torch.arange(4))


def test_average_precision_by_hand():
    ranked = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    torch.testing.assert_close(
        average_precision(ranked), torch.tensor([(1 + 2 / 3) / 2, 1 / 4, 1.0])
    )


def slow_recall(queries, gallery, captions, k):
    hits = 0
    for i, query in enumerate(queries):
        order = sorted(range(len(gallery)), key=lambda j: -float(query @ gallery[j]))[:k]
        hits += any(captions[j] == captions[i] for j in order)
    return 100 * hits / len(queries)


def test_text_retrieval_against_a_loop_with_duplicate_captions():
    random = np.random.default_rng(4)
    captions = [f"caption {i % 23}" for i in range(40)]  # 17 captions occur twice
    meaning = random.normal(size=(23, 6))
    texts = np.stack([meaning[i % 23] for i in range(40)])
    images = texts + 0.9 * random.normal(size=(40, 6))
    scores = text_retrieval(
        torch.from_numpy(images * random.uniform(0.1, 9, (40, 1))),
        torch.from_numpy(texts),
        captions,
    )
    for k in (1, 5):
        forth = slow_recall(unit(texts), unit(images), captions, k)
        back = slow_recall(unit(images), unit(texts), captions, k)
        assert scores[f"text_to_image_r{k}"] == pytest.approx(forth)
        assert scores[f"image_to_text_r{k}"] == pytest.approx(back)
    assert len(scores) == 4
    assert 0 < scores["text_to_image_r1"] < scores["text_to_image_r5"] <= 100


def test_equal_captions_are_hits_for_each_other():
    images = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # each looks like the other's place
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert text_retrieval(images, texts, ["a", "b"])["text_to_image_r1"] == 0
    assert text_retrieval(images, texts, ["a", "a"])["text_to_image_r1"] == 100
