"""What a probe is given: an encoder, who it is, and the spaces that it reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from students.features import Features
from students.pixels import Size

ROLES = ("untrained", "teacher", "proxy", "student")
"""In the order in which tables show them."""


class Encoder(Protocol):
    """Anything that makes Features of pixels: a teacher, a proxy or a student."""

    def __call__(self, pixels: Tensor, size: Size | None = None) -> Features:
        """Features of pixels (B, 3, H, W), RGB in [0, 1], resized to `size` by the encoder."""


class SpaceOwner(Protocol):
    """What probes use of a teacher beside its features: its stride and its further heads."""

    @property
    def stride(self) -> int:
        """Pixels per dense token."""

    @property
    def text_tower(self) -> Any:
        """Texts to (N, D) L2-normalised, with `project` for its summaries beside them; or None."""

    @property
    def mask_decoder(self) -> Any:
        """(dense, points, size) to mask logits and predicted IoU; or None."""

    @property
    def segment(self) -> Any:
        """(pixels, points, size) to mask logits and predicted IoU of its own pixels; or None."""


@dataclass
class ProbedModel:
    """A model under validation.

    `role` is one of ROLES; `stage` is "" for a teacher. `to_space[teacher]` maps this model's
    features to that teacher's own space, channels and scale (a teacher maps itself by identity);
    it holds only the teachers that the model reaches. `left_out`: why it does not reach others of
    which it has a space, in one line each.
    """

    name: str
    role: str
    stage: str
    seed: int
    encoder: Encoder
    to_space: Mapping[str, Callable[[Features], Features]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def joint(self, teacher: str) -> bool:
        """Whether in this teacher's space tokens of either kind are made of tokens of both."""
        return bool(getattr(self.to_space[teacher], "joint", False))

    def why_not(self, teachers: Iterable[str]) -> str:
        """What is known of why none of these teachers' spaces is reached: "", or ": ...; ..."."""
        reasons = dict.fromkeys(self.left_out[name] for name in teachers if name in self.left_out)
        return f": {'; '.join(reasons)}" if reasons else ""


class NothingToScore(ValueError):  # noqa: N818  (as below)
    """A test split without a single item that the metric could score; the message says which."""


class CannotProbe(Exception):  # noqa: N818  (an answer, not an error: it becomes a row's reason)
    """A model that lacks what a task needs; the message is the reason, for the result's row."""
