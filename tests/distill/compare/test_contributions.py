"""Shapley values against a walk over all orders, and what games have to obey."""

import itertools
import math
import random
from statistics import mean, stdev

import pytest

from distill.compare.contributions import (
    LEAVE_ONE_OUT,
    SHAPLEY,
    contributions,
    estimate,
    shapley_values,
)

NAMES = "abcde"


def coalitions(players):
    return [
        frozenset(c) for n in range(len(players) + 1) for c in itertools.combinations(players, n)
    ]


def random_game(players, seed):
    draw = random.Random(seed)
    return {c: draw.gauss(0, 1) if c else 0.0 for c in coalitions(players)}


def over_orders(worth, players):
    """The mean gain of each player over all orders of arrival."""
    gains = {player: [] for player in players}
    for order in itertools.permutations(players):
        here = frozenset()
        for player in order:
            gains[player].append(worth[here | {player}] - worth[here])
            here |= {player}
    return {player: math.fsum(found) / len(found) for player, found in gains.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_shapley_is_the_mean_gain_over_all_orders(count, seed):
    players = NAMES[:count]
    worth = random_game(players, seed)
    assert shapley_values(worth, players) == pytest.approx(over_orders(worth, players), abs=1e-12)


def test_efficiency_symmetry_and_the_null_player():
    draw = random.Random(0)
    by_counts = {(n, m): draw.gauss(0, 1) for n in range(3) for m in range(2)}
    by_counts[0, 0] = 0.0

    def worth(c):
        # a and b are alike, c is another, d changes nothing.
        return by_counts[len(c & set("ab")), len(c & set("c"))]

    game = {c: worth(c) for c in coalitions("abcd")}
    values = shapley_values(game, "abcd")
    assert sum(values.values()) == pytest.approx(game[frozenset("abcd")], abs=1e-12)
    assert values["a"] == pytest.approx(values["b"], abs=1e-12)
    assert values["d"] == pytest.approx(0.0, abs=1e-12)
    assert abs(values["a"] - values["c"]) > 0.1


def without_empty(game):
    return {c: value for c, value in game.items() if c}


def test_uncertainty_is_that_over_seeds():
    games = {seed: random_game("abc", seed) for seed in range(3)}
    found = contributions({seed: without_empty(game) for seed, game in games.items()}, "abc")
    assert found.method == SHAPLEY
    assert found.needed == ()
    assert found.reason == ""
    for player in "abc":
        values = [over_orders(game, "abc")[player] for game in games.values()]
        assert found.values[player].mean == pytest.approx(mean(values))
        assert found.values[player].std == pytest.approx(stdev(values))
        assert found.values[player].standard_error == pytest.approx(stdev(values) / math.sqrt(3))
        assert found.values[player].seeds == 3


def test_one_seed_has_no_spread():
    assert estimate([0.5]).std is None
    assert estimate([0.5]).standard_error is None


def test_a_needed_teacher_is_in_every_coalition_of_the_game():
    """Among subsets with c, the others play for what they add to c; c stands with what it closes
    alone. Nothing is counted as zero that was not measured."""
    game = random_game("abc", 4)
    with_c = {s: value for s, value in game.items() if "c" in s}
    found = contributions({0: with_c}, "abc")
    only_c = game[frozenset("c")]
    rest = {s - {"c"}: value - only_c for s, value in with_c.items()}
    expected = over_orders(rest, "ab")
    assert found.method == SHAPLEY
    assert found.needed == ("c",)
    assert {p: e.mean for p, e in found.values.items()} == pytest.approx(expected)
    assert found.together.mean == only_c
    total = found.together.mean + sum(e.mean for e in found.values.values())
    assert total == pytest.approx(game[frozenset("abc")])


def test_two_needed_teachers_stand_together():
    game = {frozenset("bc"): 0.5, frozenset("abc"): 0.7}
    found = contributions({0: game, 1: game}, "abc")
    assert found.needed == ("b", "c")
    assert found.together.mean == 0.5
    assert found.values["a"].mean == pytest.approx(0.2)
    assert set(found.values) == {"a"}


def test_few_subsets_are_left_out_one_by_one():
    game = {frozenset("abc"): 0.9, frozenset("ab"): 0.4, frozenset("bc"): 1.0}
    found = contributions({0: game}, "abc")
    assert found.method == LEAVE_ONE_OUT
    assert {p: e.mean for p, e in found.values.items()} == pytest.approx({"c": 0.5, "a": -0.1})
    assert found.needed == ("b",)
    assert found.together is None
    assert found.reason == "no gap closed without b"


def test_without_the_worth_of_none_there_is_no_shapley_value():
    """Where another teacher is in every subset, the student of no varying teacher is not there."""
    game = without_empty(random_game("abc", 1))
    found = contributions({0: game}, "abc", empty=None)
    assert found.method == LEAVE_ONE_OUT
    whole = game[frozenset("abc")]
    for player in "abc":
        expected = whole - game[frozenset("abc") - {player}]
        assert found.values[player].mean == pytest.approx(expected)


@pytest.mark.parametrize(
    ("worth", "reason"),
    [
        ({}, "no subset has a gap closed"),
        ({0: {}}, "no subset has a gap closed"),
        ({0: {frozenset("a"): 1.0}, 1: {frozenset("b"): 1.0}}, "no seed has all the subsets"),
        ({0: {frozenset("a"): 1.0, frozenset("b"): 1.0}}, "the subset of all of them was not"),
        ({0: {frozenset("abc"): 1.0}}, "no gap closed without a, b, c"),
    ],
)
def test_no_contribution_has_a_reason(worth, reason):
    found = contributions(worth, "abc")
    assert found.method == ""
    assert found.values == {}
    assert found.reason.startswith(reason)


def test_a_seed_that_lacks_a_subset_is_left_out():
    games = {seed: without_empty(random_game("ab", seed)) for seed in range(3)}
    del games[1][frozenset("a")]
    found = contributions(games, "ab")
    assert found.values["a"].seeds == 2
    values = [over_orders(games[s] | {frozenset(): 0.0}, "ab")["a"] for s in (0, 2)]
    assert found.values["a"].mean == pytest.approx(mean(values))
