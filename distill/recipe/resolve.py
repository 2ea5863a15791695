"""What a recipe refers to: teachers, architectures, earlier students, folders, image sources.

Everything here is worked out from names and configuration files; no weight is loaded.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from distill.recipe.build import NAME, NAME_RULE, build, join
from distill.recipe.checks import Survey, no_multiples, unknown_names
from distill.recipe.methods import momenta, sources_shown
from distill.recipe.schema import (
    TASKS,
    Recipe,
    TeacherConfig,
    ValidateConfig,
)
from distill.recipe.stages import check_stage
from distill.trackers import tracking_problems
from students.errors import UserError, did_you_mean
from students.features import TOKEN_KINDS

if TYPE_CHECKING:
    from teachers import TeacherSpec


def problems(recipe: Recipe) -> list[str]:
    """What hinders a run of `recipe`: a line each, `path: what is wrong`; empty if nothing does."""
    return survey(recipe).problems


def survey(recipe: Recipe) -> Survey:
    """Describe every teacher and student of `recipe`, and collect its problems."""
    result = Survey()
    # A recipe made in Python has not been through the reader of YAML.
    build(Recipe, dataclasses.asdict(recipe), "", result.problems)
    if result.problems:
        return result
    _top(recipe, result.problems)
    result.problems += tracking_problems(recipe.tracking)
    for name, teacher in recipe.teachers.items():
        _teacher(name, teacher, result)
    for name in recipe.stages:
        check_stage(recipe, name, result)
    result.problems += sources_shown(recipe, _taught(recipe)) + momenta(recipe)
    if recipe.validate is not None:
        _validate(recipe, recipe.validate, result)
        _inverses(recipe, recipe.validate, result)
    result.problems = list(dict.fromkeys(result.problems))
    return result


def teacher_spec(config: TeacherConfig) -> TeacherSpec:
    """The recipe's teacher as the `teachers` package takes it.

    Raises:
        UserError: as `with_preset`.
    """
    from teachers import TeacherSpec

    config = with_preset(config)
    assert config.family is not None
    return TeacherSpec(
        family=config.family,
        weights=config.weights,
        sizes=tuple(config.sizes),
        tokens=tuple(config.tokens),
        dtype=config.dtype,
        layer=config.layer,
        micro_batch=config.micro_batch,
        mean=None if config.mean is None else tuple(config.mean),
        std=None if config.std is None else tuple(config.std),
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )


def with_preset(config: TeacherConfig) -> TeacherConfig:
    """The same teacher with its family and its checkpoint, where `weights` is a preset's name.

    Raises:
        UserError: if the preset is of another family than the one given, if a folder here has its
            name, or if there is neither a preset nor a family.
    """
    from teachers import all_presets, families
    from teachers.presets import no_preset

    found = all_presets().get(config.weights)
    if found is None and config.family is not None:
        return config
    if found is None:
        raise UserError(
            f"family: missing, and weights {no_preset(config.weights)}; "
            f"give one of {', '.join(families())}"
        )
    if config.family not in (None, found.family):
        raise UserError(
            f"family: the preset {found.name!r} is of family {found.family!r}, not "
            f"{config.family!r}; leave family out, or name other weights"
        )
    if Path(config.weights).is_dir():
        raise UserError(
            f"weights: {found.name!r} is a preset and a folder here; write ./{found.name} and its "
            f"family for the folder, {found.weights} and family {found.family} for the preset"
        )
    return dataclasses.replace(config, family=found.family, weights=found.weights)


def validation_sizes(recipe: Recipe, validate: ValidateConfig) -> list[int]:
    """The image sizes of the probes: those given, else the first size of the last stage."""
    return validate.sizes or [*recipe.stages.values()][-1].image_sizes[:1]


def watched_size(recipe: Recipe, validate: ValidateConfig, stage: str) -> int:
    """The image size of the probes while a stage trains: the first of those given, else of the
    stage's own."""
    return (validate.sizes or recipe.stages[stage].image_sizes)[0]


def _taught(recipe: Recipe) -> set[str]:
    """The teachers of all students."""
    stages = recipe.stages.values()
    return {name for stage in stages for one in stage.students.values() for name in one.teachers}


def _top(recipe: Recipe, found: list[str]) -> None:
    from distill.data.sources import check_source

    if not NAME.fullmatch(recipe.name):
        found.append(f"name: {recipe.name!r} is no name ({NAME_RULE})")
    for path, mapping in (("data.train", recipe.data.train), ("stages", recipe.stages)):
        if not mapping:
            found.append(f"{path}: is empty; give at least one")
    for name, source in recipe.data.train.items():
        fault = check_source(source.source, allow_pipe=source.allow_pipe)
        if fault:
            found.append(f"{join('data.train', name)}.source: {fault}")
    scale = recipe.data.views.scale
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        found.append(f"data.views.scale: {scale} is no [least, most] share of an image in (0, 1]")


def _teacher(name: str, config: TeacherConfig, result: Survey) -> None:
    from teachers import describe_teacher, families, size_error

    path, found = join("teachers", name), result.problems
    _device(path, config, found)
    try:
        spec = teacher_spec(config)
    except UserError as error:
        found.append(f"{path}.{error}")
        return
    known = families()
    if spec.family not in known:
        hint = did_you_mean(spec.family, known)
        found.append(f"{path}.family: unknown family {spec.family!r}{hint}")
    wrong = unknown_names(f"{path}.tokens", config.tokens, TOKEN_KINDS, "token kind")
    found += wrong
    if wrong or spec.family not in known:
        return
    try:
        info = describe_teacher(spec)
    except UserError as error:
        found.append(f"{path}.weights: {str(error).removeprefix('weights ')}")
        return
    result.teachers[name] = info
    widths = {"summary": info.summary_dim, "dense": info.dense_dim}
    lacking = [kind for kind in config.tokens if info.stride is not None and widths[kind] is None]
    if lacking:
        rest = [kind for kind in TOKEN_KINDS if widths[kind] is not None]
        found.append(
            f"{path}.tokens: {spec.family} teachers have no {lacking[0]}; "
            f"give tokens: [{', '.join(rest)}]"
        )
    for index, size in enumerate(config.sizes):
        fault = size_error(info, size)
        if fault:
            found.append(f"{path}.sizes[{index}]: {fault}")


def _device(path: str, config: TeacherConfig, found: list[str]) -> None:
    """Whether a teacher's device is one, on whatever machine."""
    import torch

    if config.device is None:
        return
    try:
        torch.device(config.device)
    except RuntimeError:
        found.append(f"{path}.device: {config.device!r} is no device; write cpu, cuda or cuda:N")
    if config.shard:
        found.append(
            f"{path}.shard: a sharded teacher is on the devices of all processes; leave out its "
            f"device, {config.device}"
        )


def _validate(recipe: Recipe, validate: ValidateConfig, result: Survey) -> None:
    from teachers import size_error

    found = result.problems
    found += unknown_names("validate.tasks", validate.tasks, TASKS, "task", empty=True)
    never = validate.every is None
    found += unknown_names("validate.fast", validate.fast, TASKS, "task", empty=never)
    found += unknown_names(
        "validate.stages", validate.stages, [*recipe.stages], "stage", empty=True
    )
    if not recipe.stages:
        return
    stages = validate.stages or [*recipe.stages]
    probed = {name: info for name, info in result.students.items() if name.split("/")[0] in stages}
    sizes = validation_sizes(recipe, validate)
    wrong = no_multiples("validate.sizes", sizes, probed)
    if wrong and not validate.sizes:
        wrong = [
            f"{line} (validate.sizes is by default {sizes}, the first of the last stage)"
            for line in wrong
        ]
    if not never:
        # While they train, the students of all stages are probed at the first of these.
        others = {n: info for n, info in result.students.items() if n not in probed}
        wrong += no_multiples("validate.sizes", validate.sizes[:1], others)
    found += wrong
    for size in sizes if not wrong else ():
        for name, teacher in result.teachers.items():
            fault = size_error(teacher, size)
            if fault:
                found.append(f"validate.sizes: {join('teachers', name)}: {fault}")


def _inverses(recipe: Recipe, validate: ValidateConfig, result: Survey) -> None:
    """A mask decoder needs features in its teacher's own scale; a text tower only directions."""
    from students.normalisers import INVERTIBLE
    from teachers import Teacher, families

    asked = {"tasks": validate.tasks, "fast": [] if validate.every is None else validate.fast}
    where = next((f"validate.{name}" for name, tasks in asked.items() if "masks" in tasks), None)
    for name, info in result.teachers.items():
        decodes = families()[info.spec.family].mask_decoder is not Teacher.mask_decoder
        if where is None or not decodes:
            continue
        for stage_name, stage in recipe.stages.items():
            if not any(name in student.teachers for student in stage.students.values()):
                continue
            normaliser, place = recipe.teachers[name].normaliser, join("teachers", name)
            if stage.normaliser is not None:
                normaliser, place = stage.normaliser, join("stages", stage_name)
            if not INVERTIBLE[normaliser]:
                result.problems.append(
                    f"{place}.normaliser: {normaliser!r} has no inverse, and "
                    f"the task masks ({where}) needs features in {name}'s own space: "
                    "choose another normaliser or leave the task out"
                )
