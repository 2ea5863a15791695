"""The Pareto front against a slow loop."""

import random

import pytest

from distill.compare.frontier import Costs, pareto_front
from distill.compare.subsets import Subset


def beats(one, other):
    no_worse = one[0] <= other[0] and one[1] >= other[1]
    return no_worse and one != other


@pytest.mark.parametrize("seed", range(20))
def test_front_is_what_no_point_beats(seed):
    draw = random.Random(seed)
    # Few distinct values, so that ties of either kind come up.
    points = [(draw.randint(0, 5), draw.randint(0, 5)) for _ in range(12)]
    expected = {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}
    front = pareto_front(points)
    assert set(front) == expected
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_no_points_have_no_front():
    assert pareto_front([]) == []


def test_a_subset_costs_what_all_its_teachers_cost():
    costs = Costs("GFLOP", {"a": 1.0, "b": 2.0, "c": 4.0})
    assert costs.subset(Subset(("a", "c"))) == 5.0
    assert costs.subset(Subset(("a", "c")), ("b", "a")) == 7.0
