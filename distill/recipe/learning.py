"""How a stage learns, as its recipe says it: heads, losses, balance, objective, partitions.

These are the axes along which the published methods differ. For `metadata` see
distill.recipe.schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TOKEN_TERMS = ("cosine", "smooth_l1", "mse")
PAIR_TERMS = ("relational", "gram", "similarity_kl")
LOSS_TERMS = TOKEN_TERMS + PAIR_TERMS
ADAPTERS = ("mlp", "linear", "ladder", "attention", "conv")
BALANCES = ("fixed", "dropping", "magnitude")
OBJECTIVES = ("match", "masked")


@dataclass
class AdapterConfig:
    """The head that maps a student's tokens to a teacher's (EUPE: an MLP of width 1536).

    `mlp` and `linear`; `ladder`: an MLP for every block of the encoder, outputs summed (UNIC);
    `attention`: `depth` transformer blocks over all tokens, then a Linear (DUNE, RADIO); `conv`:
    convolutions over the map, an MLP for the summary (Theia). `hidden` is the width inside.
    """

    kind: str = field(default="mlp", metadata={"choices": ADAPTERS})
    hidden: int = field(default=1536, metadata={"least": 1})
    depth: int = field(default=1, metadata={"least": 1})


@dataclass
class TeacherLossConfig:
    """The loss terms of one teacher, in place of the stage's; of a kind left out the stage's."""

    summary: dict[str, float] | None = None
    dense: dict[str, float] | None = None


@dataclass
class LossConfig:
    """Weights of the loss terms by token kind, and how grids are matched before them.

    Of each token: `cosine`, `smooth_l1` (with `beta`), `mse`. Of pairs of tokens: `relational`
    (their similarities within and across images), `gram` (those of an image's patches),
    `similarity_kl` (distributions of them over the batch, at `temperature`). `teachers`: terms for
    some teachers instead of these.
    """

    summary: dict[str, float] = field(default_factory=lambda: {"cosine": 1.0})
    dense: dict[str, float] = field(default_factory=lambda: {"cosine": 0.9, "smooth_l1": 0.1})
    beta: float = field(default=1.0, metadata={"above": 0.0})
    temperature: float = field(default=0.07, metadata={"above": 0.0})
    grid: str = field(default="larger", metadata={"choices": ("larger", "teacher", "student")})
    teachers: dict[str, TeacherLossConfig] = field(default_factory=dict)

    def terms(self, teacher: str, kind: str) -> dict[str, float]:
        """The weight of each term for a teacher's tokens of a kind; those of weight 0 left out."""
        own = self.teachers.get(teacher)
        given = None if own is None else getattr(own, kind)
        chosen = getattr(self, kind) if given is None else given
        return {term: weight for term, weight in chosen.items() if weight}


@dataclass
class BalanceConfig:
    """How the losses of several teachers are weighed against each other, beside their `weight`.

    `dropping`: for each image the teacher with the largest loss counts, each other one with
    probability 1 - `drop` (UNIC). `magnitude`: each teacher's loss is divided by its running mean,
    of which a step makes up `momentum`. `conflicts_every`: so many steps apart, the cosines between
    the gradients that two teachers send into the student's last block are logged (default: never).
    """

    kind: str = field(default="fixed", metadata={"choices": BALANCES})
    drop: float = field(default=0.5, metadata={"least": 0.0, "most": 1.0})
    momentum: float = field(default=0.01, metadata={"above": 0.0, "most": 1.0})
    conflicts_every: int | None = field(default=None, metadata={"least": 1})


@dataclass
class MaskedConfig:
    """The objective `masked` (SAMI): the student sees the share `visible` of an image's patches,
    and a decoder of `depth` cross-attention blocks, thrown away afterwards, predicts the others."""

    visible: float = field(default=0.25, metadata={"above": 0.0, "most": 1.0})
    depth: int = field(default=8, metadata={"least": 1})


@dataclass
class PartitionConfig:
    """A part of each batch, `share` of its images, with `image_sizes` of its own (default: the
    stage's) and those of the students' `teachers` that see it (default: all)."""

    share: float = field(default=1.0, metadata={"above": 0.0})
    image_sizes: list[int] = field(default_factory=list)
    teachers: list[str] = field(default_factory=list)
