"""Checks of a stage: its students, what they start and learn from, sizes, loss, optimisation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from distill.recipe.build import join
from distill.recipe.checks import Survey, given_twice, no_multiples
from distill.recipe.methods import check_method
from distill.recipe.schema import Recipe, StageConfig, StudentConfig
from students.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from students.encoder import StudentInfo

RUN_FILES = (
    "recipe.yaml",
    "environment.json",
    "validation.json",
    "report.html",
    "pictures",
    "bad_samples.jsonl",
)
STAGE_FILES = ("log.jsonl", "nonfinite.jsonl")
CHECKPOINT = re.compile(r"checkpoint(-\d+)?")


def check_stage(recipe: Recipe, name: str, result: Survey) -> None:
    """Describe the students of stage `name`; add them and its problems to `result`."""
    stage, path, found = recipe.stages[name], join("stages", name), result.problems
    if name in RUN_FILES:
        found.append(f"{path}: is the name of a file or folder of every run; choose another")
    if not stage.students:
        found.append(f"{path}.students: is empty; give at least one")
    if not stage.image_sizes:
        found.append(f"{path}.image_sizes: is empty; give at least one, as in [224]")
    for student_name, student in stage.students.items():
        _student(recipe, name, student_name, student, result)
    mine = {n: result.students.get(f"{name}/{n}") for n in stage.students}
    used = {t for s in stage.students.values() for t in s.teachers}
    order = list(recipe.stages)
    learners = {
        reference: result.students.get(unseeded(recipe, reference))
        for reference in sorted(used - set(recipe.teachers))
        if reference.partition("/")[0] in order[: order.index(name)]
    }
    found += _teacher_sizes(recipe, path, stage, sorted(used), result)
    # Earlier students are shown the same sizes as these, unless there are some for them.
    shown = mine if stage.teacher_sizes else mine | learners
    found += no_multiples(f"{path}.image_sizes", stage.image_sizes, shown)
    found += no_multiples(f"{path}.teacher_sizes", stage.teacher_sizes, learners)
    found += check_method(recipe, path, stage, sorted(used), mine)
    train = stage.train
    for teacher in sorted(used & set(recipe.teachers)):
        share = recipe.teachers[teacher].batch_share
        if share * train.batch_size < 1:
            found.append(
                f"{join('teachers', teacher)}.batch_share: {share:g} of {path}.train.batch_size, "
                f"{train.batch_size}, is less than one image"
            )
    if train.min_lr > train.lr:
        found.append(f"{path}.train.min_lr: {train.min_lr:g} is more than lr, {train.lr:g}")
    if len(train.betas) != 2 or not all(0 <= beta < 1 for beta in train.betas):
        found.append(f"{path}.train.betas: {train.betas} is no pair of numbers in [0, 1)")


def _teacher_sizes(
    recipe: Recipe, path: str, stage: StageConfig, used: list[str], result: Survey
) -> list[str]:
    """Whether the teachers without sizes of their own take `teacher_sizes`."""
    from teachers import size_error

    if not stage.teacher_sizes:
        return []
    bound = [t for t in used if t not in recipe.teachers or not recipe.teachers[t].sizes]
    if not bound:
        return [
            f"{path}.teacher_sizes: every teacher of this stage has sizes of its own "
            "(teachers.NAME.sizes), so these would do nothing"
        ]
    return [
        f"{path}.teacher_sizes[{index}]: {fault}"
        for teacher in bound
        if (info := result.teachers.get(teacher)) is not None
        for index, size in enumerate(stage.teacher_sizes)
        if (fault := size_error(info, size))
    ]


def unseeded(recipe: Recipe, reference: str) -> str:
    """`stage/student` for `stage/student.seed3`, where that student is trained for seed 3."""
    owner, _, student = reference.partition("/")
    stage = recipe.stages.get(owner)
    for name, config in stage.students.items() if stage else ():
        if student in [f"{name}.seed{seed}" for seed in config.seeds]:
            return f"{owner}/{name}"
    return reference


def _student(recipe: Recipe, stage: str, name: str, config: StudentConfig, result: Survey) -> None:
    path, found = f"{join(join('stages', stage), 'students')}", result.problems
    path = join(path, name)
    if CHECKPOINT.fullmatch(name) or name in STAGE_FILES:
        found.append(f"{path}: is the name of a file or folder of every stage; choose another")
    if not config.teachers:
        found.append(f"{path}.teachers: is empty; give at least one")
    for index, teacher in enumerate(config.teachers):
        if teacher not in recipe.teachers:
            fault = _no_student(recipe, stage, config, teacher, [*recipe.teachers])
            if fault:
                found.append(f"{path}.teachers[{index}]: {fault}")
    if f"{stage}/{name}" != unseeded(recipe, f"{stage}/{name}"):
        found.append(f"{path}: is also the name of one seed of another student; choose another")
    for key, values in (("teachers", config.teachers), ("seeds", config.seeds)):
        found += given_twice(f"{path}.{key}", values)
    if (config.arch is None) == (config.init is None):
        got = "both are given" if config.arch is not None else "neither is given"
        found.append(f"{path}: give either arch (a new student) or init (one to go on from); {got}")
        return
    if config.init is not None:
        for key in ("model", "pretrained"):
            if getattr(config, key):
                found.append(f"{path}.{key}: goes with arch; init brings its own architecture")
        described = _initial(recipe, stage, config, f"{path}.init", result)
    else:
        described = _new(recipe.stages[stage], config, path, found)
    if described is not None:
        _within_cap(config, described, path, found)
        result.students[f"{stage}/{name}"] = described


def _new(
    stage: StageConfig, config: StudentConfig, path: str, found: list[str]
) -> StudentInfo | None:
    import timm

    from students.encoder import describe_student

    assert config.arch is not None
    if not timm.is_model(config.arch):
        hint = did_you_mean(config.arch, timm.list_models())
        found.append(f"{path}.arch: unknown architecture {config.arch!r}{hint}")
        return None
    size = next((size for size in stage.image_sizes if size > 0), 224)
    try:
        return describe_student(config.arch, size=size, overrides=config.model)
    except UserError as error:
        found.append(f"{path}.{'model' if config.model else 'arch'}: {error}")
        return None


def _initial(
    recipe: Recipe, stage: str, config: StudentConfig, path: str, result: Survey
) -> StudentInfo | None:
    init = config.init or ""
    folder = Path(init)
    if init.split("/")[0] in recipe.stages or not folder.is_dir():
        fault = _no_student(recipe, stage, config, init, [])
        if fault and "/" in init and init.split("/")[0] not in recipe.stages:
            fault += ", and no such folder"
        if fault:
            result.problems.append(f"{path}: {fault}")
        return None if fault else result.students.get(unseeded(recipe, init))
    from students.encoder import describe_student

    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            result.problems.append(f"{path}: {init} is no exported student: it has no {file}")
            return None
    try:
        card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = int(card["pretrained_cfg"]["input_size"][-1])
        return describe_student(card["architecture"], size=size, overrides=card["model_args"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        fault = f"{init}/config.json is not that of an exported student ({error!r})"
    except (OSError, UserError) as error:
        fault = f"{init}: {error}"
    result.problems.append(f"{path}: {fault}")
    return None


def _within_cap(config: StudentConfig, info: StudentInfo, path: str, found: list[str]) -> None:
    from students.encoder import MAX_PARAMETERS, too_large

    if info.parameter_count >= MAX_PARAMETERS and not config.proxy:
        key = "arch" if config.arch is not None else "init"
        found.append(f"{path}.{key}: {too_large(info.arch, info.parameter_count)}")


def _no_student(
    recipe: Recipe, stage: str, config: StudentConfig, name: str, known: list[str]
) -> str | None:
    """Why `name` is no student of a stage before `stage`; None if it is one."""
    order = list(recipe.stages)
    earlier = order[: order.index(stage)]
    owner, _, student = unseeded(recipe, name).partition("/")
    if owner in earlier and student in recipe.stages[owner].students:
        trained = recipe.stages[owner].students[student].seeds
        lacking = [seed for seed in config.seeds or [recipe.seed] if seed not in trained]
        if not trained or not lacking or name != f"{owner}/{student}":
            return None
        return (
            f"{name!r} is trained for the seeds {', '.join(map(str, trained))}, and this student "
            f"for {lacking[0]}; give seeds that both have, or name one: {name}.seed{trained[0]}"
        )
    if owner in recipe.stages and student in recipe.stages[owner].students:
        where = "of this same stage" if owner == stage else f"of the later stage {owner!r}"
        return f"{name!r} is a student {where}; only a student of an earlier stage will do"
    students = [f"{e}/{s}" for e in earlier for s in recipe.stages[e].students]
    what = "neither a teacher nor an" if known else "no"
    hint = did_you_mean(name, [*known, *students])
    return f"{name!r} is {what} earlier stage/student{hint}"
