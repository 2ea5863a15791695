"""From a recipe and its `compare` section to an ordinary recipe with a student a subset."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from distill.compare.subsets import (
    Subset,
    chosen_stages,
    chosen_subsets,
    chosen_tasks,
    chosen_teachers,
)
from distill.recipe.build import RecipeError, join
from distill.recipe.checks import given_twice
from distill.recipe.schema import CompareConfig, Recipe, StageConfig, StudentConfig
from distill.recipe.stages import unseeded

LONGEST_NAME = 200
"""Characters of a student's name, which is a folder's: most file systems take 255 bytes."""


@dataclass(frozen=True)
class Replica:
    """A student of one subset: `student` is the `stage/student` that it was made of, `always` the
    teachers that it learns from in every subset, through however many stages."""

    student: str
    subset: Subset
    always: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What is trained and compared.

    `recipe` is an ordinary one. `teachers` are those that vary; `subsets` go by size, then by the
    recipe's order; `tasks` count in the answer; `replicas` are by their `stage/student` in
    `recipe`, seeds left out, as in the rows of validation.json.
    """

    recipe: Recipe
    teachers: tuple[str, ...]
    subsets: tuple[Subset, ...]
    tasks: tuple[str, ...]
    replicas: dict[str, Replica]


def expand(recipe: Recipe, config: CompareConfig) -> Comparison:
    """The recipe in which each student that learns from a varying teacher is there once a subset.

    A student `vit` becomes `vit.dinov2-siglip` and so on: its teachers are cut to the subset, and
    what it learns from or starts from in an earlier stage is the replica of the same subset. A
    student that no varying teacher reaches stays as it is. Seeds of replicas are `config.seeds`;
    students of one seed start from the same weights and see the same views and sizes, since these
    go by seed and architecture and not by name.

    Raises:
        RecipeError: everything that is wrong with the section, and each student that a subset
            leaves without a teacher.
    """
    found: list[str] = []
    teachers = chosen_teachers(recipe, config, found)
    through = chosen_stages(recipe, config, found)
    tasks = chosen_tasks(recipe, config, found)
    subsets = chosen_subsets(recipe, teachers, config, found)
    if not config.seeds:
        found.append("compare.seeds: is empty; give at least one")
    found += given_twice("compare.seeds", config.seeds)
    if found:
        raise RecipeError(found)

    stages = {name: recipe.stages[name] for name in through}
    reached = _reached(recipe, stages)
    for teacher in teachers:
        if not any(teacher in bases for bases in reached.values()):
            found.append(
                f"compare.teachers: no student of {', '.join(through)} learns from {teacher!r}; "
                "leave it out"
            )
    if found:
        raise RecipeError(found)

    replicas: dict[str, Replica] = {}
    expanded: dict[str, StageConfig] = {}
    for stage, stage_config in stages.items():
        students: dict[str, StudentConfig] = {}
        for name, original in stage_config.students.items():
            path = join(join(join("stages", stage), "students"), name)
            own = _without_left_out(recipe, stages, stage, original)
            bases = reached[f"{stage}/{name}"]
            varies = bool(set(bases) & set(teachers))
            always = tuple(base for base in bases if base not in teachers)
            for subset in subsets if varies else ():
                replica = _replica(recipe, own, subset, teachers, reached, config.seeds)
                called = f"{name}.{subset.name}"
                if not replica.teachers:
                    found.append(
                        f"{path}.teachers: nothing is left of {', '.join(own.teachers)} in the "
                        f"subset {subset.words}; leave the student out, or give compare.subsets "
                        "that all have a teacher of it"
                    )
                    break
                if called in students or called in stage_config.students:
                    found.append(
                        f"{path}: two students would be called {called!r}; rename a teacher"
                    )
                if len(called) > LONGEST_NAME:
                    found.append(
                        f"{path}: {called[:40]}... has {len(called)} characters, and a folder's "
                        f"name may have {LONGEST_NAME}; give the teachers shorter names"
                    )
                students[called] = replica
                replicas[f"{stage}/{called}"] = Replica(f"{stage}/{name}", subset, always)
            if not varies:
                students[name] = own
        expanded[stage] = dataclasses.replace(copy.deepcopy(stage_config), students=students)
    if found:
        raise RecipeError(found)
    assert recipe.validate is not None
    validate = dataclasses.replace(
        copy.deepcopy(recipe.validate),
        stages=[stage for stage in recipe.validate.stages if stage in stages],
    )
    whole = dataclasses.replace(copy.deepcopy(recipe), stages=expanded, validate=validate)
    return Comparison(whole, teachers, subsets, tasks, replicas)


def _reached(recipe: Recipe, stages: dict[str, StageConfig]) -> dict[str, tuple[str, ...]]:
    """The recipe's teachers that each student of `stages` learns from, through all stages before,
    by `stage/student`, in the recipe's order."""
    reached: dict[str, tuple[str, ...]] = {}
    for stage, config in stages.items():
        for name, student in config.students.items():
            own = _without_left_out(recipe, stages, stage, student)
            bases: set[str] = set()
            for reference in [*own.teachers, *([own.init] if own.init else [])]:
                if reference in recipe.teachers:
                    bases.add(reference)
                else:
                    bases |= set(reached.get(unseeded(recipe, reference), ()))
            reached[f"{stage}/{name}"] = tuple(t for t in recipe.teachers if t in bases)
    return reached


def _without_left_out(
    recipe: Recipe, stages: dict[str, StageConfig], stage: str, config: StudentConfig
) -> StudentConfig:
    """The student with references to stages that are left out replaced by what stands there."""
    order = [*recipe.stages]

    def left_out(reference: str, after: str) -> tuple[str, StudentConfig] | None:
        """Stage and entry of a reference; only to an earlier stage, so that no chain is endless."""
        owner, _, name = unseeded(recipe, reference).partition("/")
        if owner in stages or owner not in order[: order.index(after)]:
            return None
        entry = recipe.stages[owner].students.get(name)
        return None if entry is None else (owner, entry)

    def bases(references: Sequence[str], after: str) -> list[str]:
        out: list[str] = []
        for reference in references:
            other = None if reference in recipe.teachers else left_out(reference, after)
            out += [reference] if other is None else bases(other[1].teachers, other[0])
        return list(dict.fromkeys(out))

    own = dataclasses.replace(copy.deepcopy(config), teachers=bases(config.teachers, stage))
    while own.init is not None and (before := left_out(own.init, stage)) is not None:
        stage, entry = before
        own = dataclasses.replace(
            own,
            init=entry.init,
            arch=entry.arch,
            pretrained=entry.pretrained,
            model=copy.deepcopy(entry.model),
        )
    return own


def _replica(
    recipe: Recipe,
    config: StudentConfig,
    subset: Subset,
    varying: tuple[str, ...],
    reached: dict[str, tuple[str, ...]],
    seeds: Sequence[int],
) -> StudentConfig:
    def of_subset(reference: str) -> str:
        plain = unseeded(recipe, reference)
        if not set(reached.get(plain, ())) & set(varying):
            return reference
        # A seed that is named stays named: vit.seed3 -> vit.dinov2.seed3.
        return f"{plain}.{subset.name}{reference[len(plain) :]}"

    return dataclasses.replace(
        copy.deepcopy(config),
        teachers=[
            teacher if teacher in recipe.teachers else of_subset(teacher)
            for teacher in config.teachers
            if teacher not in varying or teacher in subset.teachers
        ],
        init=None if config.init is None else of_subset(config.init),
        seeds=list(seeds),
    )
