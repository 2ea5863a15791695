"""Reading a recipe: the file, its interpolations, the overrides of the command line."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from distill.recipe.build import RecipeError, build, hints, in_words, join, optional
from distill.recipe.schema import Recipe
from students.errors import UserError, did_you_mean

__all__ = [
    "RecipeError",
    "find_recipe",
    "from_dict",
    "load_as",
    "load_recipe",
    "prepare",
    "shipped_recipes",
    "to_yaml",
]

SUFFIXES = (".yaml", ".yml")
# A recipe is some five mappings deep; an interpolation that contains itself has no end.
DEEPEST = 30


def load_recipe(
    path_or_name: str | Path, overrides: Iterable[str] = (), everything: bool = False
) -> Recipe:
    """Read a recipe and apply overrides `a.b.c=value` (OmegaConf's dot list) to it.

    `path_or_name` is a file, or a name such as `quickstart`, which is looked for in the current
    folder and then among the recipes shipped with the package. An override sets a key that
    exists; a new entry of a mapping of named things is given whole
    (`teachers.x={family: dinov2, weights: ...}`); a mapping is merged into the one that is there.

    Only what can be told from the recipe by itself is checked here: keys, types, ranges, choices.
    With `everything`, where one of these is wrong, what the recipe refers to is looked at too, so
    that a user is told all at once.

    Raises:
        UserError: there is no such file, or it is no YAML mapping.
        RecipeError: everything that is wrong with the recipe and the overrides, at once.
    """
    path = find_recipe(path_or_name)
    config = _read(path)
    if "models" in config and "stages" not in config:
        raise UserError(f"{path} is no recipe but a plan for `distill validate`")
    return _recipe(*_overridden(config, overrides), everything)


def prepare(recipe: Recipe | str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe with its overrides, read if it is a file or a name, and found without fault.

    Beyond `load_recipe`, whatever it refers to is looked at: teachers, architectures, earlier
    students, folders, sizes. No weight is loaded.

    Raises:
        UserError: there is no such file, or it is no YAML mapping.
        RecipeError: everything that is wrong with the recipe and the overrides, at once.
    """
    from distill.recipe.resolve import problems

    if isinstance(recipe, Recipe):
        recipe = _recipe(*_overridden(_plain(recipe), overrides), everything=True)
    else:
        recipe = load_recipe(recipe, overrides, everything=True)
    found = problems(recipe)
    if found:
        raise RecipeError(found)
    return recipe


def load_as(kind: Any, path_or_name: str | Path, overrides: Iterable[str] = ()) -> Any:
    """A YAML file of another dataclass than Recipe, found and overridden as a recipe is.

    Raises:
        UserError, RecipeError: as `load_recipe`.
    """
    config, problems = _overridden(_read(find_recipe(path_or_name)), overrides, kind)
    made, _, faults, _ = _built(kind, config)
    if problems or faults:
        raise RecipeError([*problems, *faults])
    return made


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain mappings, checked as `load_recipe` does (`RecipeError`)."""
    problems: list[str] = []
    recipe = build(Recipe, values, "", problems)
    if problems:
        raise RecipeError(problems)
    return _with_presets(recipe)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back as it is."""
    return OmegaConf.to_yaml(_plain(recipe))


def shipped_recipes() -> Path:
    """The folder of the recipes that come with the package (in a checkout, /recipes)."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe: the path itself, with `.yaml`, or one of the shipped recipes.

    Raises:
        UserError: there is none; the message has the nearest name.
    """
    text = str(path_or_name)
    names = [text] if text.endswith(SUFFIXES) else [text, *(text + suffix for suffix in SUFFIXES)]
    for folder in (Path(), shipped_recipes()):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    if "=" in text:
        raise UserError(f"{text!r} is no recipe: the recipe comes first, then key=value")
    known = [file.stem for file in shipped_recipes().glob("*.yaml")]
    beside = Path(text).parent
    known += [str(file) for file in beside.glob("*") if file.suffix in SUFFIXES]
    near = Path(text).stem if beside == Path() else text
    raise UserError(f"there is no recipe {text!r}{did_you_mean(near, known)}")


def _read(path: Path) -> DictConfig:
    try:
        config = OmegaConf.create(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem} (YAML)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: no YAML text: {reason}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{path}: its aliases (&name, *name) contain themselves") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    # OmegaConf reads a lone word as a mapping from it to nothing.
    plain = OmegaConf.to_container(config)
    lone = isinstance(plain, dict) and list(plain.values()) in ([], [None])
    if not isinstance(config, DictConfig) or lone:
        raise UserError(f"{path}: a recipe is {in_words(Recipe)}; this is none")
    return config


def _plain(recipe: Recipe) -> DictConfig:
    return OmegaConf.create(_escaped(dataclasses.asdict(recipe)))


def _overridden(
    config: DictConfig, overrides: Iterable[str], kind: Any = Recipe
) -> tuple[DictConfig, list[str]]:
    problems: list[str] = []
    for override in overrides:
        _override(config, override, kind, problems)
    return config, problems


def _built(kind: Any, config: DictConfig) -> tuple[Any, Any, list[str], list[str]]:
    """An instance of `kind`, the plain values that it was made of, all that is wrong with them, and
    of that what `build` found."""
    unresolved: list[str] = []
    values = _resolved(config, "", unresolved)
    found: list[str] = []
    made = build(kind, values, "", found)
    # What an interpolation that failed left out is not missing as well.
    failed = tuple(line.split(": ", 1)[0] + ":" for line in unresolved)
    problems = [*unresolved, *(line for line in found if not line.startswith(failed))]
    return made, values, problems, found


def _recipe(config: DictConfig, problems: list[str], everything: bool) -> Recipe:
    recipe, values, faults, found = _built(Recipe, config)
    problems = [*problems, *faults]
    if problems:
        more = _beyond(values, found) if everything else []
        raise RecipeError(list(dict.fromkeys([*problems, *more])))
    return _with_presets(recipe)


def _with_presets(recipe: Recipe) -> Recipe:
    """`recipe`, presets replaced by what they stand for; a fault in one is for `survey` to say."""
    from distill.recipe.resolve import with_preset

    for name, config in recipe.teachers.items():
        with contextlib.suppress(UserError):
            recipe.teachers[name] = with_preset(config)
    return recipe


def _beyond(values: Any, faults: list[str]) -> list[str]:
    """What else is wrong with a recipe that is not well-formed: teachers, sizes, folders, ...

    The keys with `faults` are left out, for their defaults; where one has none, what refers to
    its entry could not be judged, and nothing is said.
    """
    from distill.recipe.resolve import problems

    kept = copy.deepcopy(values)
    for fault in faults:
        path = fault.split(": ", 1)[0]
        try:
            *parents, last = _split(path.split("[", 1)[0] if path.endswith("]") else path)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError):
            return []
        node = kept
        for key in parents:
            node = node.get(key, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):
            node.pop(last, None)
    again: list[str] = []
    recipe = build(Recipe, kept, "", again)
    return [] if again else problems(recipe)


def _resolved(node: Any, path: str, problems: list[str], depth: int = 0) -> Any:
    """`node` as plain Python, interpolations (`${a.b}`) replaced by what they stand for."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if depth > DEEPEST:
        raise RecipeError([f"{path.split('.')[0][:40]}: an interpolation that contains itself"])
    is_list = isinstance(node, ListConfig)
    keys = range(len(node)) if is_list else list(node.keys())
    values: dict[Any, Any] = {}
    for key in keys:
        place = join(path, key if is_list else str(key))
        try:
            values[key] = _resolved(node[key], place, problems, depth + 1)
        except MissingMandatoryValue:
            problems.append(f"{place}: '???' has to be replaced by a value")
        except OmegaConfBaseException as error:
            problems.append(f"{place}: {str(error).splitlines()[0]}")
    return list(values.values()) if is_list else values


def _override(config: DictConfig, override: str, kind: Any, problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not (key and equals):
        problems.append(f"{override!r}: an override is written key=value")
        return
    try:
        keys = _split(key)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError):
        problems.append(f"{key}: is no key; write it as in stages.fixed.train.steps=100")
        return
    fault = _prepare(config, keys, kind)
    if fault:
        problems.append(fault)
        return
    try:
        config.merge_with_dotlist([override])
    except OmegaConfBaseException:  # a list where a mapping is, or the reverse: build says so
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        OmegaConf.update(config, key, value["value"], merge=False)  # type: ignore[index, call-overload]
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        problems.append(f"{key}: no YAML value ({reason}); text with signs goes in quotes")


def _split(key: str) -> list[str]:
    """The keys of a dotted path, as OmegaConf splits it: `a[b.c].d` -> a, b.c, d."""
    keys = []
    node: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}=null"]))
    while isinstance(node, dict):
        ((name, node),) = node.items()
        keys.append(str(name))
    return keys


def _prepare(config: DictConfig, keys: list[str], kind: Any) -> str | None:
    """What hinders an override of the path `keys` of a `kind`, if anything.

    Defaults that are mappings or lists are written into `config` on the way, so that setting
    one entry of them leaves the others as they are.
    """
    node: Any = config
    path = ""
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        kind, _ = optional(kind)
        place = join(path, key)
        if kind is Any:
            return None
        if dataclasses.is_dataclass(kind):
            known = hints(kind)  # type: ignore[arg-type]
            if key not in known:
                return f"{place}: unknown key{did_you_mean(key, known)}"
            if isinstance(node, DictConfig) and not last:
                _write_default(node, kind, key)
            kind = known[key]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
            present = list(node.keys()) if isinstance(node, DictConfig) else []
            if key not in present and not last:
                near = did_you_mean(key, map(str, present))
                return f"{place}: there is none{near}; a new one is given whole: {place}={{...}}"
        elif get_origin(kind) is list:
            size = len(node) if isinstance(node, ListConfig) else 0
            if not key.lstrip("-").isdigit() or not -size <= int(key) < size:
                return f"{path}: {key!r} is no position in a list of {size}"
            kind = get_args(kind)[0]
        else:
            return f"{place}: unknown key: {path} is {in_words(kind)}"
        node = _child(node, key)
        path = place
    return None


def _write_default(node: DictConfig, kind: Any, key: str) -> None:
    (field,) = (field for field in dataclasses.fields(kind) if field.name == key)
    if key not in node and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
        node[key] = default if isinstance(default, dict | list) else {}


def _child(node: Any, key: str) -> Any:
    try:
        if isinstance(node, ListConfig):
            return node[int(key)]
        return node.get(key) if isinstance(node, DictConfig) else None
    except OmegaConfBaseException:  # an interpolation that fails is reported by _resolved
        return None


def _escaped(value: Any) -> Any:
    """Text that looks like an interpolation or a gap is no such thing in a resolved recipe."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
