"""Landmark retrieval against a walk along the precision-recall curve."""

import numpy as np
import pytest
import torch
from in_memory import blank, given, setting

from distill.datasets.parts import Landmarks
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import landmarks
from distill.protocols.landmarks import TASK, first_precision, setup_scores, trapezoid_precision

METRICS = {"easy_map", "medium_map", "hard_map", "easy_mp10", "medium_mp10", "hard_mp10"}


def walked(names, right, junk):
    """Area under the curve of one ranked list, as the first Oxford benchmark describes it."""
    area, old_recall, old_precision, seen, hits = 0.0, 0.0, 1.0, 0, 0
    for name in names:
        if name in junk:
            continue
        seen += 1
        hits += name in right
        recall, precision = hits / len(right), hits / seen
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def first_ten(names, right, junk):
    counted = [name in right for name in names if name not in junk]
    last = max(place for place, hit in enumerate(counted, 1) if hit)
    depth = min(10, last)
    return sum(counted[:depth]) / depth


def test_average_precision_by_hand():
    def area(*ranks):
        return trapezoid_precision(torch.tensor(ranks))

    assert area(0) == 1
    assert area(1) == pytest.approx((0 + 1 / 2) / 2)
    assert area(0, 2) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert area(0, 1, 2) == 1
    assert area(3, 4) == pytest.approx(((0 + 1 / 4) / 2 + (1 / 4 + 2 / 5) / 2) / 2)


def test_precision_among_the_first_by_hand():
    assert first_precision(torch.tensor([0, 1])) == 1  # complete after two
    assert first_precision(torch.tensor([1])) == 1 / 2
    assert first_precision(torch.tensor([0, 5, 30])) == 2 / 10
    assert first_precision(torch.tensor([10])) == 0


def test_junk_is_taken_out_before_anything_is_counted():
    order = torch.tensor([4, 3, 0, 2, 1])
    none = torch.zeros(0, dtype=torch.int64)
    scores = setup_scores(order, torch.tensor([0]), torch.tensor([3]), torch.tensor([4]))
    assert scores == {
        "easy_map": 1.0,  # 4 is junk and 3, hard, is not counted
        "easy_mp10": 1.0,
        "medium_map": 1.0,
        "medium_mp10": 1.0,
        "hard_map": 1.0,
        "hard_mp10": 1.0,
    }
    scores = setup_scores(order, none, torch.tensor([0]), none)
    assert set(scores) == {"medium_map", "medium_mp10", "hard_map", "hard_mp10"}
    assert scores["hard_map"] == pytest.approx((0 + 1 / 3) / 2)


@pytest.fixture
def retrieval():
    """7 queries of 60 pictures; the fourth has no easy answer, the last none at all."""
    random = np.random.default_rng(3)
    place = random.normal(size=(7, 8))
    easy, hard, junk = [], [], []
    gallery = random.normal(size=(60, 8))
    for query in range(7):
        chosen = random.permutation(60)
        parts = np.split(chosen[: 6 + 2 * query], [3, 5 + query])
        if query == 3:
            parts[0] = parts[0][:0]
        if query == 6:
            parts[0], parts[1] = parts[0][:0], parts[1][:0]
        for numbers, strength in zip(parts, (0.8, 0.4, 0.6), strict=True):
            gallery[numbers] += strength * place[query]
        for held, numbers in zip((easy, hard, junk), parts, strict=True):
            held.append(torch.from_numpy(numbers))
    return place * 3, gallery, easy, hard, junk


def run(queries, gallery, easy, hard, junk):
    asked, shown = blank([(9, 9)] * 7), blank([(9, 9)] * 60)
    part = Landmarks(asked, shown, tuple(easy), tuple(hard), tuple(junk))
    stored = {asked: (queries, None), shown: (gallery, None)}
    return TASK.run(setting("landmarks", part, given(stored, "squash")))


def test_against_a_walk_over_the_ranking(retrieval, monkeypatch):
    monkeypatch.setattr(landmarks, "_CHUNK", 17)
    queries, gallery, easy, hard, junk = retrieval
    cosine = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    cosine = cosine @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T
    expected = {metric: [] for metric in METRICS}
    for query in range(7):
        names = sorted(range(60), key=lambda n: -cosine[query, n])
        e, h, j = (set(s[query].tolist()) for s in (easy, hard, junk))
        for setup, right, wrong in (("easy", e, j | h), ("medium", e | h, j), ("hard", h, j | e)):
            if right:
                expected[f"{setup}_map"].append(walked(names, right, wrong))
                expected[f"{setup}_mp10"].append(first_ten(names, right, wrong))
    assert [len(expected[f"{s}_map"]) for s in ("easy", "medium", "hard")] == [5, 6, 6]
    outcome = run(torch.from_numpy(queries), torch.from_numpy(gallery), easy, hard, junk)
    assert outcome.samples == 6
    assert set(outcome.values) == set(TASK.metrics) == METRICS
    for metric, values in expected.items():
        assert outcome.values[metric] == pytest.approx(100 * np.mean(values)), metric
    assert len({round(v, 3) for v in outcome.values.values()}) == 6


def test_what_cannot_be_scored(retrieval):
    queries, gallery, _, _, junk = retrieval
    none = [torch.zeros(0, dtype=torch.int64)] * 7
    with pytest.raises(NothingToScore, match="no query"):
        run(torch.from_numpy(queries), torch.from_numpy(gallery), none, none, junk)
    with pytest.raises(CannotProbe, match="no summary"):
        run(None, None, none, none, junk)
