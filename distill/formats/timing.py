"""Latency of several ways to do one thing, in turns, so that a busy machine is busy for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

WARM_UP = 2
"""Rounds that are not counted: the first allocates, and libraries choose kernels."""


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, by name.

    Rounds of one call each, every other round in the opposite order, for what runs after another
    finds other caches; at least `least` of them, at most `most`, none begun after `seconds` for
    each name.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    began = clock()
    number = -WARM_UP
    while number < least or (number < most and clock() - began < seconds * len(names)):
        if number == 0:
            began = clock()
        for name in names if number % 2 == 0 else names[::-1]:
            start = clock()
            runs[name]()
            taken = clock() - start
            if number >= 0:
                times[name].append(taken)
        number += 1
    return times


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast `fast` is as `slow`: the median over rounds."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))
