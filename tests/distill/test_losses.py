import math

import numpy as np
import pytest
import torch

from distill.losses import best_scale, explained_variance, token_loss


def slow(prediction, target, terms, beta):
    """The published loss, one token at a time."""
    total = 0.0
    tokens = list(
        zip(
            prediction.reshape(-1, prediction.shape[-1]).tolist(),
            target.reshape(-1, target.shape[-1]).tolist(),
            strict=True,
        )
    )
    for p, t in tokens:
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        cosine = dot / math.sqrt(sum(a * a for a in p)) / math.sqrt(sum(b * b for b in t))
        off = [abs(a - b) for a, b in zip(p, t, strict=True)]
        smooth = [0.5 * d * d / beta if d < beta else d - 0.5 * beta for d in off]
        total += terms.get("cosine", 0) * (1 - cosine)
        total += terms.get("smooth_l1", 0) * sum(smooth) / len(smooth)
        total += terms.get("mse", 0) * sum(d * d for d in off) / len(off)
    return total / len(tokens)


@pytest.mark.parametrize(
    "terms",
    [{"cosine": 1.0}, {"cosine": 0.9, "smooth_l1": 0.1}, {"mse": 0.5}, {"smooth_l1": 1.0}],
)
def test_loss_is_the_mean_over_tokens_of_the_plain_formula(terms):
    p, t = torch.randn(3, 2, 4, 6), 2 * torch.randn(3, 2, 4, 6)
    loss, _ = token_loss(p, t, terms, beta=0.7)
    assert float(loss) == pytest.approx(slow(p, t, terms, 0.7), rel=1e-5)


def test_one_token_of_large_norm_does_not_hide_the_others():
    """A cosine of the flattened map would be 0.05 here."""
    torch.manual_seed(0)
    target, prediction = torch.randn(1, 256, 64), torch.randn(1, 256, 64)
    target[:, 0] *= 100
    prediction[:, 0] = target[:, 0]
    loss, _ = token_loss(prediction, target, {"cosine": 1.0})
    assert float(loss) > 0.9


def test_gradient_is_finite_at_a_zero_prediction():
    p = torch.zeros(2, 3, requires_grad=True)
    token_loss(p, torch.randn(2, 3), {"cosine": 1.0})[0].backward()
    assert torch.isfinite(p.grad).all()


def test_scale_and_explained_variance_are_those_of_least_squares():
    torch.manual_seed(0)
    target = torch.randn(500, 8)
    prediction = 0.1 * target + 0.05 * torch.randn(500, 8)
    _, sums = token_loss(prediction, target, {"mse": 1.0})
    p, t = prediction.numpy().ravel(), target.numpy().ravel()
    (scale,), residual, *_ = np.linalg.lstsq(p[:, None], t, rcond=None)
    assert float(best_scale(sums)) == pytest.approx(float(scale), rel=1e-4)
    assert float(explained_variance(sums)) == pytest.approx(
        1 - float(residual[0]) / float((t**2).sum()), rel=1e-4
    )


def test_a_prediction_of_the_wrong_sign_explains_nothing():
    t = torch.randn(5, 4)
    assert float(explained_variance(token_loss(-t, t, {"mse": 1.0})[1])) == 0
