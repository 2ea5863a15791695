"""The objective `masked`: a student sees some patches of an image, and what a teacher says of all
of them is predicted (SAMI: EfficientSAM, Xiong et al., CVPR 2024).

The student encodes the visible patches; a decoder of cross-attention, thrown away after the stage,
makes tokens of the hidden ones; both, in their places, go through the adapters to each teacher's
features of the whole image.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.engine.learner import Learner
from distill.engine.rows import Rows
from students import Features, UserError
from students.keys import key
from students.visible import encode_visible, keeps_patches, no_masks


def draw_visible(
    seed: int,
    stage: str,
    step: int,
    positions: Tensor,
    batch_size: int,
    patches: int,
    share: float,
) -> Tensor:
    """The patches that a student sees in one step: (b, n) int64 on the CPU, each row sorted, with
    n = max(1, round(share * patches)), uniform.

    A row is drawn from (seed, stage, step) and its place in the whole batch: whichever rank or part
    of a batch holds it, it is the same.

    Args:
        seed, stage, step: what is drawn from.
        positions: (b,) int64 in the stream.
        batch_size: over all ranks.
        patches: of the grid.
        share: of the patches that is visible, in (0, 1].
    """
    count = max(1, round(share * patches))
    drawn = key("visible", seed, stage, step)
    visible = np.empty((len(positions), count), dtype=np.int64)
    for row, position in enumerate(positions.tolist()):
        philox = np.random.Philox(key=[drawn, position % batch_size])
        order = np.random.Generator(philox).random(patches).argsort(kind="stable")
        visible[row] = np.sort(order[:count])
    return torch.from_numpy(visible)


class MaskedLearner(Learner):
    """A learner whose student may see some patches alone: what it then predicts of the hidden ones
    is made by `decoder`, which is no part of the student or of its spaces."""

    def __init__(self, learner: Learner, decoder: Decoder):
        super().__init__(learner.student, {name: learner.space(name) for name in learner.teachers})
        self.decoder = decoder

    def forward(
        self,
        pixels: Tensor,
        size: int,
        rows: Mapping[str, Rows] | None = None,
        visible: Tensor | None = None,
    ) -> dict[str, Features]:
        """As Learner's; with `visible` (B, n) int64, sorted, the student sees these patches alone.

        The summary is then that of the visible patches; the dense map (B, h, w, ·) has the tokens
        of the visible ones in their places, and decoded ones in the others. All weights of the
        decoder are in what is returned, even if nothing is hidden.
        """
        if visible is None:
            return super().forward(pixels, size, rows)
        visible = visible.to(pixels.device, non_blocking=True)
        side = size // self.student.stride
        hidden = hidden_patches(visible, side * side)
        summary, tokens = encode_visible(self.student, pixels, size, visible)
        decoded = self.decoder(summary, tokens, visible, hidden, (side, side))
        dense = in_their_places(tokens, decoded, visible, hidden).unflatten(1, (side, side))
        return self.predictions(Features(summary, dense), rows)


def hidden_patches(visible: Tensor, patches: int) -> Tensor:
    """The patches that are not among `visible` (B, n): (B, patches - n) int64, sorted."""
    seen = torch.zeros(len(visible), patches, dtype=torch.uint8, device=visible.device)
    seen.scatter_(1, visible, 1)
    # Those that are not seen come first, in order.
    return seen.argsort(dim=1, stable=True)[:, : patches - visible.shape[1]]


def in_their_places(tokens: Tensor, decoded: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    """Tokens (B, n, D) of the patches `visible` (B, n) and `decoded` (B, m, D) of `hidden` (B, m),
    which together are all, as (B, n + m, D) in the order of the patches."""
    place = torch.cat([visible, hidden], dim=1).argsort(dim=1)
    both = torch.cat([tokens, decoded], dim=1)
    return both.gather(1, place[..., None].expand(-1, -1, both.shape[-1]))


class Decoder(nn.Module):
    """Tokens of hidden patches, from those of the visible ones.

    A query is a learnt mask token plus the sine-cosine position of its patch. `depth` blocks let it
    look at the summary, at the visible tokens, with their positions, and, as in SAMI, at the other
    hidden patches: keys and values hold both, and only the hidden ones are asked for.

    Args:
        width: D of the student's tokens.
        depth: number of blocks.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(CrossBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        summary: Tensor,
        tokens: Tensor,
        visible: Tensor,
        hidden: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Decoded tokens (B, m, D) of the patches `hidden` (B, m) of a grid (h, w), from summary
        (B, D) and tokens (B, n, D) of the patches `visible` (B, n)."""
        places = positions_of(grid, tokens.shape[-1], tokens.device)
        queries = self.mask_token + places[hidden]
        context = torch.cat([summary[:, None], tokens + places[visible]], dim=1)
        for block in self.blocks:
            queries = block(queries, context)
        return self.norm(queries)


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP: q + attention(norm(q), norm([context, q])), then
    q + mlp(norm(q)). Heads are 64 wide, where the width allows it."""

    def __init__(self, width: int):
        super().__init__()
        heads = next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)
        self.norm_query, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries (B, m, D) and context (B, n, D) to queries (B, m, D)."""
        seen = self.norm_context(torch.cat([context, queries], dim=1))
        found, _ = self.attention(self.norm_query(queries), seen, seen, need_weights=False)
        queries = queries + found
        return queries + self.mlp(self.norm_mlp(queries))


def positions_of(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Sine-cosine positions (h * w, width) of the patches of a grid (h, w), row by row.

    Of the q = width // 4 frequencies 10000^(-i / q), each of row and column gets sine and cosine
    (Vaswani et al. 2017; in two dimensions as in MAE). Channels that remain are zero.
    """
    count = width // 4
    rates = 10000 ** -(torch.arange(count, device=device) / max(1, count))
    h, w = grid
    rows, columns = (torch.arange(side, device=device)[:, None] * rates for side in grid)
    angles = [rows[:, None].expand(h, w, count), columns.expand(h, w, count)]
    places = torch.cat([turn(angle) for angle in angles for turn in (torch.sin, torch.cos)], dim=-1)
    return F.pad(places.flatten(0, 1), (0, width - 4 * count))


def masked_learner(learner: Learner, depth: int, seed: int, name: str) -> MaskedLearner:
    """The same student and spaces, with a decoder of `depth` blocks drawn from (seed, name).

    Raises:
        UserError: if the student cannot leave patches out, learns no dense features, or has an
            adapter that reads the outputs of its blocks.
    """
    student = learner.student
    if not keeps_patches(student.model):
        raise UserError(no_masks(student.arch))
    if not any("dense" in learner.space(teacher).kinds for teacher in learner.teachers):
        raise UserError(
            f"objective masked: {student.arch} learns no dense features, of which some could be "
            "hidden; add a teacher that gives them, or say objective: match"
        )
    if student.with_levels:
        raise UserError(
            f"objective masked: a ladder reads what the blocks of {student.arch} say of all "
            "patches, and hidden ones go through none; choose another kind of adapter"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("decoder", seed, name))
        decoder = Decoder(student.dense_dim, depth)
    return MaskedLearner(learner, decoder)
