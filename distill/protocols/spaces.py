"""The spaces of teachers: which one a head needs, and a model's stored features in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        # Of those in `left_out` it is not known: only teachers that are reached are loaded.
        lost = model.why_not(model.left_out)
        raise CannotProbe(f"no teacher {'that is reached ' if lost else ''}has a {words}{lost}")
    raise CannotProbe(
        f"{model.name} does not reach the space of {', '.join(with_head)}, which a {words} "
        f"needs{model.why_not(with_head)}"
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
        CannotProbe: if the model, or its space of that teacher, has none, or the space is made of
            both kinds together and no map is kept.
    """
    if not setting.model.joint(name):
        return _Mapped(setting, name, {kind: kept(setting, features, kind)}, kind)
    given = {each: kept(setting, features, each) for each in TOKEN_KINDS}
    if features.averaged:
        raise CannotProbe(
            f"{setting.model.name}'s space of {name} is made of summary and dense features "
            "together, and of the dense ones this task keeps the averages alone"
        )
    return _Mapped(setting, name, given, kind)


class _Mapped:
    """Rows of a kind, each made by the teacher's space of `rows`, those of every kind that it
    reads; nothing is kept."""

    def __init__(self, setting: Setting, name: str, rows: Mapping[str, Rows], kind: str):
        self._space: Callable[[Features], Features] = setting.model.to_space[name]
        self._rows, self._kind, self._device = rows, kind, setting.device
        self._who = setting.model.name, name
        self.shape = torch.Size((len(rows[kind]), *self._of(self._given(slice(1))).shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        given = self._given(index)
        own = given.get(self._kind)
        if own is not None and not len(own):
            return own.new_zeros((0, *self.shape[1:]))
        return self._of(given)

    def _given(self, index: Any) -> Features:
        tokens = {kind: rows[index] for kind, rows in self._rows.items()}
        return Features(tokens.get("summary"), tokens.get("dense"))

    def _of(self, given: Features) -> Tensor:
        model, teacher = self._who
        found = apply_space(self._space, given, self._device).get(self._kind)
        if found is None:
            raise CannotProbe(f"{model}'s space of {teacher} has no {self._kind} features")
        if not bool(found.isfinite().all()):
            raise CannotProbe(f"{model} in the space of {teacher} is not finite numbers")
        return found
