"""`distill teachers`: the families and presets, and what one teacher says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.recipe.build import RecipeError, build
from distill.recipe.render import WIDTH_WITHOUT_TERMINAL
from distill.recipe.resolve import teacher_spec
from distill.recipe.schema import TeacherConfig
from students.errors import UserError
from teachers import (
    FamilyCard,
    Teacher,
    TeacherInfo,
    TeacherSpec,
    all_presets,
    describe_teacher,
    families,
    size_error,
)
from teachers.checkpoint import HUB_ID, Checkpoint, resolve
from teachers.contents import read_json
from teachers.presets import no_preset

FAMILY = ("family", "classes", "summary", "dense", "sizes", "beside")
NUMBERS = ("size", "stride", "parameters", "summary", "dense")
PRESET = ("preset", "family", *NUMBERS, "licence")
UNKNOWN = "unknown until it is fetched"


def print_teachers(console: Console | None = None) -> None:
    """Print every family, then every preset."""
    console = _console(console)
    of_families = [
        (name, card.models, card.summary, card.dense, card.sizes, card.beside)
        for name, card in _cards()
    ]
    console.print(_table(FAMILY, of_families))
    console.print()
    of_presets = [
        (
            preset.name,
            preset.family,
            str(preset.size),
            str(preset.stride),
            "?" if preset.parameters is None else f"{preset.parameters:,}",
            "-" if preset.summary_dim is None else str(preset.summary_dim),
            "-" if preset.dense_dim is None else str(preset.dense_dim),
            preset.licence or "?",
        )
        for preset in all_presets().values()
    ]
    console.print(_table(PRESET, of_presets, right=NUMBERS))


def print_teacher(
    weights: str, overrides: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print what one teacher says of itself; no weights are loaded and nothing is fetched.

    `weights` is a preset, "builtin:NAME", a local folder, a hub id, or a name that a library knows;
    `overrides` are keys of a recipe's teacher, `family=dinov2`.

    Raises:
        UserError: if there is no such teacher, its family cannot be told, or a key is wrong.
    """
    spec = chosen_spec(weights, overrides)
    info = describe_teacher(spec)
    for size in spec.sizes:
        problem = size_error(info, size)
        if problem:
            raise UserError(problem)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    known = all_presets().get(weights)
    rows = _facts(info)
    if known is not None:
        rows = [("preset", known.name), *rows, ("source", known.read)]
    for key, value in rows:
        table.add_row(key, Text(value))
    _console(console).print(table)


def markdown() -> str:
    """The table of families as docs/teachers.md has it."""
    lines = [
        "| family | classes | summary | dense | other sizes than its own | beside | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {card.models} | {card.summary} | {card.dense} | {card.sizes} | "
        f"{card.beside} | {card.weights} |"
        for name, card in _cards()
    ]
    return "\n".join(lines)


def chosen_spec(weights: str, overrides: Sequence[str] = ()) -> TeacherSpec:
    """The teacher that `weights` and keys of a recipe's teacher name, its family found if need be.

    Raises:
        UserError: if a key is wrong or the family cannot be told.
    """
    if "=" in weights:
        raise UserError(f"{weights!r} is no teacher: the teacher comes first, then key=value")
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise UserError(f"{wrong[0]!r}: a key of the teacher is written key=value")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from None
    problems: list[str] = []
    config = build(TeacherConfig, {"weights": weights, **dict(values)}, "", problems)  # type: ignore[arg-type]
    if problems:
        raise RecipeError(problems)
    if config.family is None and weights not in all_presets():
        config.family = find_family(weights)
    return teacher_spec(config)


def find_family(weights: str) -> str:
    """The family of a checkpoint, from its files where they are here, else from its name.

    Raises:
        UserError: if neither says it.
    """
    folder = _folder(weights)
    found = _family_of_files(weights, folder) if folder else _family_of_name(weights)
    if found is not None:
        return found
    remedy = f"add family=..., one of {', '.join(families())}"
    if folder is not None:
        raise UserError(f"{weights!r}: its files do not say which family it is of; {remedy}")
    raise UserError(
        f"{no_preset(weights)}, and no folder or fetched model that says its family; {remedy}"
    )


def _folder(weights: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    if weights.startswith("builtin:"):
        return resolve(weights).folder
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    if HUB_ID.fullmatch(weights):
        for name in ("config.json", "open_clip_config.json"):
            file = try_to_load_from_cache(weights, name)
            if isinstance(file, str):
                return Path(file).parent
    return None


def _family_of_files(weights: str, folder: Path) -> str | None:
    if (folder / "adapters.json").is_file():
        return "student"
    fields = read_json(Checkpoint(weights, folder, fetched=False), "config.json") or {}
    for name, family in families().items():
        if fields.get("model_type") in getattr(family, "model_types", ()):
            return name
    if "architecture" in fields:
        return "timm"
    return "open_clip" if (folder / "open_clip_config.json").is_file() else None


def _family_of_name(weights: str) -> str | None:
    import open_clip
    import timm

    for preset in all_presets().values():
        if preset.weights == weights:
            return preset.family
    if timm.is_model(weights.removeprefix("timm/").partition(".")[0]):
        return "timm"
    name, _, tag = weights.partition(":")
    return "open_clip" if tag in open_clip.list_pretrained_tags_by_model(name) else None


def _facts(info: TeacherInfo) -> list[tuple[str, str]]:
    family = families()[info.spec.family]
    statistics = UNKNOWN
    if info.mean and info.std:
        mean, std = (
            ", ".join(f"{value:g}" for value in values) for values in (info.mean, info.std)
        )
        statistics = f"mean {mean}; std {std} ({info.statistics_from})"
    known = info.stride is not None
    return [
        ("family", f"{info.spec.family} ({family.card.models})"),
        ("weights", info.source),
        ("fetched", "yes" if info.fetched else "not yet; a run will fetch it"),
        ("licence", info.licence or ("not stated" if info.fetched else UNKNOWN)),
        ("parameters", f"{info.parameters:,}" if info.parameters else UNKNOWN),
        ("native size", f"{info.size} pixels" if info.size else UNKNOWN),
        ("other sizes", family.card.sizes),
        ("stride", f"{info.stride} pixels" if info.stride else UNKNOWN),
        ("summary", _tokens(info.summary_dim, family.card.summary, known)),
        ("dense", _tokens(info.dense_dim, family.card.dense, known)),
        ("layers", _layers(info.layers, known)),
        ("pixels", statistics),
        ("text tower", _text_tower(family)),
        ("mask decoder", _mask_decoder(family)),
    ]


def _tokens(width: int | None, what: str, known: bool) -> str:
    if width is None:
        return "none" if known else UNKNOWN
    return f"{width} wide: {what}"


def _layers(layers: int | None, known: bool) -> str:
    if layers is None:
        return "the last only" if known else UNKNOWN
    return f"1 to {layers} (layer: N gives the dense tokens after block N)"


def _text_tower(family: type[Teacher]) -> str:
    has = family.text_tower is not Teacher.text_tower
    return "of this family, where the checkpoint holds it" if has else "none"


def _mask_decoder(family: type[Teacher]) -> str:
    if family.mask_decoder is not Teacher.mask_decoder:
        return "of dense features, a student's too"
    if family.segment is not Teacher.segment:
        return "of this encoder's own pixels only"
    return "none"


def _cards() -> list[tuple[str, FamilyCard]]:
    return [(name, family.card) for name, family in families().items()]


def _console(console: Console | None) -> Console:
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    return console


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
