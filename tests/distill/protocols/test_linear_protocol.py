"""The grid of learning rates against torch's own optimiser and scheduler, rate by rate."""

import classified
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import linear
from distill.protocols.linear import BATCH, RATES, TASK, averages, held_out, training
from distill.protocols.linear_grid import Classifiers, Training, predictions, train


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(linear, "FEWEST_STEPS", 150)


def clouds(seed, count, classes=4, width=6, spread=0.6):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, classes, (count,), generator=draw)
    return centres[labels] + spread * torch.randn(count, width, generator=draw), labels


def test_each_rate_is_trained_as_torch_trains_it_alone():
    features, labels = clouds(1, 50)
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(5))[:43]
    schedule = Training((0.01, 0.3, 2.0), steps=30, batch=8)
    found = train(features, labels, rows, 4, schedule, torch.Generator().manual_seed(3))

    draw = torch.Generator().manual_seed(3)
    start = torch.randn(6, 4, generator=draw) * 0.01
    stream = torch.cat([torch.randperm(43, generator=draw) for _ in range(6)])
    for number, rate in enumerate(schedule.rates):
        layer = torch.nn.Linear(6, 4)
        with torch.no_grad():
            layer.weight.copy_(start.T)
            layer.bias.zero_()
        optimiser = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 30)
        for step in range(30):
            batch = rows[stream[8 * step : 8 * step + 8]]
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(layer(features[batch]), labels[batch]).backward()
            optimiser.step()
            cosine.step()
        torch.testing.assert_close(found.weight[:, number].T, layer.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bias[number], layer.bias, rtol=1e-4, atol=1e-5)
        expected = layer(features).argmax(1)
        assert torch.equal(predictions(found, features)[number], expected)


@pytest.mark.usefixtures("quick")
def test_the_task_comes_near_logistic_regression():
    (seen, labels), (shown, asked) = clouds(2, 600, spread=1.0), clouds(3, 400, spread=1.0)
    # Dense tokens whose average is a weaker summary.
    noise = 2 * torch.randn(1000, 2, 2, 6, generator=torch.Generator().manual_seed(4))
    dense = torch.cat([seen, shown])[:, None, None] + noise
    setting = classified.setting(
        classified.Features(seen, dense[:600]),
        classified.Features(shown, dense[600:]),
        [labels, asked],
        4,
    )
    outcome = TASK.run(setting)
    assert outcome.samples == 400
    kinds = {"summary_top1": (seen, shown)}
    kinds["average_top1"] = (dense[:600].mean((1, 2)), dense[600:].mean((1, 2)))
    for metric, (x, y) in kinds.items():
        oracle = LogisticRegression(C=1e3, max_iter=1000).fit(x.numpy(), labels.numpy())
        expected = 100 * oracle.score(y.numpy(), asked.numpy())
        assert outcome.values[metric] == pytest.approx(expected, abs=2)
        assert 50 < expected < 98
    assert outcome.values["summary_top1"] > outcome.values["average_top1"] + 5
    assert TASK.run(setting).values == outcome.values


@pytest.mark.usefixtures("quick")
def test_the_rate_is_chosen_by_held_out_images_alone(monkeypatch):
    (seen, labels), (shown, _) = clouds(2, 300), clouds(3, 50)
    scored = []
    real = predictions

    def spy(found, features, device):
        scored.append(features)
        return real(found, features, device)

    monkeypatch.setattr(linear, "predictions", spy)
    learnt, held = held_out(labels, 0)
    trained = []
    monkeypatch.setattr(
        linear, "train", lambda *given: (trained.append(given[2]), train(*given))[1]
    )
    # Wrong labels of the test split change the score, not the choice.
    for asked in (torch.zeros(50, dtype=torch.int64), torch.ones(50, dtype=torch.int64)):
        given = [classified.Features(seen), classified.Features(shown)]
        TASK.run(classified.setting(*given, [labels, asked], 4))
    assert torch.equal(scored[0], seen[held])
    assert torch.equal(trained[0], learnt)
    assert set(learnt.tolist()).isdisjoint(held.tolist())


@pytest.mark.usefixtures("quick")
def test_of_several_rates_the_one_that_serves_held_out_images_is_reported(monkeypatch):
    (seen, labels), (shown, asked) = clouds(2, 300), clouds(3, 200)
    setting = classified.setting(
        classified.Features(seen), classified.Features(shown), [labels, asked], 4
    )
    best = TASK.run(setting).values["summary_top1"]
    # Ten useless rates beside a good one, and one that ends in numbers that are not finite.
    good = RATES[-1]
    monkeypatch.setattr(linear, "RATES", (1e-12, good, 1e-12, 1e38))
    assert TASK.run(setting).values["summary_top1"] == pytest.approx(best, abs=3)
    monkeypatch.setattr(linear, "RATES", (1e38, 1e38))
    with pytest.raises(CannotProbe, match="no learning rate"):
        TASK.run(setting)


def test_a_tenth_of_each_class_is_held_out():
    labels = torch.tensor([0] * 100 + [1] * 45 + [2] * 3 + [3]).repeat_interleave(1)
    learnt, held = held_out(labels, 7)
    assert labels[held].bincount(minlength=4).tolist() == [10, 4, 1, 0]
    assert sorted([*learnt.tolist(), *held.tolist()]) == list(range(149))
    assert torch.equal(held_out(labels, 7)[1], held)
    assert not torch.equal(held_out(labels, 8)[1], held)


def test_the_schedule():
    imagenet = training(1_153_050)
    assert imagenet.batch == BATCH
    assert imagenet.steps == 11261  # ten epochs
    assert imagenet.rates == pytest.approx([4 * rate for rate in RATES])
    small = training(500)
    assert (small.batch, small.steps) == (50, 1000)
    assert small.rates == pytest.approx([rate * 50 / 256 for rate in RATES])


def test_averages_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(linear, "_READ", 7)
    dense = torch.randn(20, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([sum(one.reshape(6, 5)) / 6 for one in dense])
    torch.testing.assert_close(averages(dense), expected)
    assert torch.equal(averages(dense[:, 0, 0]), dense[:, 0, 0])


@pytest.mark.usefixtures("quick")
def test_what_a_model_does_not_give_is_left_out():
    features, labels = clouds(1, 60)
    dense = classified.Features(dense=features[:, None, None])
    assert set(TASK.run(classified.setting(dense, dense, [labels, labels], 4)).values) == {
        "average_top1"
    }
    one = classified.Features(features[:4])
    with pytest.raises(NothingToScore, match="no class has two"):
        TASK.run(classified.setting(one, one, [torch.arange(4)] * 2, 4))


def test_a_rate_that_ran_away_knows_no_class():
    weight = torch.tensor([[[1.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0]]])
    found = Classifiers(weight, torch.zeros(3, 2))
    assert predictions(found, torch.tensor([[2.0], [-1.0]])).tolist() == [
        [0, 1],
        [-1, -1],
        [-1, -1],
    ]
