"""Linear depth by its protocol: training, prediction and scores against plain versions."""

import contextlib

import numpy as np
import pytest
import torch
from painted import Mosaic, Painted, alone_and_on_ranks, annotated, depth, ramps, setting
from torch import nn
from torch.nn import functional as F

from distill.datasets.parts import Depth
from distill.probes.depth import depth_errors
from distill.probes.linear_head import LinearHead
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import dense_training
from distill.protocols import depth as protocol_module
from distill.protocols.depth import TASK, DepthProtocol, known_loss, predict, run, train_head
from students.errors import UserError
from students.features import Features

SHORT = DepthProtocol(steps=80, batch=6, learning_rate=3e-2, bins=16)
TWO = DepthProtocol(steps=2, batch=3, bins=8)
EIGEN = (45, 471, 41, 601)


def world(train=8, test=5, crop=None):
    return depth(annotated(*ramps(train, 1)), annotated(*ramps(test, 2)), crop)


def test_published_figures():
    protocol = DepthProtocol()
    schedule = protocol.schedule(24_231)
    assert (schedule.steps, schedule.batch, schedule.warmup) == (38_400, 16, 12_800)
    assert (schedule.lr, schedule.weight_decay, schedule.clip) == (3e-4, 1e-3, 35.0)
    assert protocol.bins == 256
    assert (TASK.name, TASK.part, TASK.kind) == ("depth", "depth", "dense")
    assert TASK.metrics == ("rmse", "abs_rel", "a1")
    assert TASK.lower == {"rmse", "abs_rel"}
    assert protocol.schedule(480).steps == 960


def scored_by_a_loop(prediction, truth, near, far, rows, columns):
    squares, relatives, hits = [], [], []
    for i in rows:
        for j in columns:
            p, t = float(prediction[i, j]), float(truth[i, j])
            if near < t < far:
                squares.append((p - t) ** 2)
                relatives.append(abs(p - t) / t)
                hits.append(max(p / t, t / p) < 1.25)
    return np.sqrt(np.mean(squares)), np.mean(relatives), np.mean(hits)


def planted(shape=(48, 64), seed=0):
    """Depths with holes and out of range, and predictions that get worse towards one corner."""
    generator = torch.Generator().manual_seed(seed)
    truth = 12 * torch.rand(shape, generator=generator)
    truth[torch.rand(shape, generator=generator) < 0.2] = 0
    worse = torch.linspace(0, 1, shape[0])[:, None] * torch.linspace(0, 1, shape[1])
    noise = 1 + worse * torch.randn(shape, generator=generator)
    return (truth * noise).clamp(0.001, 10), truth


def test_scores_against_a_loop_over_pixels_within_the_crop():
    prediction, truth = planted()
    found = depth_errors(prediction, truth, 0.001, 10.0, (5, 47, 4, 60))
    expected = scored_by_a_loop(prediction, truth, 0.001, 10, range(5, 47), range(4, 60))
    assert found == pytest.approx(expected, rel=1e-6)
    whole = scored_by_a_loop(prediction, truth, 0.001, 10, range(48), range(64))
    assert depth_errors(prediction, truth, 0.001, 10.0) == pytest.approx(whole, rel=1e-6)
    for wrong in ((4, 60, 5, 47), (5, 48, 4, 60), (5, 47, 3, 60), (6, 47, 4, 60)):
        other = depth_errors(prediction, truth, 0.001, 10.0, wrong)
        assert other != pytest.approx(expected, rel=1e-5)


def test_eigen_crop_leaves_the_frame_out():
    truth = torch.full((480, 640), 5.0)
    prediction = torch.full((480, 640), 9.0)
    prediction[45:471, 41:601] = 5.0
    assert depth_errors(prediction, truth, 0.001, 10.0, EIGEN) == (0.0, 0.0, 1.0)
    for row, column in ((44, 300), (471, 300), (200, 40), (200, 601)):
        frame = truth.clone()
        frame[row, column] = 1.0
        assert depth_errors(truth, frame, 0.001, 10.0, EIGEN) == (0.0, 0.0, 1.0)
    for row, column in ((45, 300), (470, 300), (200, 41), (200, 600)):
        inside = truth.clone()
        inside[row, column] = 1.0
        assert depth_errors(truth, inside, 0.001, 10.0, EIGEN)[0] > 0


def test_depths_at_the_bounds_are_unknown():
    truth = torch.tensor([[0.0, 0.5, 0.6, 9.9, 10.0, 11.0]])
    prediction = torch.tensor([[5.0, 5.0, 0.6, 9.9, 5.0, 5.0]])
    assert depth_errors(prediction, truth, 0.5, 10.0) == (0.0, 0.0, 1.0)
    assert depth_errors(prediction[:, :2], truth[:, :2], 0.5, 10.0) is None


@pytest.mark.parametrize("variance", [True, False])
def test_loss_is_that_of_the_known_pixels(variance):
    prediction, truth = planted()
    prediction, truth = prediction[None].double(), truth[None].double()
    known = [
        np.log(float(p) + 1e-3) - np.log(float(t) + 1e-3)
        for p, t in zip(prediction.flatten(), truth.flatten(), strict=True)
        if 0.5 < t < 10
    ]
    expected = np.sqrt(variance * np.var(known, ddof=1) + 0.15 * np.mean(known) ** 2)
    assert known_loss(prediction, truth, 0.5, 10, variance).item() == pytest.approx(expected)


def test_a_batch_without_a_known_depth_teaches_nothing():
    prediction = torch.rand(1, 4, 4, requires_grad=True)
    loss = known_loss(prediction, torch.zeros(1, 4, 4), 0.5, 10.0)
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def test_training_is_that_of_a_plain_loop(monkeypatch):
    truths, variances, loss_of = [], [], known_loss

    def spy(prediction, truth, near, far, variance):
        truths.append(truth)
        variances.append(variance)
        return loss_of(prediction, truth, near, far, variance)

    monkeypatch.setattr(protocol_module, "known_loss", spy)
    encoder = Mosaic()
    protocol = DepthProtocol(steps=21, batch=4, learning_rate=1e-3, bins=12)
    found = train_head(setting(world(), encoder), protocol)
    assert variances == [False] * 2 + [True] * 19

    norm, conv = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1)
    with torch.no_grad():
        start = LinearHead(8, 12, torch.Generator().manual_seed(0))
        conv.weight.copy_(start.linear.weight[:, :, None, None])
        conv.bias.zero_()
    parameters = [*norm.parameters(), *conv.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=1e-3)
    centres = torch.linspace(0.5, 10, 12)[None, :, None, None]
    encoder.eval()
    for step, (pixels, truth) in enumerate(zip(list(encoder.pixels), truths, strict=True)):
        rising, falling = (step + 1) / 7, 0.5 + 0.5 * np.cos(np.pi * (step - 7) / 14)
        optimiser.param_groups[0]["lr"] = 1e-3 * (rising if step < 7 else falling)
        with torch.no_grad():
            dense = encoder(pixels, 16).dense
        z = F.interpolate(conv(norm(dense.permute(0, 3, 1, 2))), scale_factor=4, mode="bilinear")
        weights = F.relu(z) + 0.1
        coarse = (weights / weights.sum(1, keepdim=True) * centres).sum(1, keepdim=True)
        full = F.interpolate(coarse, (16, 16), mode="bilinear")[:, 0]
        known = (truth > 0.5) & (truth < 10)
        g = torch.log(full[known] + 1e-3) - torch.log(truth[known] + 1e-3)
        spread = torch.var(g) if step >= 2 else 0
        optimiser.zero_grad()
        torch.sqrt(spread + 0.15 * g.mean() ** 2).backward()
        nn.utils.clip_grad_norm_(parameters, 35)
        optimiser.step()
    torch.testing.assert_close(found.linear.weight, conv.weight[:, :, 0, 0], rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(found.norm.running_mean, norm.running_mean)


def test_backbone_is_in_eval_without_gradient_and_left_as_it_was(monkeypatch):
    def trained():
        encoder = Mosaic().train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        run(setting(world(4, 2), encoder), TWO)
        same = all(torch.equal(before[name], v) for name, v in encoder.state_dict().items())
        return encoder.modes, same, encoder.training

    assert trained() == ({(False, False)}, True, True)
    monkeypatch.setattr(dense_training, "frozen", lambda encoder: contextlib.nullcontext())
    modes, same, _ = trained()  # the fault planted: seen in the mode, the gradient, the statistics
    assert (True, True) in modes
    assert not same


def test_prediction_is_the_mean_of_the_picture_and_its_mirror_image():
    generator = torch.Generator().manual_seed(5)
    head = LinearHead(8, 6, generator).eval()
    nn.init.normal_(head.linear.weight, generator=generator)
    asked = setting(world(), size=13)
    coarse = torch.randint(0, 256, (3, 4, 7), generator=generator).byte()
    picture = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :26, :50]
    found = predict(asked, head, picture)

    encoder = asked.model.encoder.eval()
    small = F.interpolate(picture[None] / 255, (13, 25), mode="bicubic", antialias=True)
    centres = torch.linspace(0.5, 10, 6)[None, :, None, None]

    def by_hand(pixels):
        total, times = torch.zeros(13, 25), torch.zeros(25)
        for x in (0, 9, 12):
            z = head(encoder(pixels[..., x : x + 13], 13).dense)
            weights = F.relu(F.interpolate(z, scale_factor=4, mode="bilinear")) + 0.1
            fine = (weights * centres).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
            total[:, x : x + 13] += F.interpolate(fine, (13, 13), mode="bilinear")[0, 0]
            times[x : x + 13] += 1
        return total / times

    with torch.no_grad():
        small = small.clamp(0, 1)
        straight, mirrored = by_hand(small), by_hand(small.flip(3)).flip(1)
    assert not torch.allclose(straight, mirrored, atol=0.05)  # this backbone is not symmetric
    both = (straight + mirrored)[None, None] / 2
    expected = F.interpolate(both, (26, 50), mode="bilinear")[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_predictions_are_clamped(monkeypatch):
    monkeypatch.setattr(
        protocol_module, "depth_maps", lambda z, size, near, far: 40 * z.new_ones(len(z), *size)
    )
    head = LinearHead(8, 6, torch.Generator()).eval()
    found = predict(setting(world()), head, torch.zeros(3, 20, 20).byte())
    assert bool((found == 10).all())


def test_scores_are_means_over_pictures(monkeypatch):
    pairs = [planted((48, 64), 1), planted((30, 40), 2), planted((40, 44), 3)]
    pairs.append((torch.full((30, 30), 5.0), torch.zeros(30, 30)))  # nothing is known
    pictures = [torch.full((3, *t.shape), i).byte() for i, (_, t) in enumerate(pairs)]
    test = annotated(pictures, [truth for _, truth in pairs])
    monkeypatch.setattr(
        protocol_module, "predict", lambda s, head, picture: pairs[int(picture[0, 0, 0])][0]
    )
    outcome = run(setting(depth(annotated(*ramps(4, 1)), test, (3, 29, 2, 38))), TWO)
    each = [scored_by_a_loop(p, t, 0.5, 10, range(3, 29), range(2, 38)) for p, t in pairs[:3]]
    assert outcome.samples == 3
    expected = dict(zip(("rmse", "abs_rel", "a1"), np.mean(each, 0), strict=True))
    assert outcome.values == pytest.approx(expected, rel=1e-6)


def test_it_learns_what_can_be_seen():
    told = []
    values = run(setting(world(12, 5), progress=lambda *done: told.append(done)), SHORT).values
    assert told[-1] == (85, 85)
    constant = [depth_errors(torch.full_like(t, 5.0), t, 0.5, 10.0) for t in ramps(5, 2)[1]]
    rmse, abs_rel, a1 = np.mean(constant, 0)
    assert values["rmse"] < 0.6 * rmse
    assert values["abs_rel"] < 0.6 * abs_rel
    assert values["a1"] > a1 + 0.2


def test_what_cannot_be_done_is_said():
    def without(pixels, size=None):
        return Features(pixels.mean((2, 3)), None)

    with pytest.raises(CannotProbe, match="mosaic has no dense features"):
        run(setting(world(), without), TWO)
    good, (pictures, truths) = annotated(*ramps(4, 1)), ramps(2, 2)
    unknown = annotated(pictures, [torch.zeros_like(truth) for truth in truths])
    with pytest.raises(NothingToScore):
        run(setting(depth(good, unknown)), TWO)
    with pytest.raises(UserError, match="picture 1: truncated"):
        run(setting(Depth(good, annotated(pictures, truths, bad={1}), 0.5, 10.0)), TWO)
    truths[1][3, 3] = float("inf")
    with pytest.raises(UserError, match="picture 1: a depth is not a finite number"):
        run(setting(depth(good, annotated(pictures, truths))), TWO)


def test_several_processes_have_the_numbers_of_one(tmp_path):
    protocol = DepthProtocol(steps=6, batch=5, learning_rate=1e-2, bins=8)

    def work(rank, ranks):
        asked = setting(world(7, 7), rank=rank, ranks=ranks)
        read, seen = Painted.read, []

        def counted(self, index):
            seen.append(index)
            return read(self, index)

        Painted.read = counted
        try:
            outcome = run(asked, protocol)
        finally:
            Painted.read = read
        return {name: torch.tensor(v) for name, v in outcome.values.items()}, {
            "samples": outcome.samples,
            "read": len(seen),
        }

    (alone, counts), shared = alone_and_on_ranks(work, 2, tmp_path)
    assert counts["read"] == 6 * 5 + 7
    assert [theirs["read"] for _, theirs in shared] == [6 * 3 + 4, 6 * 3 + 3]
    for numbers, theirs in shared:
        assert theirs["samples"] == counts["samples"] == 7
        for name, value in alone.items():
            torch.testing.assert_close(numbers[name], value, rtol=1e-4, atol=1e-6)
