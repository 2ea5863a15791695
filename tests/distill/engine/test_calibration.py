"""Normalisers of a stage: fitted over all ranks, and following what all ranks see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launch import on_ranks

from distill.engine import targets as targets_module
from distill.engine.calibration import calibrate, merged_over_ranks
from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.engine.targets import TargetTeacher
from distill.launch import make_accelerator
from students import Features, UserError, normalisers
from students.moments import Moments
from students.normalisers import build_normaliser

WIDTHS = {"summary": 4, "dense": 12}
STEPS, BATCH, MOMENTUM = 6, 10, 0.2
PARTS = {
    "one process": [[slice(0, 10)]],
    "micro-batches": [[slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]],
    "uneven ranks": [[slice(0, 4), slice(4, 7)], [slice(7, 10)]],
    "a rank without rows": [[slice(0, 9), slice(9, 10)], []],
}
"""For each rank, the rows of each part of its batch."""


class Mixing:
    """A teacher whose features are fixed mixtures of the pixels, around 30 and -2."""

    def __init__(self):
        random = torch.Generator().manual_seed(5)
        self.mix = {kind: torch.randn(3, d, generator=random) for kind, d in WIDTHS.items()}

    def __call__(self, pixels, size):
        dense = pixels.permute(0, 2, 3, 1) @ self.mix["dense"]
        dense = 30 + 0.05 * (dense + 0.3 * dense.square().roll(1, -1) + dense.roll(3, 1).sin())
        summary = pixels[:, :, 0, :2].mean(-1) @ self.mix["summary"] - 2
        return Features(summary, dense)


def teacher(kind, **options):
    held = {name: build_normaliser(kind, width) for name, width in WIDTHS.items()}
    return TargetTeacher("mix", Mixing(), [4], held, **options)


def pixels(step):
    drawn = torch.randn(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    return drawn * (1 + step / 4)


def part_of(step, rows):
    seen = pixels(step)[rows]
    return Part(seen, torch.arange(len(seen)), np.zeros((len(seen), 3), dtype=np.int64))


def batches(parts):
    """What a rank calibrates on: every row of its parts, which one more row, unseen, follows."""
    for step in range(STEPS):
        for rows in parts:
            part = part_of(step, rows)
            part = Part(torch.cat([part.pixels, 99 * part.pixels[:1]]), part.positions, None)
            yield step, part, {"mix": Rows(torch.arange(len(part.positions)))}


def tokens(kind, step):
    """All tokens of a step (N, D), float64."""
    found = Mixing()(pixels(step), 4).get(kind)
    return found.reshape(-1, WIDTHS[kind]).double().numpy()


def in_processes(ranks, work):
    """`work(accelerator)` here, or in so many processes."""
    if ranks > 1:
        on_ranks(lambda: work(make_accelerator()), ranks)
    else:
        work(make_accelerator())


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", ["standardise", "ema", "phi_s"])
def test_statistics_are_those_of_all_ranks(name, kind):
    parts = PARTS[name]

    def work(accelerator):
        target = teacher(kind)
        own = batches(parts[accelerator.process_index])
        calibrate([target], own, seed=0, stage="s", accelerator=accelerator)
        for tokens_of, normaliser in target.normalisers.items():
            seen = np.concatenate([tokens(tokens_of, step) for step in range(STEPS)])
            mean, std = (found.double().numpy() for found in normaliser.channels())
            np.testing.assert_allclose(mean, seen.mean(0), atol=1e-5)
            np.testing.assert_allclose(std, seen.std(0), rtol=1e-4)
            if kind == "phi_s":
                weight = normaliser.weight.double().numpy()
                covariance = np.cov(seen, rowvar=False, bias=True)
                variances = np.diag(weight @ covariance @ weight.T)
                np.testing.assert_allclose(variances, np.ones(len(mean)), rtol=1e-4)
                scale = len(mean) / np.trace(covariance)
                np.testing.assert_allclose(
                    weight @ weight.T, scale * np.eye(len(mean)), atol=1e-5 * scale
                )

    in_processes(len(parts), work)


@pytest.mark.parametrize("counts", [[40, 3], [43, 0], [0, 43]], ids=str)
def test_a_covariance_over_ranks(counts):
    rows = 30 + 0.05 * torch.randn(43, 5, generator=torch.Generator().manual_seed(0))
    rows[40:] += 1
    exact = np.cov(rows.double().numpy(), rowvar=False, bias=True)

    def work(accelerator):
        own = Moments(5, covariance=True)
        own.update(rows.split(counts)[accelerator.process_index])
        found = merged_over_ranks(own, accelerator)
        np.testing.assert_allclose(found.covariance.numpy(), exact, atol=1e-13)
        np.testing.assert_allclose(found.std.square().numpy(), exact.diagonal(), rtol=1e-10)
        assert float(found.count) == 43

    in_processes(2, work)


def test_ranks_whose_eigenvectors_differ_have_one_rotation(monkeypatch):
    def work(accelerator):
        sign = 1 - 2 * accelerator.process_index
        found = normalisers.phi_s
        monkeypatch.setattr(
            normalisers, "phi_s", lambda *given: tuple(sign * each for each in found(*given))
        )
        target = teacher("phi_s")
        own = batches(PARTS["uneven ranks"][accelerator.process_index])
        calibrate([target], own, seed=0, stage="s", accelerator=accelerator)
        for normaliser in target.normalisers.values():
            for buffer in normaliser.buffers():
                one, other = accelerator.gather(buffer[None])
                assert torch.equal(one, other)

    in_processes(2, work)


def test_a_covariance_of_features_that_are_not_finite(monkeypatch):
    target = teacher("phi_s")
    target.teacher.mix["dense"][0, 0] = float("inf")
    with pytest.raises(UserError, match=r"^teachers.mix.normaliser: 'phi_s' .* some dense ones"):
        calibrate(
            [target],
            batches(PARTS["one process"][0]),
            seed=0,
            stage="s",
            accelerator=make_accelerator(),
        )


def calibrated(kind="ema"):
    """A teacher whose normalisers are fitted on the first step."""
    target = teacher(kind, momentum=MOMENTUM)
    for tokens_of, normaliser in target.normalisers.items():
        moments = Moments(WIDTHS[tokens_of], covariance=True)
        moments.update(torch.from_numpy(tokens(tokens_of, 0)))
        normaliser.fit(moments)
    return target


def offline(kind):
    """Mean and variance before each step and after the last, in float64 from whole batches."""
    first = tokens(kind, 0)
    mean, variance = first.mean(0), first.var(0)
    yield mean, variance
    for step in range(STEPS):
        seen = tokens(kind, step)
        mean = (1 - MOMENTUM) * mean + MOMENTUM * seen.mean(0)
        variance = (1 - MOMENTUM) * variance + MOMENTUM * seen.var(0)
        yield mean, variance


@pytest.mark.parametrize("chunk", [1 << 22, 100])
@pytest.mark.parametrize("name", PARTS)
def test_running_statistics_follow_whole_batches(name, chunk, monkeypatch):
    """On any ranks and parts, each with a share of a batch of its own, and in pieces of a part."""
    monkeypatch.setattr(targets_module, "CHUNK", chunk)
    parts = PARTS[name]
    expected = {kind: list(offline(kind)) for kind in WIDTHS}

    def work(accelerator):
        target = calibrated()
        for step in range(STEPS):
            for rows in parts[accelerator.process_index]:
                given = target.features(part_of(step, rows), Rows(), 0, "s", step)
                own = {kind: given.get(kind).double().numpy() for kind in WIDTHS}
                found = target.targets(given)
                for kind, x in own.items():
                    mean, variance = expected[kind][step]
                    np.testing.assert_allclose(
                        found.get(kind).numpy(), (x - mean) / variance**0.5, atol=2e-4
                    )
            target.follow(accelerator)
        for kind, normaliser in target.normalisers.items():
            mean, variance = expected[kind][-1]
            np.testing.assert_allclose(normaliser.mean.numpy(), mean, atol=1e-5)
            np.testing.assert_allclose(normaliser.std.numpy(), variance**0.5, rtol=1e-4)
            assert (np.abs(variance / expected[kind][0][1] - 1) > 0.1).all()  # they did move

    in_processes(len(parts), work)


@pytest.mark.parametrize("where", ["rank 0", "rank 1"])
def test_a_value_that_is_not_finite_on_one_rank_moves_nothing_on_any(where):
    def work(accelerator):
        target = calibrated()
        before = target.normalisers["dense"].state_dict()
        before = {name: tensor.clone() for name, tensor in before.items()}
        own = part_of(1, PARTS["uneven ranks"][accelerator.process_index][0])
        given = target.features(own, Rows(), 0, "s", 1)
        if where == f"rank {accelerator.process_index}":
            given.dense[0, 1, 2, 3] = float("nan")
        target.targets(given)
        target.follow(accelerator)
        for name, tensor in target.normalisers["dense"].state_dict().items():
            assert torch.equal(tensor, before[name]), name
        # The other kind of tokens was finite, and the next step is as if there had been none.
        assert not torch.equal(
            target.normalisers["summary"].mean, calibrated().normalisers["summary"].mean
        )
        target.targets(target.features(own, Rows(), 0, "s", 1))
        target.follow(accelerator)
        assert not torch.equal(target.normalisers["dense"].mean, before["mean"])
        assert target.normalisers["dense"].std.isfinite().all()

    in_processes(2, work)


def test_a_step_is_followed_once_with_one_reduction():
    reduced = []

    def reduce(tensor, reduction):
        reduced.append((len(tensor), reduction))
        return tensor.clone()

    accelerator = SimpleNamespace(device=torch.device("cpu"), reduce=reduce)
    target = calibrated()
    for rows in PARTS["micro-batches"][0]:
        target.targets(target.features(part_of(3, rows), Rows(), 0, "s", 3))
    assert target.follow(accelerator)
    assert reduced == [(sum(1 + 2 * width for width in WIDTHS.values()), "sum")]
    after = {kind: held.mean.clone() for kind, held in target.normalisers.items()}
    target.follow(accelerator)  # of nothing
    for kind, held in target.normalisers.items():
        assert torch.equal(held.mean, after[kind])


@pytest.mark.parametrize("kind", ["standardise", "none", "l2", "phi_s"])
def test_frozen_normalisers_follow_nothing(kind):
    target = calibrated(kind)
    before = [buffer.clone() for held in target.normalisers.values() for buffer in held.buffers()]
    target.targets(target.features(part_of(3, slice(0, 4)), Rows(), 0, "s", 3))
    assert not target.follow(None)  # it asks the other ranks for nothing either
    after = [buffer for held in target.normalisers.values() for buffer in held.buffers()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not target.seen
