"""From plain mappings to the dataclasses of a recipe, with every error found on the way.

The rules come from the dataclasses themselves: their type hints, defaults, and the `choices`,
`least`, `above` and `most` in their fields' metadata.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from students.errors import UserError, did_you_mean

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
NAME_RULE = "small letters, digits, '.', '_' and '-', the first a letter or a digit"

# PyYAML reads 1e-3 as text (YAML 1.1 wants a dot and a signed exponent); OmegaConf does not.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_INVALID: Any = object()


class RecipeError(UserError):
    """What is wrong with a recipe, all of it: `problems`, one line each, `path: what`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


def join(path: str, key: object) -> str:
    """The path of `key` below `path`, in the syntax of overrides.

    An int is a position in a list (`sizes[0]`); a name with a dot is put in brackets
    (`stages[vit.s]`), for a dot separates keys.
    """
    text = str(key)
    if isinstance(key, int) or "." in text:
        return f"{path}[{text}]"
    return f"{path}.{text}" if path else text


def optional(kind: Any) -> tuple[Any, bool]:
    """(X, True) for a type hint `X | None`, else (X, False)."""
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
        return inner, True
    return kind, False


@lru_cache
def hints(kind: type) -> dict[str, Any]:
    """The type of each field of a dataclass, in the order written."""
    found = get_type_hints(kind)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def in_words(kind: Any) -> str:
    """A type hint as a person would say it: "a list of whole numbers"."""
    kind, may_be_null = optional(kind)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(kind) is list:
        items = {int: "whole numbers", float: "numbers", str: "names"}
        text = f"a list of {items[get_args(kind)[0]]}"
    elif get_origin(kind) is dict:
        text = "a mapping (name: value)"
    elif dataclasses.is_dataclass(kind):
        text = f"a mapping ({', '.join(hints(kind))})"  # type: ignore[arg-type]
    else:
        text = words.get(kind, "a value")
    return f"{text}, or null" if may_be_null else text


def shown(value: object) -> str:
    """A value as it stands in an error message: at most 60 characters, null for None."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def build(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` (plain mappings, lists, scalars) as an instance of the type hint `kind`.

    Every error is appended to `problems` as one line that starts with the full path of its key;
    what is returned is then of no use.
    """
    return _build(kind, value, path, problems, {})


def _build(kind: Any, value: Any, path: str, problems: list[str], limits: Mapping[str, Any]) -> Any:
    inner, may_be_null = optional(kind)
    if inner is Any or (value is None and may_be_null):
        return value
    if dataclasses.is_dataclass(inner):
        return _dataclass(inner, value, path, problems)
    if get_origin(inner) is dict:
        return _named(get_args(inner)[1], value, path, problems)
    if get_origin(inner) is list:
        return _list(kind, get_args(inner)[0], value, path, problems)
    return _scalar(kind, inner, value, path, problems, limits)


def _dataclass(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return _wrong(kind, value, path, problems)
    before = len(problems)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    meant = set()
    for key in value:
        if key not in fields:
            unused = [name for name in fields if name not in value] or list(fields)
            meant.update(difflib.get_close_matches(str(key), unused, n=1, cutoff=0.5))
            hint = did_you_mean(str(key), unused)
            problems.append(f"{join(path, str(key))}: unknown key{hint}")
    built = {}
    for name, hint in hints(kind).items():
        field, place = fields[name], join(path, name)
        if name in value:
            built[name] = _build(hint, value[name], place, problems, field.metadata)
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and name not in meant  # a misspelt key is one error, not two
        ):
            problems.append(f"{place}: missing; give {in_words(hint)}")
    return kind(**built) if len(problems) == before else _INVALID


def _named(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return _wrong(dict[str, kind], value, path, problems)
    for name in value:
        if not isinstance(name, str):
            problems.append(f"{join(path, str(name))}: a name must be text; put it in quotes")
        elif dataclasses.is_dataclass(kind) and not NAME.fullmatch(name):
            problems.append(f"{join(path, name)}: {name!r} is no name ({NAME_RULE})")
    return {
        str(name): _build(kind, item, join(path, str(name)), problems, {})
        for name, item in value.items()
    }


def _list(hint: Any, kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        return _wrong(hint, value, path, problems)
    return [_build(kind, item, join(path, index), problems, {}) for index, item in enumerate(value)]


def _scalar(
    hint: Any, kind: type, value: Any, path: str, problems: list[str], limits: Mapping[str, Any]
) -> Any:
    if kind in (int, float):
        number = _number(kind, value)
        if number is None:
            return _wrong(hint, value, path, problems)
        rules = (
            ("least", "at least", lambda limit: number >= limit),
            ("above", "more than", lambda limit: number > limit),
            ("most", "at most", lambda limit: number <= limit),
        )
        for rule, words, holds in rules:
            if rule in limits and not holds(limits[rule]):
                problems.append(f"{path}: {shown(value)} must be {words} {limits[rule]}")
                return _INVALID
        return number
    if not isinstance(value, kind):
        return _wrong(hint, value, path, problems)
    if "choices" in limits and value not in limits["choices"]:
        hint = did_you_mean(str(value), limits["choices"])
        problems.append(f"{path}: {value!r} is no choice{hint}")
        return _INVALID
    return value


def _number(kind: type, value: Any) -> int | float | None:
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if kind is float:
        return float(value)
    return int(value) if value == int(value) else None


def _wrong(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    advice = ""
    if hint is str and isinstance(value, int | float):
        advice = "; put it in quotes"
    elif get_origin(optional(hint)[0]) is list and isinstance(value, str | int | float):
        advice = f"; write [{value}]"
    got = "nothing" if value is None else shown(value)
    place = path or "the recipe"
    problems.append(f"{place}: expected {in_words(hint)}, got {got}{advice}")
    return _INVALID
