"""What a student is asked for: losses between its predictions and a teacher's targets."""

from __future__ import annotations

from torch import Tensor

from distill.losses import token_loss
from distill.recipe.learning import LossConfig
from students import Features, match_grids


def compare(
    predicted: Features, target: Features, config: LossConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Loss and sums of each token kind that both have, dense maps on a common grid."""
    parts = {}
    if predicted.summary is not None and target.summary is not None and config.summary:
        parts["summary"] = token_loss(
            predicted.summary, target.summary, config.summary, config.beta
        )
    if predicted.dense is not None and target.dense is not None and config.dense:
        ours, theirs = match_grids(predicted.dense, target.dense, config.grid)
        parts["dense"] = token_loss(ours, theirs, config.dense, config.beta)
    return parts
