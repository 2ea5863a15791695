"""The dense probes' head and its training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.probes.linear_head import LinearHead, Schedule, finer_labels, fit, upsampled


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_head_is_batchnorm_and_a_1x1_convolution():
    head = LinearHead(6, 4, generator()).train()
    nn.init.normal_(head.linear.weight)
    nn.init.normal_(head.linear.bias)
    norm, conv = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
    with torch.no_grad():
        conv.weight.copy_(head.linear.weight[:, :, None, None])
        conv.bias.copy_(head.linear.bias)
    dense = torch.randn(5, 3, 2, 6) * 4 + 1
    maps = dense.permute(0, 3, 1, 2)
    torch.testing.assert_close(head(dense), conv(norm(maps)))
    torch.testing.assert_close(head.eval()(dense), conv(norm.eval()(maps)))


def test_initial_weights_have_the_published_spread_and_come_from_the_generator():
    state = torch.get_rng_state()
    head, again = LinearHead(300, 64, generator(4)), LinearHead(300, 64, generator(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(head.linear.weight, again.linear.weight)
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.linear.bias.any()


def test_dropout_takes_whole_channels_of_an_image_in_training_only():
    head = LinearHead(40, 40, generator(), dropout=0.25)
    head.norm = nn.Identity()
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(40))
    out = head.train()(torch.ones(50, 2, 2, 40))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    values = out[:, :, 0, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 4 / 3]))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert (head.eval()(torch.ones(2, 2, 2, 40)) == 1).all()


def test_schedule_warms_up_and_comes_down_as_torch_has_it():
    schedule = Schedule(steps=30, batch=4, lr=0.5, weight_decay=0.0, warmup=6)
    parameter = nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.SGD([parameter], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 24)
    rates = []
    for _ in range(24):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()
    ours = [0.5 * schedule.factor(step) for step in range(30)]
    assert ours[:6] == pytest.approx([0.5 * (i + 1) / 6 for i in range(6)])
    assert ours[6:] == pytest.approx(rates)


def test_fit_leaves_features_and_global_state_alone_and_visits_every_image():
    dense = torch.randn(10, 2, 2, 6, generator=generator())
    kept, state, seen = dense.clone(), torch.get_rng_state(), []

    def loss_of(logits, rows, step):
        seen.extend(rows.tolist())
        return logits.square().mean()

    schedule = Schedule(steps=5, batch=4, lr=1e-2, weight_decay=0.0, warmup=1)
    head = fit(LinearHead(6, 3, generator(1), dropout=0.1), dense, loss_of, schedule)
    assert not head.training
    assert torch.equal(dense, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(seen) == sorted([*range(10), *range(10)])
    again = fit(LinearHead(6, 3, generator(1), dropout=0.1), dense, loss_of, schedule)
    assert torch.equal(head.linear.weight, again.linear.weight)


def test_clipping_bounds_the_step():
    dense = torch.randn(4, 2, 2, 6, generator=generator())
    norms = []

    def run(clip):
        head = LinearHead(6, 3, generator(1))
        before = copy.deepcopy(head.state_dict())
        schedule = Schedule(1, 4, 1.0, 0.0, 0, clip)
        fit(head, dense, lambda z, rows, step: 1e4 * z.square().mean(), schedule)
        norms.append(max(p.grad.norm().item() for p in head.parameters()))
        return before

    run(None)
    run(1e-3)
    assert norms[0] > 1
    assert norms[1] <= 1e-3


def test_labels_are_those_of_the_nearest_pixel():
    labels = torch.arange(64).view(1, 8, 8)
    fine = finer_labels(labels, (1, 1))
    assert fine.shape == (1, 4, 4)
    # Of a block of 2 x 2 pixels the one below and right of the middle.
    assert torch.equal(fine[0], labels[0, 1::2, 1::2].float())
    assert torch.equal(finer_labels(labels, (4, 4)), labels.float())


def test_upsampling_a_linear_head_equals_a_linear_head_of_upsampled_features():
    head = LinearHead(6, 3, generator()).eval()
    dense = torch.randn(2, 3, 3, 6)
    fine = F.interpolate(dense.permute(0, 3, 1, 2), (12, 12), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(upsampled(head(dense), (12, 12)), head(fine))
