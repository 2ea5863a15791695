"""Attribute recall: which of the 64 (kind, colour) pairs a scene shows, read off the summary.

Protocol: one logistic regression a pair on summaries standardised by the training images, L2
penalty 1 / (2 C) with C = 0.1 beside the sum of the losses (as scikit-learn writes it), full-batch
L-BFGS from zero. An image with m pairs scores the share of them among its m highest scored pairs
(R-precision, Manning et al., Introduction to Information Retrieval, section 8.4).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTY_C = 0.1
ITERATIONS = 60


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both (·, D) with the mean and standard deviation of `train`'s channels removed.

    A channel that is constant over `train` becomes zero in both.
    """
    mean, std = train.mean(0), train.std(0, correction=0)
    alive = std > 1e-6 * std.amax().clamp_min(1e-30)
    scale = torch.where(alive, 1 / std.clamp_min(1e-30), torch.zeros_like(std))
    return (train - mean) * scale, (test - mean) * scale


def logistic_scores(
    train: Tensor, truth: Tensor, test: Tensor, penalty_c: float = PENALTY_C
) -> Tensor:
    """Logits (M, K) for test (M, D) of K logistic regressions on train (N, D), truth (N, K) bool.

    Each minimises C * sum of log losses + |w|^2 / 2 with an unpenalised intercept.
    """
    labels = truth.to(train.dtype)
    weight = torch.zeros(truth.shape[1], train.shape[1], dtype=train.dtype, requires_grad=True)
    bias = torch.zeros(truth.shape[1], dtype=train.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = F.linear(train, weight, bias)
        fit = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        # Divided by N so that the tolerances of L-BFGS mean the same for any number of images.
        total = (fit + weight.square().sum() / (2 * penalty_c)) / len(train)
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    return F.linear(test, weight.detach(), bias.detach())


def r_precision(scores: Tensor, truth: Tensor) -> float:
    """Mean over rows, in percent, of the share of a row's m true columns among its m best scored.

    Scores (N, K), truth (N, K) bool; rows without a true column are left out.

    Raises:
        ValueError: if no row has a true column.
    """
    wanted = truth.sum(1)
    if not bool((wanted > 0).any()):
        raise ValueError("no row has a true column")
    order = scores.sort(dim=1, descending=True, stable=True).indices
    taken = torch.arange(truth.shape[1], device=truth.device) < wanted[:, None]
    hits = (truth.gather(1, order) & taken).sum(1)
    some = wanted > 0
    return 100 * float((hits[some] / wanted[some]).mean())


def attribute_recall(train: Tensor, train_truth: Tensor, test: Tensor, test_truth: Tensor) -> float:
    """R-precision in percent on test (M, D), (M, K) of a linear probe of train (N, D), (N, K)."""
    train, test = standardise(train, test)
    return r_precision(logistic_scores(train, train_truth, test), test_truth)
