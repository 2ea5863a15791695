"""Drops that were planted are found, and nothing else is."""

import itertools
import random
from statistics import mean, variance

import pytest
from planted import measured

from distill.compare.conflicts import conflicts
from distill.compare.scores import student_scores
from distill.recipe.schema import CompareConfig

JITTER = (-0.01, 0.0, 0.01)
"""Over seeds 0, 1, 2: a mean of 0 and a sample deviation of 0.01."""


def found(gap, **more):
    (scores,) = student_scores(*measured(gap, **more))
    return conflicts(scores)


def test_a_planted_drop_is_found_and_said():
    def gap(teachers, task, seed):
        harmed = task == "knn" and {"dinov2", "siglip", "sam"} == teachers
        return (0.55 if harmed else 0.7) + JITTER[seed]

    one, two, three = found(gap)
    # From each of the three subsets of two, and from no single teacher, since these tell it.
    assert [(c.smaller, c.larger, c.task) for c in (one, two, three)] == [
        ("dinov2-sam", "dinov2-siglip-sam", "knn"),
        ("dinov2-siglip", "dinov2-siglip-sam", "knn"),
        ("siglip-sam", "dinov2-siglip-sam", "knn"),
    ]
    assert (two.before, two.after) == (pytest.approx(0.7), pytest.approx(0.55))
    assert two.added == ("sam",)
    assert two.spread == pytest.approx(0.01 * 2**0.5)
    # 20 + 60 * 0.7 and 20 + 60 * 0.55.
    assert two.sentence == (
        "Adding sam to dinov2 + siglip lowers knn from 62.0 to 53.0: it closes 0.55 of the gap "
        "instead of 0.70 (spread over 3 seeds 0.01)."
    )


def test_where_lower_is_better_the_sentence_says_so():
    def gap(teachers, task, seed):
        harmed = task == "depth" and teachers == {"siglip", "sam"}
        return (-0.1 if harmed else 0.5) + JITTER[seed]

    conflict = next(c for c in found(gap) if c.smaller == "sam")
    assert conflict.sentence == (
        "Adding siglip to sam worsens depth from 0.700 to 1.060: it closes \N{MINUS SIGN}0.10 of "
        "the gap instead of 0.50 (spread over 3 seeds 0.01)."
    )


@pytest.mark.parametrize(
    ("drop", "spread", "said"),
    [
        (0.019, 0.0, False),  # too little to matter
        (0.021, 0.0, True),
        (0.040, 0.03, False),  # 0.0424 is the combined deviation
        (0.044, 0.03, True),
    ],
)
def test_both_thresholds(drop, spread, said):
    def gap(teachers, task, seed):
        return 0.5 + spread * (seed - 1) - (drop if len(teachers) == 3 else 0.0)

    assert bool(found(gap, tasks=("knn",))) is said


def test_a_slow_decline_is_told_once_from_end_to_end():
    def gap(teachers, task, seed):
        return 0.7 - 0.03 * len(teachers) + 3 * JITTER[seed]

    pairs = {(c.smaller, c.larger) for c in found(gap, tasks=("knn",))}
    assert pairs == {(t, "dinov2-siglip-sam") for t in ("dinov2", "siglip", "sam")}


def test_one_seed_has_no_conflict():
    def gap(teachers, task, seed):
        return 1.0 / len(teachers)

    assert found(gap, config=CompareConfig(seeds=[0])) == []
    assert found(gap) != []


def test_what_cannot_be_done_is_no_conflict():
    def gap(teachers, task, seed):
        return (None if len(teachers) == 3 else 0.9) if task == "masks" else 0.5

    assert found(gap) == []


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 6, 7, 8])
def test_random_scores_against_a_plain_loop(seed):
    draw = random.Random(seed)
    subsets = [
        frozenset(c)
        for n in (1, 2, 3)
        for c in itertools.combinations(("dinov2", "siglip", "sam"), n)
    ]
    level = {s: draw.gauss(0.5, 0.1) for s in subsets}
    gaps = {(s, k): level[s] + draw.gauss(0, 0.02) for s in subsets for k in range(3)}

    def values(subset):
        return [gaps[subset, k] for k in range(3)]

    def drops(small, large):
        fall = mean(values(small)) - mean(values(large))
        return fall > 0.02 and fall**2 > variance(values(small)) + variance(values(large))

    pairs = [(a, b) for a in subsets for b in subsets if a < b and drops(a, b)]
    assert pairs
    expected = set()
    for a, b in pairs:
        between = [c for c in subsets if a < c < b]
        if not any((a, c) in pairs or (c, b) in pairs for c in between):
            expected.add((a, b))
    got = found(lambda teachers, task, seed: gaps[teachers, seed], tasks=("knn",))
    assert {(frozenset(c.smaller.split("-")), frozenset(c.larger.split("-"))) for c in got} == (
        expected
    )
    assert [c.before - c.after for c in got] == sorted(c.before - c.after for c in got)[::-1]


def test_a_mean_of_metrics_that_rises_is_not_said_to_fall():
    """Gaps are averaged on their own scales, so a mean of scores may go the other way."""
    comparison, rows, untrained_of = measured(
        lambda teachers, task, seed: 0.5 + JITTER[seed], tasks=("image_retrieval",)
    )
    changed = []
    for row in rows:
        value = row["value"]
        if row["role"] == "teacher" and row["metric"] == "map":
            value = 30.0  # a gap of 10 where recall has one of 60
        if row["role"] == "student":
            whole = row["model"].endswith("dinov2-siglip-sam")
            if row["metric"] == "map":
                value = 20.0 + (2.0 if whole else 8.0) + row["seed"] / 10
            else:
                value = 50.0 + (9.0 if whole else 0.0) + row["seed"] / 10
        changed.append(row | {"value": value})
    (scores,) = student_scores(comparison, changed, untrained_of)
    told = conflicts(scores)
    assert len(told) == 3
    for conflict in told:
        assert "harms image retrieval: it closes 0.4" in conflict.sentence
