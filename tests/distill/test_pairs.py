"""Losses over pairs of tokens: against loops over pairs, over ranks and over parts of a batch."""

import math
import runpy
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import ortho_group
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from distill.pairs import gathered, pair_gradients, pair_loss, token_places

on_ranks = runpy.run_path(str(Path(__file__).parent / "engine" / "launch.py"))["on_ranks"]

ALONE = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))
TEMPERATURE = 0.3
EACH = [{"relational": 1.0}, {"gram": 0.7}, {"similarity_kl": 2.0}]
ALL = {"relational": 1.0, "gram": 0.7, "similarity_kl": 2.0, "cosine": 5.0}


def cosines(tokens):
    """Of every token with every token."""
    rows = [[float(x) for x in token] for token in tokens]
    units = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in units] for a in units]


def slow(prediction, target, image, terms, temperature):
    """The formulas, one pair of tokens at a time."""
    ours, theirs, image = cosines(prediction), cosines(target), image.tolist()
    across, within, divergences = [], [], []
    for i in range(len(image)):
        others = []
        for j in range(len(image)):
            if i == j:
                continue
            across.append((ours[i][j] - theirs[i][j]) ** 2)
            if image[i] == image[j]:
                within.append(across[-1])
            else:
                others.append(j)
        if others:
            shares = [softmax([s[i][j] / temperature for j in others]) for s in (theirs, ours)]
            divergences.append(rel_entr(*shares).sum())
    means = {"relational": across, "gram": within, "similarity_kl": divergences}
    return sum(
        terms.get(term, 0) * sum(found) / len(found) for term, found in means.items() if found
    )


def tokens(image, widths=(5, 7), seed=0, dtype=torch.float64):
    """Prediction and target of these images' tokens, and which image each is of."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.tensor(image)
    made = (torch.randn(len(image), w, generator=generator, dtype=torch.float64) for w in widths)
    return *(one.to(dtype) for one in made), image


IMAGES = {
    "as many each": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "one each": [4, 2, 9, 0, 7],
    "uneven, mixed": [3, 8, 3, 3, 5, 8, 3, 3, 5, 8, 1],
    "one image": [6, 6, 6, 6],
}


@pytest.mark.parametrize("terms", [*EACH, ALL], ids=str)
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("chunk", [1, 25, 1 << 22])
def test_loss_is_that_of_a_loop_over_pairs(terms, image, chunk, monkeypatch):
    monkeypatch.setattr("distill.pairs.CHUNK", chunk)
    prediction, target, image = tokens(image)
    expected = slow(prediction, target, image, terms, TEMPERATURE)
    found = float(pair_loss(prediction, target, image, terms, TEMPERATURE))
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-15)
    single = len(set(image.tolist())) == 1
    alone = len(set(image.tolist())) == len(image)
    none = ("similarity_kl" in terms and single) or ("gram" in terms and alone)
    assert (found > 1e-3) == (len(terms) > 1 or not none)


@pytest.mark.parametrize("terms", [*EACH, ALL], ids=str)
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_gradient_is_that_of_finite_differences(terms, image, monkeypatch):
    monkeypatch.setattr("distill.pairs.CHUNK", 25)
    prediction, target, image = tokens(image)
    prediction.requires_grad_()
    target.requires_grad_()

    def twice(prediction):
        return 2 * pair_loss(prediction, target.detach(), image, terms, TEMPERATURE)

    assert torch.autograd.gradcheck(twice, prediction)
    pair_loss(prediction, target, image, terms, TEMPERATURE).backward()
    assert target.grad is None


@pytest.mark.parametrize("terms", EACH, ids=str)
def test_rotations_and_lengths_are_ignored_and_nothing_else(terms):
    _, target, image = tokens([0, 0, 0, 1, 1, 2, 2, 2], widths=(1, 6))
    rotation = torch.from_numpy(ortho_group.rvs(6, random_state=0))
    lengths = torch.linspace(0.1, 30, len(image), dtype=torch.float64)[:, None]
    wider = torch.cat([target @ rotation, torch.zeros(len(image), 3)], 1)
    for same in (target, target @ rotation, lengths * target, lengths * wider):
        prediction = same.clone().requires_grad_()
        loss = pair_loss(prediction, target, image, terms, TEMPERATURE)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        assert float(prediction.grad.abs().max()) < 1e-12
    stretched = target * torch.linspace(0.3, 3, 6)
    swapped = target[[1, 0, 2, 5, 4, 3, 6, 7]]
    for other in (target + 1, stretched, swapped, -target.abs()):
        assert float(pair_loss(other, target, image, terms, TEMPERATURE)) > 1e-3


def test_gram_sees_no_pair_across_images_and_the_kl_none_within():
    prediction, target, image = tokens([0, 0, 1, 1])
    turned = prediction.clone()
    turned[2:] = turned[2:] @ torch.from_numpy(ortho_group.rvs(5, random_state=0))
    for terms, same in (({"gram": 1.0}, True), ({"relational": 1.0}, False)):
        losses = [float(pair_loss(p, target, image, terms, 1.0)) for p in (prediction, turned)]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-9)) == same
    # Tokens 0 and 1 are equally similar to all of other images: their own similarity is not seen.
    one, other = torch.eye(4, 3)[[0, 0, 1, 2]], torch.eye(4)
    assert float(pair_loss(one, other, image, {"similarity_kl": 1.0}, 1.0)) == 0
    assert float(pair_loss(one, other, torch.arange(4), {"similarity_kl": 1.0}, 1.0)) > 0.01


@pytest.mark.parametrize(
    ("image", "terms"),
    [
        ([], ALL),
        ([0], ALL),
        ([0, 0, 0], {"similarity_kl": 1.0}),
        ([0, 1, 2], {"gram": 1.0}),
        ([0, 0, 1], {}),
        ([0, 0, 1], {"gram": 0.0, "cosine": 1.0}),
    ],
    ids=str,
)
def test_without_pairs_or_terms_it_is_zero(image, terms):
    prediction, target, image = tokens(image)
    prediction.requires_grad_()
    loss = pair_loss(prediction, target, image, terms, TEMPERATURE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not prediction.grad.any()


def test_a_zero_token_is_like_no_other_and_its_gradient_is_finite():
    prediction, target, image = tokens([0, 0, 1, 1])
    prediction[1], target[2] = 0, 0
    prediction.requires_grad_()
    loss = pair_loss(prediction, target, image, ALL, TEMPERATURE)
    loss.backward()
    assert torch.isfinite(prediction.grad).all()
    # As are tokens in directions of their own.
    wide = torch.cat([prediction.detach(), torch.zeros(4, 1)], 1)
    wide[1, 5] = 1
    theirs = torch.cat([target, torch.zeros(4, 1)], 1)
    theirs[2, 7] = 1
    expected = slow(wide, theirs, image, ALL, TEMPERATURE)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_short_floats_are_compared_in_long_ones(autocast):
    """bfloat16 tokens give the loss of the same numbers in float32, and its rounded gradient."""
    prediction, target, image = tokens([0, 0, 0, 1, 1, 2], (32, 48), dtype=torch.bfloat16)
    short, long = prediction.clone().requires_grad_(), prediction.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = pair_loss(short, target, image, ALL, TEMPERATURE)
    assert loss.dtype == torch.float32
    expected = slow(prediction, target, image, ALL, TEMPERATURE)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    pair_loss(long, target.float(), image, ALL, TEMPERATURE).backward()
    torch.testing.assert_close(short.grad, long.grad.bfloat16(), rtol=1 / 64, atol=1e-5)


def test_no_matrix_of_all_pairs_is_held(monkeypatch):
    monkeypatch.setattr("distill.pairs.CHUNK", 1 << 14)
    count = 1024
    prediction, target, image = tokens([i // 8 for i in range(count)], dtype=torch.float32)
    prediction.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        pair_loss(prediction, target, image, ALL, TEMPERATURE).backward()
    events = recorded.profiler.kineto_results.events()
    held = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    # Not even of bytes.
    assert 0 < held < count * count


def test_nothing_looks_at_values():
    """Tensors without any take the same way: nothing waits for a device."""
    with FakeTensorMode():
        prediction, target = torch.rand(6, 5, requires_grad=True), torch.rand(6, 7)
        image = torch.ones(6, dtype=torch.int64)
        pair_loss(prediction, target, image, ALL, TEMPERATURE).backward()
        assert prediction.grad.shape == (6, 5)


@pytest.mark.parametrize(
    ("grid", "images", "most", "count"),
    [(196, 8, 4096, 196), (196, 8, 800, 100), (49, 64, 32, 1), (16, 3, 48, 16), (16, 3, 47, 15)],
)
def test_places_are_some_of_the_grids_in_order(grid, images, most, count):
    places = token_places(grid, images, 5, most)
    assert places.dtype == torch.int64
    assert len(places) == count
    assert places.tolist() == sorted(set(places.tolist()))
    assert 0 <= int(places[0]) <= int(places[-1]) < grid
    assert places.equal(token_places(grid, images, 5, most))


def test_places_come_from_the_key_and_all_come_alike():
    state = torch.get_rng_state()
    draws = torch.stack([token_places(20, 4, number, 20) for number in range(2000)])
    assert state.equal(torch.get_rng_state())
    # 5 of 20 places: each in a quarter of the draws, with a deviation of sqrt(2000 * 3 / 16) = 19.
    assert (torch.bincount(draws.flatten(), minlength=20) - 500).abs().max() < 90
    assert len({tuple(draw.tolist()) for draw in draws[:100]}) > 95


def test_one_process_gathers_its_own_tokens():
    rows = torch.randn(3, 4)
    everything, start = gathered(rows, ALONE)
    assert everything.equal(rows)
    assert start == 0


@pytest.mark.parametrize("terms", [ALL, {"cosine": 1.0}], ids=str)
def test_gradients_of_one_process_are_those_of_the_loss(terms):
    prediction, target, image = tokens(IMAGES["uneven, mixed"])
    with torch.no_grad():  # as a caller may be that holds no graph yet
        loss, gradient = pair_gradients(prediction, target, image, terms, TEMPERATURE, ALONE)
    live = prediction.clone().requires_grad_()
    expected = pair_loss(live, target, image, terms, TEMPERATURE)
    expected.backward()
    assert not loss.requires_grad
    assert not prediction.requires_grad
    assert loss.equal(expected.detach())
    assert gradient.equal(live.grad)


def test_parts_of_a_batch_sum_to_its_gradient():
    """Three parts of uneven rows go through the student one by one; the loss is over all three."""
    pixels, target, image = tokens(IMAGES["uneven, mixed"], widths=(4, 7))
    student = torch.nn.Linear(4, 5).double()
    loss, gradient = pair_gradients(student(pixels), target, image, ALL, TEMPERATURE, ALONE)
    for part in (slice(0, 5), slice(5, 6), slice(6, 11)):
        (student(pixels[part]) * gradient[part]).sum().backward()
    found = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    whole = pair_loss(student(pixels), target, image, ALL, TEMPERATURE)
    whole.backward()
    assert float(loss) == pytest.approx(float(whole.detach()), rel=1e-12)
    for one, parameter in zip(found, student.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-9, atol=1e-14)


SPLITS = {
    "2 uneven": [range(7), range(7, 11)],
    "2, one without": [range(0), range(11)],
    "3 uneven": [range(2), range(2, 3), range(3, 11)],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_ranks_have_the_loss_and_gradient_of_one_process(split):
    pixels, target, image = tokens(IMAGES["uneven, mixed"], widths=(4, 7))
    torch.manual_seed(0)
    student = torch.nn.Linear(4, 5).double()
    whole = pair_loss(student(pixels), target, image, ALL, TEMPERATURE)
    whole.backward()
    expected = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()

    def work():
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        rank, ranks = accelerator.process_index, accelerator.num_processes
        assert ranks == len(split)
        wrapped = accelerator.prepare_model(student)
        mine = torch.tensor(split[rank], dtype=torch.int64)
        for tensor in (pixels, image, target.bfloat16()):
            everything, start = gathered(tensor[mine], accelerator)
            assert everything.equal(tensor)
            assert start == split[rank].start
        nothing, _ = gathered(pixels[:0], accelerator)
        assert nothing.shape == (0, 4)
        live = wrapped(pixels[mine])
        own = target[mine] if len(mine) else target[mine].bfloat16()
        loss, gradient = pair_gradients(live, own, image[mine], ALL, TEMPERATURE, accelerator)
        assert float(loss) == pytest.approx(float(whole.detach()), rel=1e-12)
        ((live * gradient).sum() * ranks).backward()
        for parameter, grad in zip(student.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-14)

    on_ranks(work, len(split))
