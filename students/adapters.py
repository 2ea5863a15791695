"""Adapters: the heads that turn an encoder's tokens into predictions of a teacher's targets.

`linear`: one Linear with bias for each kind of token.

`mlp` (EUPE): Linear without bias, LayerNorm, GELU, Linear without bias.

`ladder` (UNIC, arXiv 2408.05088): such an MLP for every block of a ViT, of its class token and of
its patches; the predictions are the sums of their outputs. Of the last block it reads the final
features, after the norm. At width 960 that is 141.7 million parameters for a ViT-B and four
teachers of width 768, the published figure (so many as eleven MLPs of width 768 and one of 3072).

`attention` (DUNE, arXiv 2503.14405): pre-norm transformer blocks over the summary and all dense
tokens together, then one Linear with bias for each kind.

`conv` (after Theia's translators, arXiv 2407.20179): for dense tokens LayerNorm, then twice a 3x3
convolution, LayerNorm and GELU, then a Linear with bias; for the summary the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from students.encoder import StudentInfo
from students.errors import UserError
from students.features import TOKEN_KINDS, Features

HEAD_WIDTH = 64
"""Of an attention head, or the largest divisor of the tokens' width below."""


class Adapters(nn.ModuleDict):
    """The heads of one space, by kind of token: an encoder's features to predictions.

    `joint`: a prediction of either kind is made of the tokens of both. `needs_levels`: it is made
    of `features.levels` too.
    """

    joint = False
    needs_levels = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of token that are predicted."""
        return tuple(kind for kind in TOKEN_KINDS if kind in self)

    def forward(self, features: Features) -> Features:
        """Predictions of these kinds, (B, D) and (B, h, w, D), on the encoder's own grid."""
        final = features.without_levels().only(self.kinds)
        return final.map(lambda kind, tokens: self[kind](tokens))

    def last(self, kind: str) -> list[nn.Linear]:
        """The layers of which the predictions of a kind are the summed outputs."""
        return [_last(self[kind])]


class Ladder(Adapters):
    """A list of MLPs for each kind, one for every block, the first block first."""

    needs_levels = True

    def forward(self, features: Features) -> Features:
        """As of Adapters.

        Raises:
            ValueError: if the features hold the outputs of more blocks, or of fewer.
        """
        blocks = [*features.levels, features.without_levels()]
        rungs: Any = {kind: self[kind] for kind in self.kinds}
        for kind in self.kinds:
            if len(rungs[kind]) != len(blocks):
                raise ValueError(
                    f"a ladder of {len(rungs[kind])} blocks, features of {len(blocks)}"
                )

        def climbed(kind: str, tokens: Tensor) -> Tensor:
            below = [level.get(kind) for level in features.levels]
            pairs = zip(rungs[kind], [*below, tokens], strict=True)
            return sum(mlp(seen) for mlp, seen in pairs)

        return blocks[-1].only(self.kinds).map(climbed)

    def last(self, kind: str) -> list[nn.Linear]:
        """As of Adapters."""
        rungs: Any = self[kind]
        return [_last(mlp) for mlp in rungs]


class Attention(Adapters):
    """A trunk, `blocks`, that reads both kinds together, and a Linear for each kind."""

    joint = True

    def forward(self, features: Features) -> Features:
        """As of Adapters.

        Raises:
            ValueError: if the features lack summary or dense tokens.
        """
        summary, dense = features.summary, features.dense
        if summary is None or dense is None:
            raise ValueError("an attention adapter reads summary and dense tokens together")
        trunk: Any = self["blocks"]
        tokens = torch.cat([summary[:, None], dense.flatten(1, 2)], 1)
        for block in trunk:
            tokens = block(tokens)
        read = Features(tokens[:, 0], tokens[:, 1:].unflatten(1, dense.shape[1:3]))
        return super().forward(read)


class MapConv(nn.Conv2d):
    """A 3x3 convolution of maps (B, h, w, D), zeros around them."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out, 3, padding=1)

    def forward(self, dense: Tensor) -> Tensor:
        """(B, h, w, D) to (B, h, w, D')."""
        return super().forward(dense.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def build_adapters(
    kind: str,
    widths: Mapping[str, tuple[int, int]],
    *,
    hidden: int,
    depth: int = 1,
    levels: int = 0,
    bias: bool = False,
) -> Adapters:
    """Fresh adapters, with weights drawn as torch's layers draw them.

    Args:
        kind: "linear", "mlp", "ladder", "attention" or "conv".
        widths: for each kind of token, (the encoder's width, the teacher's width).
        hidden: width of the layer inside; of `linear` there is none.
        depth: transformer blocks of `attention`.
        levels: blocks of the encoder before its last, for `ladder`.
        bias: whether the last layer of `mlp` and `ladder` has one, too.

    Raises:
        UserError: an `attention` adapter for summary and dense tokens of different widths.
        ValueError: if `kind` is none of these.
    """

    def mlp(width: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, out, bias=bias),
        )

    def linear(width: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, out))

    def rungs(width: int, out: int) -> nn.ModuleList:
        return nn.ModuleList(mlp(width, out) for _ in range(levels + 1))

    if kind == "linear":
        return Adapters({name: linear(*pair) for name, pair in widths.items()})
    if kind == "mlp":
        return Adapters({name: mlp(*pair) for name, pair in widths.items()})
    if kind == "ladder":
        return Ladder({name: rungs(*pair) for name, pair in widths.items()})
    if kind == "conv":
        heads = {"summary": mlp, "dense": lambda width, out: _translator(width, hidden, out)}
        return Adapters({name: heads[name](*pair) for name, pair in widths.items()})
    if kind == "attention":
        own = {width for width, _ in widths.values()}
        if len(own) > 1:
            raise UserError(_uneven(*(widths[name][0] for name in TOKEN_KINDS)))
        blocks = nn.ModuleList(_block(width, hidden) for width in own for _ in range(depth))
        return Attention({"blocks": blocks, **{n: linear(*pair) for n, pair in widths.items()}})
    raise ValueError(f"adapter kind {kind!r}: expected linear, mlp, ladder, attention or conv")


def adapter_parameters(
    kind: str,
    widths: Mapping[str, tuple[int, int]],
    *,
    hidden: int,
    depth: int = 1,
    levels: int = 0,
) -> int:
    """Number of weights of what `build_adapters` builds, without memory for them.

    Raises:
        UserError, ValueError: as `build_adapters`.
    """
    with torch.device("meta"):
        built = build_adapters(kind, widths, hidden=hidden, depth=depth, levels=levels)
    return sum(parameter.numel() for parameter in built.parameters())


def misfit(kind: str, student: StudentInfo) -> str | None:
    """Why an adapter of this kind cannot read an encoder, in one line; None where it can."""
    if kind == "ladder" and student.levels is None:
        return (
            f"adapter ladder: {student.arch} gives no class token and patches of every block, as "
            "a ViT that pools its class token does; choose mlp, linear, attention or conv"
        )
    if kind == "attention" and student.summary_dim != student.dense_dim:
        return f"{_uneven(student.summary_dim, student.dense_dim)} ({student.arch})"
    return None


def _uneven(summary: int, dense: int) -> str:
    return (
        f"adapter attention: reads summaries of width {summary} and dense tokens of width {dense} "
        "together, and they have to be equal; choose mlp, linear or conv"
    )


def _last(head: Any) -> nn.Linear:
    layer = head[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _translator(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        MapConv(width, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        MapConv(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, out),
    )


def _block(width: int, hidden: int) -> nn.Module:
    from timm.models.vision_transformer import Block

    each = next(w for w in range(min(HEAD_WIDTH, width), 0, -1) if width % w == 0)
    # It takes the width of its MLP as a ratio and rounds down: half a unit more is safe.
    ratio = (hidden + 0.5) / width
    return Block(width, width // each, ratio, qkv_bias=True, norm_layer=nn.LayerNorm)
