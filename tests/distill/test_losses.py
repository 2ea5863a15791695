import math

import numpy as np
import pytest
import torch

from distill.losses import best_scale, explained_variance, token_loss


def slow(prediction, target, terms, beta):
    """The published loss of one image, one token at a time."""
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
@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (3, 6)], ids=["dense", "summary"])
def test_each_loss_is_the_mean_over_an_images_tokens_of_the_plain_formula(terms, shape):
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(shape, generator=generator) for _ in range(2))
    t *= torch.tensor([0.5, 1, 4]).view(-1, *[1] * (t.ndim - 1))
    losses, sums = token_loss(p, t, terms, beta=0.7)
    each = [slow(ours, theirs, terms, 0.7) for ours, theirs in zip(p, t, strict=True)]
    assert losses.tolist() == pytest.approx(each, rel=1e-5)
    # All images have as many tokens: the mean over images is that over all tokens of the batch.
    assert float(losses.mean()) == pytest.approx(slow(p, t, terms, 0.7), rel=1e-5)
    assert sums.tolist() == pytest.approx(
        [float((a * b).sum()) for a, b in ((p, t), (p, p), (t, t))]
    )


@pytest.mark.parametrize("terms", [{}, {"relational": 1.0, "similarity_kl": 0.5, "gram": 2.0}])
def test_without_terms_of_tokens_there_are_sums_and_no_loss(terms):
    p, t = torch.randn(3, 4, 6).requires_grad_(), torch.randn(3, 4, 6)
    losses, sums = token_loss(p, t, terms)
    assert losses.tolist() == [0, 0, 0]
    assert sums.tolist() == token_loss(p, t, {"mse": 1.0})[1].tolist()
    losses.sum().backward()
    assert not p.grad.any()


def test_of_no_image_there_is_no_loss():
    p = torch.randn(0, 2, 2, 6).requires_grad_()
    losses, sums = token_loss(p, torch.randn(0, 2, 2, 6), {"cosine": 1.0})
    assert losses.shape == (0,)
    losses.sum().backward()
    assert p.grad.shape == p.shape
    assert sums.tolist() == [0, 0, 0]


def test_one_token_of_large_norm_does_not_hide_the_others():
    """A cosine of the flattened map would be 0.05 here."""
    torch.manual_seed(0)
    target, prediction = torch.randn(1, 256, 64), torch.randn(1, 256, 64)
    target[:, 0] *= 100
    prediction[:, 0] = target[:, 0]
    losses, _ = token_loss(prediction, target, {"cosine": 1.0})
    assert float(losses) > 0.9


def test_gradient_is_finite_at_a_zero_prediction():
    p = torch.zeros(2, 3, requires_grad=True)
    token_loss(p, torch.randn(2, 3), {"cosine": 1.0})[0].sum().backward()
    assert torch.isfinite(p.grad).all()


def test_gradient_at_a_prediction_of_hardly_any_length_is_that_of_the_loss():
    """Where the loss is all but linear, up to lengths of 1e-6."""
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    p.mul_(1e-8).requires_grad_()

    def losses_of(x):
        return token_loss(x, t, {"cosine": 1e-6})[0]

    assert torch.autograd.gradcheck(losses_of, p, eps=1e-10, rtol=1e-6)


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


def plain(prediction, target, terms, beta):
    """The same from torch's own functions, one autograd graph over everything."""
    functional = torch.nn.functional
    each = terms.get("cosine", 0) * (1 - functional.cosine_similarity(prediction, target, dim=-1))
    for term, of in (
        ("smooth_l1", functional.smooth_l1_loss(prediction, target, beta=beta, reduction="none")),
        ("mse", functional.mse_loss(prediction, target, reduction="none")),
    ):
        each = each + terms.get(term, 0) * of.mean(-1)
    return each.flatten(1).mean(1)


TERMS = [{"cosine": 0.9, "smooth_l1": 0.1}, {"cosine": 1.0}, {"smooth_l1": 0.3, "mse": 0.7}]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk", [1, 30, 300, 1 << 22])
def test_gradient_is_autograds_whatever_the_chunks(terms, chunk, monkeypatch):
    """Chunks of less than a token, of some, of one image and a part of the next, of all; and each
    image's loss has a gradient of its own."""
    monkeypatch.setattr("distill.losses.CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(3, 5, 7, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    of_losses = torch.tensor([3.0, 0.0, -0.5], dtype=torch.float64)
    found = []
    for losses_of in (lambda x: token_loss(x, t, terms, 0.7)[0], lambda x: plain(x, t, terms, 0.7)):
        x = p.clone().requires_grad_()
        losses = losses_of(x)
        losses.backward(of_losses)
        found.append((losses.detach(), x.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-14)


def test_the_graph_can_be_gone_through_again():
    """As when the gradients of several teachers are compared before the step."""
    p, t = torch.randn(3, 5, 6).requires_grad_(), torch.randn(3, 5, 6)
    losses, _ = token_loss(p, t, TERMS[0])
    (first,) = torch.autograd.grad(losses.mean(), p, retain_graph=True)
    (again,) = torch.autograd.grad(losses.mean(), p)
    assert first.equal(again)


def test_short_floats_are_summed_in_long_ones():
    """bfloat16 tokens give the loss of the same numbers in float32, and its rounded gradient."""
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(64, 50, 32, generator=generator).bfloat16() for _ in range(2))
    short, long = p.clone().requires_grad_(), p.float().requires_grad_()
    losses, sums = token_loss(short, t, TERMS[0])
    expected = plain(long, t.float(), TERMS[0], 1.0)
    assert sums.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(losses.detach(), expected.detach(), rtol=1e-6, atol=0)
    # Factors that are no short floats: they are not rounded before they are multiplied.
    of_losses = 1 + torch.rand(64, generator=generator) / 3
    losses.backward(of_losses)
    expected.backward(of_losses)
    torch.testing.assert_close(short.grad, long.grad.bfloat16(), rtol=1 / 128, atol=0)


def test_targets_in_the_teachers_own_short_floats_cost_no_accuracy():
    """Standardised targets rounded to bfloat16 move loss and gradient by less than 1e-4."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(4096, 64, generator=generator)
    p = (0.7 * t + 0.5 * torch.randn(4096, 64, generator=generator)).requires_grad_()
    found = []
    for target in (t, t.bfloat16()):
        loss = token_loss(p, target, TERMS[0])[0].mean()
        (gradient,) = torch.autograd.grad(loss, p)
        found.append((float(loss.detach()), gradient.flatten()))
    (exact, g), (rounded, h) = found
    assert rounded == pytest.approx(exact, rel=1e-4)
    assert float(torch.nn.functional.cosine_similarity(g, h, dim=0)) > 1 - 1e-4
