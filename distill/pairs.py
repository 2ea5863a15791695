"""Losses between the similarities of tokens: of pairs, where losses.py looks at one token each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from distill.losses import CHUNK
from distill.recipe.learning import PAIR_TERMS

if TYPE_CHECKING:
    from accelerate import Accelerator

TINY = 1e-12
"""Of a token of a smaller squared length the direction is shortened, down to none at zero."""


def pair_loss(
    prediction: Tensor,
    target: Tensor,
    image: Tensor,
    terms: Mapping[str, float],
    temperature: float,
) -> Tensor:
    """The weighted terms over pairs of tokens; s_ij = cos(i, j) are the similarities of each side.

    `relational` (AMoE, CVPR 2026): the mean of (s_ij(prediction) - s_ij(target))^2 over ordered
    pairs i != j, within images and across them. `gram` (DINOv3): the same mean over the pairs
    within an image. `similarity_kl` (LightlyTrain): KL(teacher || student), the mean over tokens i
    of those between the softmaxes of s_ij / temperature over the tokens j of other images. A term
    that finds no pair is 0.

    Lengths of tokens and a rotation of all of them change nothing, so the widths may differ.
    Computed in float32 under autocast too, with the gradient at once. It costs O(N^2 D) time, and
    memory for a few blocks of rows of the N x N similarities, of CHUNK elements each.

    Args:
        prediction: (N, D_p), the student's.
        target: (N, D_t), the teacher's; no gradient flows to it.
        image: (N,) int64, which image each token is of, in any numbers and order.
        terms: weight of each term; those of other names, as of single tokens, are none of it.
        temperature: of the softmax, above 0.

    Returns:
        (), at least 0.
    """
    chosen = {term: terms[term] for term in PAIR_TERMS if terms.get(term)}
    with torch.autocast(prediction.device.type, enabled=False):
        ours = _directions(prediction)
        theirs = _directions(target.detach()).to(ours.dtype)
        return _PairLoss.apply(ours, theirs, image, chosen, temperature)


def _directions(tokens: Tensor) -> Tensor:
    """Tokens (N, D) at length 1, at least in float32."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens * tokens.square().sum(-1, keepdim=True).clamp_min(TINY).rsqrt()


class _PairLoss(torch.autograd.Function):
    """The terms of `pair_loss` over directions (N, D_p) and (N, D_t), a block of rows of the
    similarities at a time: of it loss and gradient are taken, and no N x N matrix is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        ours: Tensor,
        theirs: Tensor,
        image: Tensor,
        terms: dict[str, float],
        temperature: float,
    ) -> Tensor:
        """The loss; its gradient with respect to `ours` is kept for the way back."""
        count = len(ours)
        loss = ours.new_zeros(())
        gradient = torch.zeros_like(ours) if ctx.needs_input_grad[0] else None
        pairs = max(1, count * (count - 1))
        within = _pairs_within(image).clamp_min(1).to(ours.dtype)
        at_once = max(1, CHUNK // max(1, count))
        for first in range(0, count if terms else 0, at_once):
            rows = slice(first, first + at_once)
            student, teacher = ours[rows] @ ours.T, theirs[rows] @ theirs.T
            same = image[rows, None] == image
            slope = torch.zeros_like(student)  # of the loss over these similarities of the student
            difference = student - teacher
            difference.diagonal(first).zero_()
            if weight := terms.get("relational"):
                loss += weight / pairs * difference.square().sum()
                slope.add_(difference, alpha=2 * weight / pairs)
            if weight := terms.get("gram"):
                difference.mul_(same)
                loss += weight / within * difference.square().sum()
                slope.addcmul_(difference, 2 * weight / within)
            if weight := terms.get("similarity_kl"):
                own, aim = (_log_shares(s, same, temperature) for s in (student, teacher))
                loss += weight / count * F.kl_div(own, aim, reduction="sum", log_target=True)
                slope.add_(own.exp_() - aim.exp_(), alpha=weight / (count * temperature))
            if gradient is not None:
                gradient[rows] += slope @ ours
                gradient.addmm_(slope.T, ours[rows])
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradient times that of the loss."""
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss, None, None, None, None


def _pairs_within(image: Tensor) -> Tensor:
    """How many ordered pairs of different tokens are of one image: () int64, on the device."""
    ordered = image.sort().values
    same = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    return same.sum() - len(image)


def _log_shares(similarities: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """Logarithms of the softmax of each row, over what is not left out. Of a row of which all is,
    they are the same for student and teacher, and finite."""
    lowest = torch.finfo(similarities.dtype).min
    return (similarities / temperature).masked_fill_(left_out, lowest).log_softmax(1)


def token_places(grid_tokens: int, images: int, generator_key: int, most: int = 4096) -> Tensor:
    """Which of an image's dense tokens are compared in pairs, the same of every image of a step.

    Args:
        grid_tokens: P, how many an image has.
        images: how many images the step has, over all ranks.
        generator_key: what the draw is made of (students.keys.key).
        most: so many tokens of all images together, where that leaves each of them one.

    Returns:
        (k,) int64 in [0, P), sorted, on the CPU; k = max(1, min(P, most // images)).
    """
    count = max(1, min(grid_tokens, most // max(1, images)))
    generator = torch.Generator().manual_seed(generator_key)
    return torch.randperm(grid_tokens, generator=generator)[:count].sort().values


def gathered(tokens: Tensor, accelerator: Accelerator) -> tuple[Tensor, int]:
    """Rows (n, ...) of all ranks in their order, detached: (N, ...), and the place where the own
    ones start. Ranks may have different n, 0 too; all of them call this together."""
    counts = _counts(len(tokens), accelerator)
    return _gathered(tokens, counts, accelerator), sum(counts[: accelerator.process_index])


def pair_gradients(
    own: Tensor,
    target: Tensor,
    image: Tensor,
    terms: Mapping[str, float],
    temperature: float,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor]:
    """`pair_loss` over the tokens of all ranks, and its gradient with respect to the own ones.

    With `live` the same predictions in a graph, `(live * gradient).sum()` has the gradient of that
    loss; times the number of ranks it has it after DDP too, which averages over ranks. Predictions
    of the parts of a batch are given here together, and each part then adds its rows of it.

    Args:
        own: (n, D_p), predictions of this rank; detached here.
        target: (n, D_t), of any dtype, on a rank without rows another one too.
        image: (n,) int64, numbers that are the same on no two ranks, as positions in the stream.
        terms, temperature: as for `pair_loss`, the same on all ranks, which call this together.
        accelerator: Accelerate's.

    Returns:
        The loss (), the same on all ranks, and the gradient (n, D_p) in the dtype of `own`.
    """
    dtype = torch.promote_types(own.dtype, torch.float32)
    if not any(terms.get(term) for term in PAIR_TERMS):
        return own.new_zeros((), dtype=dtype), torch.zeros_like(own)
    # A rank without a target does not know the dtype of those of the others.
    target = target.to(dtype)
    counts = _counts(len(own), accelerator)
    start = sum(counts[: accelerator.process_index])
    everyone, targets, images = (
        _gathered(tokens, counts, accelerator) for tokens in (own, target, image)
    )
    with torch.enable_grad():
        leaf = everyone.requires_grad_()
        loss = pair_loss(leaf, targets, images, terms, temperature)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient[start : start + len(own)]


def _counts(rows: int, accelerator: Accelerator) -> list[int]:
    """How many rows each rank has; waits for the device if there are several."""
    if accelerator.num_processes == 1:
        return [rows]
    return accelerator.gather(torch.tensor([rows], device=accelerator.device)).tolist()


def _gathered(tokens: Tensor, counts: list[int], accelerator: Accelerator) -> Tensor:
    """Rows of all ranks, which have so many each, in a tensor of their own or, alone, a view."""
    tokens = tokens.detach()
    if len(counts) == 1 or not any(counts):
        return tokens
    padded = tokens.new_zeros(max(counts), *tokens.shape[1:])
    padded[: len(tokens)] = tokens
    blocks = accelerator.gather(padded).split(max(counts))
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])
