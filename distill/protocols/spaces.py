"""The spaces of teachers: which one a head needs, and a model's stored features in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distill.probes.extract import apply_space
from distill.probes.models import CannotProbe, SpaceOwner
from distill.protocols.task import Rows, Setting, Stored
from students.features import TOKEN_KINDS, Features


def owner(setting: Setting, head: str) -> tuple[str, SpaceOwner]:
    """The first teacher with the head ("text_tower", "mask_decoder") that the model reaches.

    Raises:
        CannotProbe: if there is none.
    """
    model, words = setting.model, head.replace("_", " ")
    with_head = [n for n, t in setting.teachers.items() if getattr(t, head) is not None]
    for name in with_head:
        if name in model.to_space:
            return name, setting.teachers[name]
    if not with_head and head == "mask_decoder":
        alone = [name for name, t in setting.teachers.items() if segments_alone(t)]
        if alone:
            raise CannotProbe(
                "no teacher has a mask decoder of dense features alone: that of "
                f"{', '.join(alone)} reads finer maps of its own pixels too, and serves no "
                "other model"
            )
    if not with_head:
        raise CannotProbe(f"no teacher has a {words}")
    raise CannotProbe(
        f"{model.name} does not reach the space of {', '.join(with_head)}, which a {words} needs"
    )


def segments_alone(teacher: SpaceOwner) -> bool:
    """Whether its masks are those of its own pixels only."""
    return teacher.segment is not None and teacher.mask_decoder is None


def kept(setting: Setting, features: Stored, kind: str) -> Rows:
    """The rows of a kind, "summary" or "dense".

    Raises:
        CannotProbe: if the model has none.
    """
    if kind not in TOKEN_KINDS:
        raise ValueError(f"token kind {kind!r}: expected one of {', '.join(TOKEN_KINDS)}")
    rows = features.summary if kind == "summary" else features.dense
    if rows is None:
        raise CannotProbe(f"{setting.model.name} has no {kind} features")
    return rows


def mapped(setting: Setting, name: str, features: Stored, kind: str) -> Rows:
    """The model's rows of a kind in the teacher `name`'s own space, mapped as they are read.

    `mapped(...)[:]` is all of them, in memory. A read raises CannotProbe if they are not finite.

    Raises:
        CannotProbe: if the model, or its space of that teacher, has none.
    """
    return _Mapped(setting, name, kept(setting, features, kind), kind)


class _Mapped:
    """Rows of a kind, each read through `space`; nothing is kept."""

    def __init__(self, setting: Setting, name: str, rows: Rows, kind: str):
        self._space: Callable[[Features], Features] = setting.model.to_space[name]
        self._rows, self._kind, self._device = rows, kind, setting.device
        self._who = setting.model.name, name
        self.shape = torch.Size((len(rows), *self._of(rows[:1]).shape[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Tensor:
        tokens = self._rows[index]
        if not len(tokens):
            return tokens.new_zeros((0, *self.shape[1:]))
        return self._of(tokens)

    def _of(self, tokens: Tensor) -> Tensor:
        model, teacher = self._who
        summary = self._kind == "summary"
        given = Features(tokens if summary else None, None if summary else tokens)
        found = apply_space(self._space, given, self._device).get(self._kind)
        if found is None:
            raise CannotProbe(f"{model}'s space of {teacher} has no {self._kind} features")
        if not bool(found.isfinite().all()):
            raise CannotProbe(f"{model} in the space of {teacher} is not finite numbers")
        return found
