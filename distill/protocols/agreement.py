"""How much a model agrees with the teachers that it reaches, on any pictures.

On at most 2000 test pictures, evenly spaced over the split, in the central square. Values are
plain, not percent. For each teacher and token kind:

- cosine, in [-1, 1]: the mean over tokens of the cosine between the model's token in the teacher's
  own space and the teacher's own token, after the teacher's mean token over these pictures has been
  subtracted from both. Tokens of foundation models share a large offset: with it, a model that
  always answers the mean would agree almost fully; without it, that model has 0.
- cka, in [0, 1]: linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, section 3)
  between the model's raw tokens, before any adapter, and the teacher's: it does not change under
  rotations and scales of either. Dense: of at most 4096 tokens, as many of every picture, at
  positions drawn by key. It is the plain estimator, biased upwards when tokens are not many more
  than channels, so it compares models on the same pictures, and is no absolute figure.

Where grids differ the larger is brought to the smaller (bicubic). The teacher is shown the size
nearest to the model's that it takes: its own features are the best that it has of that view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.source import IndexedSource
from distill.probes.extract import apply_space
from distill.probes.models import CannotProbe, SpaceOwner
from distill.probes.tasks import Outcome
from distill.protocols.spaces import mapped
from distill.protocols.task import FieldTask, Rows, Setting, Stored
from distill.protocols.views import centre_crop
from students.features import TOKEN_KINDS, Features, resize_grid
from students.keys import key

PICTURES = 2000
TOKENS = 4096

_CHUNK = 32


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA in [0, 1] of tokens (N, D) and (N, E), row by row of the same thing; NaN where one
    of them does not vary.

    ||Y'X||^2 / (||X'X|| ||Y'Y||) in Frobenius norms, of columns without their means.
    """
    one, other = one.double(), other.double()
    x, y = one - one.mean(0), other - other.mean(0)
    # What is left of a constant is rounding, and rounding may well be aligned.
    if x.norm() <= 1e-9 * one.norm() or y.norm() <= 1e-9 * other.norm():
        return float("nan")
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


@dataclass(frozen=True)
class _Some:
    """Pictures of a source, by number."""

    pictures: IndexedSource
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int) -> Tensor:
        return self.pictures.read(self.numbers[index])

    def name(self, index: int) -> str:
        return self.pictures.name(self.numbers[index])


def evenly(pictures: IndexedSource, most: int = PICTURES) -> IndexedSource:
    """At most `most` of the pictures, evenly spaced, the first among them; a function of nothing
    but their number, so that features of them can be kept."""
    count = len(pictures)
    if count <= most:
        return pictures
    return _Some(pictures, tuple(i * count // most for i in range(most)))


def run(setting: Setting) -> Outcome:
    """`TEACHER KIND cosine` and `TEACHER KIND cka` for each teacher that the model reaches and each
    kind that both have, and the pictures counted.

    Raises:
        CannotProbe: if it reaches none but itself, or has no kind in common with any.
    """
    model = setting.model
    itself = model.name if model.role == "teacher" else None
    names = [n for n in model.to_space if n in setting.teachers and n != itself]
    if not names:
        reason = model.why_not(model.left_out)
        raise CannotProbe(
            f"{model.name} reaches the space of no other model that is loaded{reason}"
        )
    pictures = evenly(setting.data.pictures)
    ours = setting.features(pictures, centre_crop(setting.size))
    values: dict[str, float] = {}
    for done, name in enumerate(names):
        view = centre_crop(teacher_size(setting.teachers[name], setting.size))
        theirs = setting.features(pictures, view, of=name)
        for kind in TOKEN_KINDS:
            raw, truth = getattr(ours, kind), getattr(theirs, kind)
            if raw is None or truth is None:
                continue
            generator = torch.Generator().manual_seed(key("agreement", setting.seed, name, kind))
            sampled = _sampled(raw, truth, generator, setting.device)
            values[f"{name} {kind} cka"] = linear_cka(*sampled)
            if kind in _kinds_in_space(setting, name, ours):
                values[f"{name} {kind} cosine"] = _cosine(setting, name, ours, kind, truth)
        setting.progress(done + 1, len(names))
    if not values:
        raise CannotProbe(f"{model.name} has no tokens of a kind that {', '.join(names)} have")
    return Outcome(values, len(pictures))


def teacher_size(teacher: SpaceOwner, size: int) -> int:
    """The side in pixels nearest to `size` that a teacher takes: in whole patches, in twice those
    (SAM 2), or its native one."""
    model: Any = teacher
    steps = teacher.stride, 2 * teacher.stride
    candidates = [max(1, round(size / step)) * step for step in steps]
    refusal = getattr(type(model), "size_error", None)
    if refusal is None:
        return candidates[0]
    taken = (side for side in candidates if not refusal(model.info, side))
    return next(taken, getattr(model, "size", size))


def _chunks(one: Rows, other: Rows, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B, T, D) and (B, T, E) of the same places, for a few pictures at a time."""
    for start in range(0, len(one), _CHUNK):
        some = [rows[start : start + _CHUNK].to(device) for rows in (one, other)]
        if some[0].ndim == 2:
            yield some[0][:, None], some[1][:, None]
            continue
        grids = [(rows.shape[1], rows.shape[2]) for rows in some]
        grid = min(grids, key=lambda sides: sides[0] * sides[1])
        matched = [resize_grid(rows, grid).flatten(1, 2) for rows in some]
        yield matched[0], matched[1]


def _kinds_in_space(setting: Setting, name: str, ours: Stored) -> list[str]:
    """The kinds of token that the model's space of a teacher gives."""
    rows = ours.summary, ours.dense
    summary, dense = (None if given is None else given[:1] for given in rows)
    first = Features(summary, dense)
    found = apply_space(setting.model.to_space[name], first, setting.device)
    return [kind for kind in TOKEN_KINDS if found.get(kind) is not None]


def _cosine(setting: Setting, name: str, ours: Stored, kind: str, truth: Rows) -> float:
    """Mean over tokens; NaN if the model's are not finite."""
    device = setting.device
    try:
        answer = mapped(setting, name, ours, kind)
        total, count = torch.zeros(truth.shape[-1], dtype=torch.float64), 0
        for _, tokens in _chunks(answer, truth, device):
            total += tokens.sum((0, 1)).double().cpu()
            count += tokens.shape[0] * tokens.shape[1]
        mean = (total / count).float().to(device)
        agreed = 0.0
        for said, tokens in _chunks(answer, truth, device):
            agreed += float(F.cosine_similarity(said - mean, tokens - mean, dim=-1).double().sum())
    except CannotProbe:
        return float("nan")
    return agreed / count


def _sampled(
    one: Rows, other: Rows, generator: torch.Generator, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """(N, D) and (N, E): all summaries, or as many tokens of each picture, at keyed positions."""
    found: tuple[list[Tensor], list[Tensor]] = [], []
    each = max(1, TOKENS // len(one))
    for pair in _chunks(one, other, device):
        here = [torch.randperm(pair[0].shape[1], generator=generator)[:each] for _ in pair[0]]
        places = torch.stack(here).to(device)[..., None]
        for kept, tokens in zip(found, pair, strict=True):
            kept.append(tokens.take_along_dim(places, 1).flatten(0, 1))
    return torch.cat(found[0]), torch.cat(found[1])


TASK = FieldTask(
    name="agreement",
    part="",
    kind="both",
    metrics=(),
    protocol=f"at most {PICTURES} pictures, short side 256/224, centre crop; cosine of adapted "
    "tokens with the teacher's, its mean removed; linear CKA of raw tokens; plain values",
    run=run,
)
