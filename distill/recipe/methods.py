"""Checks of how a stage learns: heads, loss terms, balance, objective, partitions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from distill.recipe.build import join
from distill.recipe.checks import given_twice, no_multiples, unknown_names
from distill.recipe.learning import LOSS_TERMS, LossConfig, MaskedConfig
from distill.recipe.schema import Recipe, StageConfig, TeacherConfig
from students.errors import did_you_mean
from students.features import TOKEN_KINDS

if TYPE_CHECKING:
    from students.encoder import StudentInfo


def check_method(
    recipe: Recipe,
    path: str,
    stage: StageConfig,
    used: list[str],
    students: dict[str, StudentInfo | None],
) -> list[str]:
    """What is wrong with how a stage learns, a line each.

    Args:
        recipe, path, stage: the stage and where it stands in its recipe.
        used: the teachers of its students.
        students: those of them that could be described, by name.
    """
    found = _loss(recipe, f"{path}.loss", stage.loss, used)
    found += _adapters(path, stage, students)
    found += _balance(path, stage)
    found += _masked(recipe, path, stage, used, students)
    found += _partitions(recipe, path, stage, used, students)
    return found


def tokens_of(recipe: Recipe, teacher: str) -> tuple[str, ...]:
    """The token kinds that a teacher of a stage gives; an earlier student gives both."""
    return tuple(recipe.teachers[teacher].tokens) if teacher in recipe.teachers else TOKEN_KINDS


def _loss(recipe: Recipe, path: str, loss: LossConfig, teachers: list[str]) -> list[str]:
    found = []
    for name in loss.teachers:
        if name not in teachers:
            found.append(
                f"{path}.teachers: {name!r} is no teacher of this stage"
                f"{did_you_mean(name, teachers)}"
            )
    own = {join(f"{path}.teachers", name): terms for name, terms in loss.teachers.items()}
    for place, config in {path: loss, **own}.items():
        for kind in TOKEN_KINDS:
            terms: dict[str, float] = getattr(config, kind) or {}
            found += unknown_names(f"{place}.{kind}", [*terms], LOSS_TERMS, "loss term", empty=True)
            for term, weight in terms.items():
                if weight < 0:
                    found.append(f"{place}.{kind}.{term}: {weight:g} must be at least 0")
            if kind == "summary" and terms.get("gram"):
                found.append(
                    f"{place}.summary.gram: compares the patches of an image, and a summary has "
                    "none; write dense: {gram: ...} or summary: {relational: ...}"
                )
    if found:
        return found
    for teacher in teachers:
        given = tokens_of(recipe, teacher)
        faulty = not given or set(given) - set(TOKEN_KINDS)  # which is said at the teacher
        asked = [kind for kind in TOKEN_KINDS if loss.terms(teacher, kind)]
        if not asked:
            return [f"{path}: no term has a weight; give one, as in dense: {{cosine: 1.0}}"]
        if not faulty and not set(asked) & set(given):
            found.append(
                f"{path}: nothing is learnt from {teacher!r}, which gives {', '.join(given)} "
                f"only; the loss has terms for {', '.join(sorted(asked))}"
            )
    return found


def _adapters(path: str, stage: StageConfig, students: dict[str, StudentInfo | None]) -> list[str]:
    from students.adapters import misfit

    found = _idle(f"{path}.adapter", stage.adapter, {"depth": stage.adapter.kind == "attention"})
    for name, config in stage.students.items():
        own, place = config.adapter or stage.adapter, f"{path}.adapter"
        if config.adapter is not None:
            place = f"{join(f'{path}.students', name)}.adapter"
            found += _idle(place, own, {"depth": own.kind == "attention"})
        info = students.get(name)
        fault = None if info is None else misfit(own.kind, info)
        if fault is not None:
            found.append(f"{place}.kind: {fault}")
        if own.kind == "ladder" and stage.objective == "masked":
            found.append(
                f"{place}.kind: a ladder reads every block of a student that sees the whole image, "
                f"and {path}.objective is masked; choose another adapter"
            )
    return list(dict.fromkeys(found))


def _balance(path: str, stage: StageConfig) -> list[str]:
    balance, place = stage.balance, f"{path}.balance"
    goes_with = {"drop": balance.kind == "dropping", "momentum": balance.kind == "magnitude"}
    found = _idle(place, balance, goes_with)
    most = max((len(student.teachers) for student in stage.students.values()), default=0)
    if most < 2 and balance.kind != "fixed":
        found.append(f"{place}.kind: {balance.kind} weighs teachers against each other; give two")
    if balance.conflicts_every is not None:
        if most < 2:
            found.append(f"{place}.conflicts_every: compares two teachers; no student has two")
        if stage.train.shard:
            found.append(
                f"{place}.conflicts_every: compares the gradients of whole weights, and "
                f"{path}.train.shard splits them; leave one of them out"
            )
    return found


def _masked(
    recipe: Recipe,
    path: str,
    stage: StageConfig,
    used: list[str],
    students: dict[str, StudentInfo | None],
) -> list[str]:
    if stage.objective != "masked":
        if stage.masked != MaskedConfig():
            return [f"{path}.masked: goes with objective: masked"]
        return []
    from students.visible import no_masks, takes_masks

    found = []
    if stage.masked.visible == 1:
        found.append(f"{path}.masked.visible: 1 hides nothing; give a share below 1, as 0.25")
    for name, info in students.items():
        config = stage.students[name]
        if info is not None and not takes_masks(info.arch, config.model):
            found.append(f"{join(f'{path}.students', name)}: {no_masks(info.arch)}")
    for teacher in used:
        if "dense" not in tokens_of(recipe, teacher) or not stage.loss.terms(teacher, "dense"):
            found.append(
                f"{path}.objective: masked predicts dense features, and of {teacher!r} none are "
                "learnt; leave it out or give the loss a dense term"
            )
    return found


def _partitions(
    recipe: Recipe,
    path: str,
    stage: StageConfig,
    used: list[str],
    students: dict[str, StudentInfo | None],
) -> list[str]:
    found: list[str] = []
    if not stage.partitions:
        return found
    total = sum(part.share for part in stage.partitions.values())
    seen = set()
    for name, part in stage.partitions.items():
        place = join(f"{path}.partitions", name)
        found += unknown_names(f"{place}.teachers", part.teachers, used, "teacher", empty=True)
        found += no_multiples(f"{place}.image_sizes", part.image_sizes, students)
        seen.update(part.teachers or used)
        images = part.share / total * stage.train.batch_size
        if images < 1:
            found.append(
                f"{place}.share: {part.share:g} of {total:g} is less than one image of "
                f"{path}.train.batch_size, {stage.train.batch_size}"
            )
    for teacher in used:
        if teacher not in seen and seen <= set(used):
            found.append(f"{path}.partitions: {teacher!r} is in none of them")
        config = recipe.teachers.get(teacher)
        if config is not None and config.batch_share < 1:
            found.append(
                f"{join('teachers', teacher)}.batch_share: {path}.partitions say what it sees; "
                "leave batch_share out"
            )
        if config is not None and config.shard:
            found.append(
                f"{join('teachers', teacher)}.shard: all processes have to call it as often, and "
                f"{path}.partitions may give them different numbers of images; leave one out"
            )
    if stage.train.shard:
        found.append(
            f"{path}.train.shard: all processes have to call a sharded student as often, and "
            "partitions may give them different numbers of images; leave one out"
        )
    return found


def momenta(recipe: Recipe) -> list[str]:
    """A line for each teacher with a momentum that no running normaliser follows."""
    found = []
    for name, teacher in recipe.teachers.items():
        stages = [
            stage
            for stage in recipe.stages.values()
            if any(name in student.teachers for student in stage.students.values())
        ]
        used = [stage.normaliser or teacher.normaliser for stage in stages]
        if used and "ema" not in used and teacher.momentum != TeacherConfig.momentum:
            found.append(
                f"{join('teachers', name)}.momentum: goes with normaliser: ema, and what is used "
                f"is {', '.join(dict.fromkeys(used))}"
            )
    return found


def sources_shown(recipe: Recipe, taught: set[str]) -> list[str]:
    """Whether the sources' own teachers are some of a stage, and every teacher is shown images.

    `taught`: the teachers of all stages.
    """
    found = []
    for name, source in recipe.data.train.items():
        place = f"{join('data.train', name)}.teachers"
        found += given_twice(place, source.teachers)
        for index, teacher in enumerate(source.teachers):
            if teacher not in taught:
                hint = did_you_mean(teacher, sorted(taught))
                found.append(f"{place}[{index}]: no student learns from {teacher!r}{hint}")
    listed = [source.teachers for source in recipe.data.train.values()]
    if found or not all(listed) or not listed:
        return found
    shown = {teacher for teachers in listed for teacher in teachers}
    for teacher in sorted(taught - shown):
        found.append(f"data.train: no source shows its images to {teacher!r}")
    return found


def _idle(path: str, config: Any, goes: dict[str, bool]) -> list[str]:
    """A line for each field that is set and does nothing with this `kind`."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return [
        f"{path}.{name}: does nothing with kind: {config.kind}; leave it out"
        for name, does in goes.items()
        if not does and getattr(config, name) != defaults[name]
    ]
