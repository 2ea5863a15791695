"""Which subsets of the teachers are compared, and which stages and tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from distill.recipe.build import shown
from distill.recipe.checks import given_twice, unknown_names
from distill.recipe.schema import SUBSETS, CompareConfig, Recipe
from students.errors import did_you_mean


@dataclass(frozen=True)
class Subset:
    """Some of the teachers that vary, in the recipe's order."""

    teachers: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it stands in names of students: dinov2-siglip."""
        return "-".join(self.teachers)

    @property
    def words(self) -> str:
        """As a reader is told of it: dinov2 + siglip."""
        return " + ".join(self.teachers)


def chosen_teachers(recipe: Recipe, config: CompareConfig, found: list[str]) -> tuple[str, ...]:
    """The teachers that vary, in the recipe's order; what is wrong goes to `found`."""
    names = config.teachers or [*recipe.teachers]
    found += unknown_names("compare.teachers", names, recipe.teachers, "teacher")
    if not found and len(names) < 2:
        found.append(
            f"compare.teachers: only {names[0]} varies; give at least two, or nothing for all"
        )
    return tuple(name for name in recipe.teachers if name in names)


def chosen_stages(recipe: Recipe, config: CompareConfig, found: list[str]) -> list[str]:
    """The stages to go through, in the recipe's order; what is wrong goes to `found`."""
    names = config.through or [*recipe.stages]
    found += unknown_names("compare.through", names, recipe.stages, "stage")
    return [name for name in recipe.stages if name in names]


def chosen_tasks(recipe: Recipe, config: CompareConfig, found: list[str]) -> tuple[str, ...]:
    """The tasks that count, in the order probed; what is wrong goes to `found`."""
    validate = recipe.validate
    if validate is None or not validate.tasks:
        found.append("compare: nothing is probed; give validate.tasks")
        return ()
    for task in config.tasks:
        if task not in validate.tasks:
            hint = did_you_mean(task, validate.tasks)
            found.append(f"compare.tasks: {task!r} is not among validate.tasks{hint}")
    found += given_twice("compare.tasks", config.tasks)
    return tuple(t for t in validate.tasks if t in config.tasks or not config.tasks)


def chosen_subsets(
    recipe: Recipe, teachers: tuple[str, ...], config: CompareConfig, found: list[str]
) -> tuple[Subset, ...]:
    """The subsets by size, then by the recipe's order; what is wrong goes to `found`."""
    count = len(teachers)
    if config.subsets == "all":
        chosen = [c for size in range(1, count + 1) for c in combinations(teachers, size)]
    elif config.subsets == "leave_one_out":
        chosen = [teachers, *combinations(teachers, count - 1)]
    else:
        chosen = _listed(recipe, teachers, config.subsets, found)
    for size in config.sizes:
        if not 1 <= size <= count:
            found.append(
                f"compare.sizes: {size} is no number of teachers in a subset; {count} vary "
                f"({', '.join(teachers)})"
            )
    found += given_twice("compare.sizes", config.sizes)
    kept = [one for one in chosen if not config.sizes or len(one) in config.sizes]
    if not found and len(kept) < 2:
        what = f"only {' + '.join(kept[0])} is left" if kept else "no subset is left"
        key = "sizes" if config.sizes else "subsets"
        found.append(f"compare.{key}: {what}; a comparison takes at least two")
    kept.sort(key=lambda one: (len(one), [teachers.index(name) for name in one]))
    return tuple(Subset(one) for one in kept)


def _listed(
    recipe: Recipe, teachers: tuple[str, ...], value: object, found: list[str]
) -> list[tuple[str, ...]]:
    path = "compare.subsets"
    if isinstance(value, str):
        found.append(f"{path}: {value!r} is no choice{did_you_mean(value, SUBSETS)}")
        return []
    entries = list(value) if isinstance(value, list | tuple) else None
    if entries and all(isinstance(entry, str) for entry in entries):
        found.append(
            f"{path}: each subset is a list of its own; write [[{', '.join(map(str, entries))}]]"
        )
        return []
    if entries is None or not all(
        isinstance(entry, list | tuple) and all(isinstance(name, str) for name in entry)
        for entry in entries
    ):
        found.append(
            f"{path}: expected {', '.join(SUBSETS)} or a list of lists of teachers, got "
            f"{shown(value)}"
        )
        return []
    chosen: list[tuple[str, ...]] = []
    for index, entry in enumerate(entries):
        place = f"{path}[{index}]"
        if not entry:
            found.append(f"{place}: names no teacher; give at least one of {', '.join(teachers)}")
            continue
        for name in entry:
            if name in recipe.teachers and name not in teachers:
                found.append(f"{place}: {name!r} does not vary; add it to compare.teachers")
        known = [name for name in entry if name not in recipe.teachers]
        found += unknown_names(place, known, teachers, "teacher", empty=True)
        found += given_twice(place, [name for name in entry if name in recipe.teachers])
        chosen.append(tuple(name for name in teachers if name in entry))
    for one, times in Counter(chosen).items():
        if one and times > 1:
            found.append(f"{path}: {' + '.join(one)} is given {times} times")
    return chosen
