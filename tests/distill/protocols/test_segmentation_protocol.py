"""Linear segmentation by its protocol: training, prediction and score against plain versions."""

import contextlib
import dataclasses
import weakref

import numpy as np
import pytest
import torch
from painted import (
    Mosaic,
    Painted,
    alone_and_on_ranks,
    annotated,
    blocks,
    segmentation,
    setting,
)
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F
from torchmetrics import JaccardIndex

from distill.datasets.parts import IGNORE
from distill.probes.linear_head import LinearHead
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import dense_training
from distill.protocols import segmentation as protocol_module
from distill.protocols.dense_training import steps_for
from distill.protocols.segmentation import (
    TASK,
    SegmentationProtocol,
    pixel_loss,
    predict,
    run,
    train_head,
)
from students.errors import UserError
from students.features import Features

SHORT = SegmentationProtocol(steps=60, batch=6, learning_rate=3e-2)
TWO = SegmentationProtocol(steps=2, batch=3)


def world(train=8, test=5):
    return segmentation(annotated(*blocks(train, 1)), annotated(*blocks(test, 2)))


def test_published_figures():
    schedule = SegmentationProtocol().schedule(20_210)
    assert (schedule.steps, schedule.batch, schedule.warmup) == (40_000, 16, 1500)
    assert (schedule.lr, schedule.weight_decay, schedule.clip) == (1e-3, 1e-3, None)
    assert (TASK.name, TASK.part, TASK.kind, TASK.metrics) == (
        "segmentation",
        "segmentation",
        "dense",
        ("miou",),
    )
    assert not TASK.lower
    few = SegmentationProtocol().schedule(500)
    assert (few.steps, few.warmup) == (1000, 38)  # 32 epochs
    assert steps_for(1, 40_000, 16) == 2
    assert steps_for(1, 40_000, 64) == 1


def test_loss_is_the_mean_over_pixels_that_count():
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    truth = torch.randint(0, 3, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    truth[0, :3] = IGNORE
    fine = F.interpolate(logits, (5, 6), mode="bilinear").numpy()
    terms = []
    for b, i, j in np.ndindex(2, 5, 6):
        if truth[b, i, j] != IGNORE:
            z = fine[b, :, i, j]
            terms.append(np.log(np.exp(z).sum()) - z[truth[b, i, j]])
    assert pixel_loss(logits, truth).item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_a_batch_without_a_class_teaches_nothing():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = pixel_loss(logits, torch.full((2, 4, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_training_is_that_of_a_plain_loop(monkeypatch):
    truths = []

    def spy(logits, truth, step):
        truths.append(truth)
        return pixel_loss(logits, truth)

    monkeypatch.setattr(protocol_module, "pixel_loss", spy)
    encoder = Mosaic()
    protocol = SegmentationProtocol(steps=12, batch=4, learning_rate=1e-2, dropout=0.0)
    found = train_head(setting(world(), encoder), protocol)

    norm, conv = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
    with torch.no_grad():
        start = LinearHead(8, 3, torch.Generator().manual_seed(0))
        conv.weight.copy_(start.linear.weight[:, :, None, None])
        conv.bias.zero_()
    parameters = [*norm.parameters(), *conv.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12)  # no step of warm-up: 0.45
    encoder.eval()
    for pixels, truth in zip(list(encoder.pixels), truths, strict=True):
        with torch.no_grad():
            dense = encoder(pixels, 16).dense
        logits = conv(norm(dense.permute(0, 3, 1, 2)))
        full = F.interpolate(logits, (16, 16), mode="bilinear")
        optimiser.zero_grad()
        F.cross_entropy(full, truth, ignore_index=-100).backward()
        optimiser.step()
        cosine.step()
    torch.testing.assert_close(found.linear.weight, conv.weight[:, :, 0, 0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.linear.bias, conv.bias, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.norm.running_mean, norm.running_mean)


def test_every_picture_is_seen_once_an_epoch_with_its_own_map(monkeypatch):
    seen, encoder = [], Mosaic()
    monkeypatch.setattr(
        protocol_module, "pixel_loss", lambda z, truth, step: seen.append(truth) or z.mean()
    )
    # Picture i is of the colour 20 i and of the class i all over.
    pictures = [torch.full((3, 20, 20 + i), 20 * i).byte() for i in range(6)]
    truths = [torch.full((20, 20 + i), i) for i in range(6)]
    part = segmentation(annotated(pictures, truths), annotated(pictures, truths), classes=6)
    monkeypatch.setattr(protocol_module, "SCALE", (1.0, 2.0))  # no padding
    train_head(setting(part, encoder), SegmentationProtocol(steps=3, batch=4))
    colours = torch.cat([(pixels[:, 0, 0, 0] * 255 / 20).round() for pixels in encoder.pixels])
    classes = torch.cat([truth[:, 0, 0] for truth in seen])
    assert torch.equal(colours.long(), classes)
    assert sorted(classes[:6].tolist()) == sorted(classes[6:].tolist()) == list(range(6))


def test_every_crop_is_another(monkeypatch):
    monkeypatch.setattr(protocol_module, "SCALE", (1.5, 2.0))  # never all of the picture
    encoder = Mosaic()
    picture = torch.randint(0, 256, (3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()
    split = annotated([picture], [torch.zeros(40, 40).long()])
    train_head(setting(segmentation(split, split), encoder), TWO)
    crops = torch.cat(encoder.pixels)
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == len(crops) == 6


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


def test_draws_are_the_seeds_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    one, again, other = (
        train_head(setting(world(), seed=seed), TWO).linear.weight for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    still = SegmentationProtocol(steps=1, batch=3, learning_rate=0.0)
    drawn = LinearHead(8, 3, torch.Generator().manual_seed(4)).linear.weight
    assert torch.equal(train_head(setting(world(), seed=4), still).linear.weight, drawn)


def test_prediction_is_that_of_windows_by_hand_at_the_pictures_own_size():
    generator = torch.Generator().manual_seed(5)
    head = LinearHead(8, 20, generator).eval()
    nn.init.normal_(head.linear.weight, generator=generator)
    asked = setting(world(), size=13)
    coarse = torch.randint(0, 256, (3, 4, 7), generator=generator).byte()
    picture = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :26, :50]
    pixels = F.interpolate(picture[None] / 255, (13, 25), mode="bicubic", antialias=True)
    with torch.no_grad():
        usual = asked.model.encoder.eval()(pixels.clamp(0, 1), 13).dense.flatten(0, 2)
        head.norm.running_mean.copy_(usual.mean(0))  # or one class wins everywhere
    found = predict(asked, head, picture)
    assert found.shape == (26, 50)

    total, times = torch.zeros(20, 13, 25), torch.zeros(25)
    encoder = asked.model.encoder.eval()
    with torch.no_grad():
        for x in (0, 9, 12):
            dense = encoder(pixels.clamp(0, 1)[..., x : x + 13], 13).dense
            logits = head(dense)
            total[:, :, x : x + 13] += F.interpolate(logits, (13, 13), mode="bilinear")[0]
            times[x : x + 13] += 1
        full = F.interpolate((total / times)[None], (26, 50), mode="bilinear")[0]
    assert len(full.argmax(0).unique()) > 5
    assert (found == full.argmax(0)).double().mean() > 0.999  # but for ties of rounding


def test_score_is_that_of_the_libraries(monkeypatch):
    random = np.random.default_rng(0)
    truths, predictions = [], []
    for shape in ((9, 12), (20, 8), (15, 15)):
        truth = random.integers(0, 4, shape)  # of classes 0 to 5, 4 and 5 are never there
        guess = np.where(random.random(shape) < 0.6, truth, random.integers(0, 5, shape))
        truth[random.random(shape) < 0.3] = IGNORE
        truths.append(torch.from_numpy(truth))
        predictions.append(torch.from_numpy(guess))
    truths.append(torch.full((6, 6), IGNORE))
    predictions.append(torch.full((6, 6), 5))  # where nothing counts: class 5 stays absent
    pictures = [torch.full((3, *truth.shape), i).byte() for i, truth in enumerate(truths)]
    monkeypatch.setattr(
        protocol_module, "predict", lambda s, head, picture: predictions[int(picture[0, 0, 0])]
    )
    part = segmentation(annotated(*blocks(4, 1)), annotated(pictures, truths), classes=6)
    outcome = run(setting(part), TWO)
    assert outcome.samples == 3

    metric = JaccardIndex("multiclass", num_classes=6, average="macro", ignore_index=IGNORE)
    for guess, truth in zip(predictions, truths, strict=True):
        metric.update(guess[None], truth[None])
    assert outcome.values["miou"] == pytest.approx(100 * metric.compute().item(), abs=1e-4)
    flat = [np.concatenate([m.flatten() for m in maps]) for maps in (truths, predictions)]
    kept = flat[0] != IGNORE
    counts = confusion_matrix(flat[0][kept], flat[1][kept], labels=range(5))
    ious = [counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(5)]
    assert ious[4] == 0
    assert outcome.values["miou"] == pytest.approx(100 * np.mean(ious))


def test_it_learns_what_can_be_seen_and_not_what_cannot():
    told, asked = [], setting(world(12, 5), progress=lambda *done: told.append(done))
    assert run(asked, SHORT).values["miou"] > 70
    assert told[-1] == (65, 65)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    pictures, truths = blocks(12, 1)
    mixed = [torch.roll(truth, (8, 8), (0, 1)) for truth in truths]
    blind = segmentation(annotated(pictures, mixed), annotated(*blocks(5, 2)))
    assert run(setting(blind), SHORT).values["miou"] < 45


def test_pictures_are_read_ahead_but_not_kept():
    alive, most = set(), [0]

    class Counted(Painted):
        def read(self, index):
            picture = super().read(index)
            token = object()
            alive.add(token)
            weakref.finalize(picture, alive.discard, token)
            most[0] = max(most[0], len(alive))
            return picture

    pictures, truths = blocks(80, 1, shape=(12, 12))
    split = dataclasses.replace(annotated(pictures, truths), pictures=Counted(pictures))
    run(setting(segmentation(split, split), size=8), SegmentationProtocol(steps=30, batch=4))
    assert 0 < most[0] <= 16


def test_what_cannot_be_done_is_said():
    def without(pixels, size=None):
        return Features(pixels.mean((2, 3)), None)

    def broken(pixels, size=None):
        return Features(None, torch.full((len(pixels), 2, 2, 4), float("nan")))

    with pytest.raises(CannotProbe, match="mosaic has no dense features"):
        run(setting(world(), without), TWO)
    with pytest.raises(CannotProbe, match="not finite"):
        run(setting(world(), broken), TWO)
    good, (pictures, truths) = annotated(*blocks(4, 1)), blocks(2, 2)
    ignored = annotated(pictures, [torch.full_like(truth, IGNORE) for truth in truths])
    with pytest.raises(NothingToScore):
        run(setting(segmentation(good, ignored)), TWO)
    with pytest.raises(UserError, match="picture 1: truncated"):
        run(setting(segmentation(annotated(pictures, truths, bad={1}), good)), TWO)
    with pytest.raises(UserError, match=r"picture \d: .* class 2, and there are 2 from 0"):
        run(setting(segmentation(good, annotated(pictures, truths), classes=2)), TWO)
    cut = annotated(pictures, [truth[1:] for truth in truths])
    with pytest.raises(UserError, match=r"picture 0: the map is 23 x 32 pixels, .* 24 x 32"):
        run(setting(segmentation(good, cut)), TWO)


@pytest.mark.parametrize(("ranks", "batch"), [(2, 5), (3, 2)])
def test_several_processes_have_the_numbers_of_one(ranks, batch, tmp_path):
    protocol = SegmentationProtocol(steps=6, batch=batch, learning_rate=1e-2)

    def work(rank, ranks):
        asked = setting(world(7, 7), rank=rank, ranks=ranks)
        outcome = run(asked, protocol)
        read = Painted.read
        seen = []

        def counted(self, index):
            seen.append(index)
            return read(self, index)

        Painted.read = counted
        try:
            head = train_head(asked, protocol)
        finally:
            Painted.read = read
        return {**head.state_dict(), "miou": torch.tensor(outcome.values["miou"])}, {
            "samples": outcome.samples,
            "read": len(seen),
        }

    (alone, counts), shared = alone_and_on_ranks(work, ranks, tmp_path)
    for numbers, theirs in shared:
        assert theirs["samples"] == counts["samples"] == 7
        assert theirs["read"] == 6 * -(-batch // ranks)  # its share, not the whole batch
        for name, value in alone.items():
            torch.testing.assert_close(numbers[name], value, rtol=1e-4, atol=1e-6)
        for name, value in shared[0][0].items():
            assert torch.equal(numbers[name], value)
