"""What may differ between the recipe of a run's folder and the one that goes on in it."""

from __future__ import annotations

from dataclasses import asdict
from functools import reduce
from typing import Any

from distill.recipe.build import join
from distill.recipe.schema import Recipe

Keys = tuple[str, ...]

# The results of micro-batches and of checkpointing differ by the rounding of float32 sums alone,
# but that dropout and stochastic depth draw anew for each micro-batch: who runs out of memory may
# set them and go on.
FREE: tuple[Keys, ...] = (
    *((section,) for section in ("validate", "export", "tracking", "compare", "cache")),
    *(("data", name) for name in ("workers", "max_bad", "shard_cache_gb")),
    *(("teachers", "*", name) for name in ("micro_batch", "device", "shard")),
    ("stages", "*", "balance", "conflicts_every"),
    *(
        ("stages", "*", "train", name)
        for name in (
            "log_every",
            "save_every",
            "max_nonfinite",
            "micro_batch",
            "checkpointing",
            "shard",
            "students_at_once",
        )
    ),
)
"""What does not shape training that is done, and whatever lies in it; `*` is any name."""

ADDED: tuple[Keys, ...] = (("teachers", "*"), ("stages", "*"), ("stages", "*", "students", "*"))
"""What may be new."""

STEPS = ("stages", "*", "train", "steps")

_ABSENT: Any = type("Absent", (), {"__repr__": lambda _: "absent"})()


def fixed_changes(before: Recipe, now: Recipe, settled: frozenset[str]) -> list[str]:
    """Keys that differ and may not, a line each, with both values.

    Args:
        before, now: the recipe that a folder holds, and the one that is to go on.
        settled: stages of which a later one has learnt, whose steps are fixed.
    """
    old, new = asdict(before), asdict(now)
    flat_old, flat_new = _flat(old), _flat(new)
    changed = []
    for keys in sorted(flat_old.keys() | flat_new.keys()):
        was, is_now = flat_old.get(keys, _ABSENT), flat_new.get(keys, _ABSENT)
        if was == is_now or any(_within(keys, free) for free in FREE):
            continue
        if _within(keys, STEPS) and _ABSENT not in (was, is_now):
            if is_now > was and keys[1] not in settled:
                continue
        elif was is _ABSENT and _is_added(keys, old, new):
            continue
        changed.append(f"{reduce(join, keys, '')} is {is_now!r}, was {was!r}")
    return changed


def _flat(value: Any, keys: Keys = ()) -> dict[Keys, Any]:
    if not isinstance(value, dict) or not value:
        return {keys: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, (*keys, name)).items()}


def _within(keys: Keys, pattern: Keys) -> bool:
    return len(keys) >= len(pattern) and all(
        wanted in ("*", key) for key, wanted in zip(keys, pattern, strict=False)
    )


def _is_added(keys: Keys, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a new key lies in a student, stage or teacher that was not there."""
    for pattern in ADDED:
        entry = keys[: len(pattern)]
        if _within(keys, pattern) and _there(new, entry) and not _there(old, entry):
            return True
    return False


def _there(tree: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
