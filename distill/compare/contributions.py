"""What each teacher adds: Shapley values where every subset was trained, else leave-one-out.

A game is a task. Its players are the teachers that vary; the worth v(S) of a subset S is the gap
that its student closes, 0 for the empty one, which is the untrained student.

    Shapley(i) = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S))

is the gain that i brings, averaged over all orders in which the n teachers could be added; the
values add up to v(all). A task may need a teacher (masks take SAM's space, text retrieval a text
tower): subsets without it have no worth, rather than a worth of 0. The game is then played by the
other teachers among the subsets that hold the needed ones N, w(S) = v(S + N) - v(N): their values
add up to v(all) - v(N), and v(N) stands beside them as what the needed ones bring by themselves.

Where some subset of these was not trained, or cannot be scored, a contribution is v(all) - v(all
but i), for each i where both are there. These do not add up to v(all): what two teachers both
bring is counted for neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial, sqrt
from statistics import fmean, stdev

Coalition = frozenset[str]

SHAPLEY = "shapley"
LEAVE_ONE_OUT = "leave_one_out"


@dataclass(frozen=True)
class Estimate:
    """Mean over `seeds` seeds with the sample standard deviation and the standard error of the
    mean, both None with fewer than two."""

    mean: float
    std: float | None
    standard_error: float | None
    seeds: int


@dataclass(frozen=True)
class Contributions:
    """What each teacher adds on one task, as fractions of the gap.

    `method` is "shapley", "leave_one_out", or "" where there is none. `values` has a teacher only
    where its contribution is defined. `needed` are the teachers in every subset that has a worth,
    and `together` is the worth of these alone (None where no teacher is needed, or by
    leave-one-out). `reason` says what is missing, and why.
    """

    method: str
    values: dict[str, Estimate]
    needed: tuple[str, ...] = ()
    together: Estimate | None = None
    reason: str = ""


def shapley_values(worth: Mapping[Coalition, float], players: Sequence[str]) -> dict[str, float]:
    """The Shapley value of each player.

    Args:
        worth: of every coalition of the players, the empty one included.
        players: their names, each once.

    Raises:
        KeyError: if a coalition has no worth.
    """
    count = len(players)
    values = {}
    for player in players:
        others = [other for other in players if other != player]
        total = 0.0
        for size in range(count):
            share = factorial(size) * factorial(count - size - 1) / factorial(count)
            for chosen in combinations(others, size):
                before = frozenset(chosen)
                total += share * (worth[before | {player}] - worth[before])
        values[player] = total
    return values


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and spread of one value a seed.

    Raises:
        statistics.StatisticsError: if there is none.
    """
    spread = stdev(values) if len(values) > 1 else None
    error = None if spread is None else spread / sqrt(len(values))
    return Estimate(fmean(values), spread, error, len(values))


def contributions(
    worth: Mapping[int, Mapping[Coalition, float]],
    players: Sequence[str],
    empty: float | None = 0.0,
) -> Contributions:
    """What each of the players adds on a task, worked out seed by seed.

    Args:
        worth: by seed, the gap closed of each subset that was trained and could be scored.
        players: the teachers that vary.
        empty: the worth of the empty subset; None where it is not known, because other teachers
            are in every subset and no student was trained by these alone.
    """
    scored = {coalition for by_coalition in worth.values() for coalition in by_coalition}
    # A seed that lacks a student (it was stopped, say) would play another game than the others.
    games = [game for game in worth.values() if game.keys() == scored]
    if not scored:
        return Contributions("", {}, reason="no subset has a gap closed")
    if not games:
        return Contributions("", {}, reason="no seed has all the subsets that were scored")
    whole = frozenset(players)
    needed = frozenset.intersection(*scored)
    rest = [player for player in players if player not in needed]
    ordered = tuple(player for player in players if player in needed)
    supersets = {
        needed | set(chosen) for n in range(len(rest) + 1) for chosen in combinations(rest, n)
    }
    if not needed and empty is not None and scored == supersets - {frozenset()}:
        return Contributions(SHAPLEY, _by_seed([_shapley(g, rest, needed, empty) for g in games]))
    if needed and rest and scored == supersets:
        played = [_shapley(game, rest, needed, game[needed]) for game in games]
        together = estimate([game[needed] for game in games])
        return Contributions(SHAPLEY, _by_seed(played), ordered, together)
    if whole not in scored:
        return Contributions(
            "", {}, reason="the subset of all of them was not trained, or has no gap closed"
        )
    left_out = {player: whole - {player} for player in players if whole - {player} in scored}
    differences = [{p: g[whole] - g[other] for p, other in left_out.items()} for g in games]
    lacking = ", ".join(player for player in players if player not in left_out)
    reason = f"no gap closed without {lacking}" if lacking else ""
    if not left_out:
        return Contributions("", {}, ordered, reason=reason)
    return Contributions(LEAVE_ONE_OUT, _by_seed(differences), ordered, reason=reason)


def _shapley(
    game: Mapping[Coalition, float], rest: Sequence[str], needed: Coalition, base: float
) -> dict[str, float]:
    """Shapley values of the game that `rest` plays in the presence of `needed`, worth `base`."""
    worth = {frozenset[str](): 0.0}
    worth |= {c - needed: value - base for c, value in game.items() if c != needed}
    return shapley_values(worth, rest)


def _by_seed(played: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    return {player: estimate([values[player] for values in played]) for player in played[0]}
