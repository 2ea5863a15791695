"""A step's losses and gradients against loops over images, written from the formulas."""

import dataclasses
import itertools

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from distill.data.sources import open_sources
from distill.engine.interruption import StopRequest
from distill.engine.learner import planned_students
from distill.engine.stage import Stage
from distill.engine.targets import TargetTeacher
from distill.progress import Progress
from distill.recipe.learning import BalanceConfig, LossConfig, PartitionConfig, TeacherLossConfig
from distill.recipe.load import from_dict
from distill.recipe.resolve import teacher_spec
from distill.recipe.schema import SourceConfig
from students import match_grids
from students.keys import key
from teachers import load_teacher

BATCH = 8


@pytest.fixture
def make(tiny, tmp_path):
    """make(**changes of the stage) is a stage of a ViT with two teachers, and its student."""
    tiny["stages"]["proxy"]["train"] |= {"batch_size": BATCH}
    tiny["teachers"]["sam"]["sizes"] = [32]
    recipe = from_dict(tiny)

    def stage(sources=None, shares=None, weights=(1.0, 0.7), **changes):
        recipe.stages["proxy"] = dataclasses.replace(recipe.stages["proxy"], **changes)
        if sources is not None:
            recipe.data.train = sources
        teachers = {}
        for name, config in recipe.teachers.items():
            teachers[name] = TargetTeacher.of(
                name,
                load_teacher(teacher_spec(config)),
                config.sizes,
                "standardise",
                weight=dict(zip(recipe.teachers, weights, strict=True))[name],
                batch_share=(shares or {}).get(name, 1.0),
            )
        accelerator = Accelerator(cpu=True)
        made = Stage(
            recipe,
            "proxy",
            teachers,
            open_sources(recipe.data),
            tmp_path,
            tmp_path / "checkpoint",
            accelerator,
            Progress(shown=False),
            StopRequest(accelerator),
        )
        made.calibrate_normalisers()
        trainee = made.prepare(planned_students(recipe, "proxy")[0])
        made.share_normalisers([trainee])
        return made, trainee

    return stage


def gradients_of(stage, trainee, step):
    """The gradients that the engine finds for a step, and its tally of losses."""
    _, batch, pixels = next(iter(stage.pixels(step, 1)))
    for lesson in stage.lessons(step, batch, pixels):
        stage.learn(trainee, step, lesson)
    losses = {e[1:]: float(v) for e, v in trainee.tally.of_step.items() if e[0] == "loss"}
    kept = {e[1]: float(v) for e, v in trainee.tally.of_step.items() if e[0] == "kept"}
    found = _gradients(trainee)
    trainee.tally.of_step = {}
    return found, losses, kept


def _gradients(trainee):
    found = {n: p.grad.clone() for n, p in trainee.learner.named_parameters() if p.grad is not None}
    trainee.learner.zero_grad(set_to_none=True)
    return found


def rows_by_hand(stage, batch):
    """For each row of a batch: (size of the student, names of the teachers that see it)."""
    config, sources = stage.config, list(stage.recipe.data.train.values())
    found = []
    for row in range(BATCH):
        position = int(batch.positions[row])
        size, names = 32, list(stage.teachers)
        if config.partitions:
            part = config.partitions["high" if row in HIGH else "low"]
            size, names = part.image_sizes[0], part.teachers or names
        listed = sources[int(batch.samples[row, 0])].teachers
        names = [name for name in names if not listed or name in listed]
        for name in list(names):
            share = stage.teachers[name].batch_share
            if int((position + 1) * share + 1e-9) == int(position * share + 1e-9):
                names.remove(name)
        found.append((size, names))
    return found


HIGH = (2, 6)
"""Two of eight rows, spread evenly, as a share of a quarter is."""


def terms_by_hand(terms, p, t):
    """The mean over tokens (P, D) of the weighted terms of single tokens."""
    found = {
        "cosine": (1 - F.cosine_similarity(p, t, dim=-1)).mean(),
        "smooth_l1": F.smooth_l1_loss(p, t, beta=1.0),
        "mse": F.mse_loss(p, t),
    }
    return sum(weight * found[term] for term, weight in terms.items() if term in found)


def by_hand(stage, trainee, step):
    """(losses by (teacher, row, kind), predictions and targets by the same), row after row."""
    _, batch, pixels = next(iter(stage.pixels(step, 1)))
    losses, tokens = {}, {}
    for row, (size, names) in enumerate(rows_by_hand(stage, batch)):
        features = trainee.learner.student(pixels[row : row + 1], size)
        for name in names:
            target = stage.teachers[name]
            raw = target.teacher(pixels[row : row + 1], 32)
            space = trainee.learner.space(name)
            for kind in space.kinds:
                ours = space.adapters[kind](getattr(features, kind))
                normaliser = target.normalisers[kind]
                theirs = (getattr(raw, kind) - normaliser.mean) / normaliser.std
                if kind == "dense":
                    ours, theirs = match_grids(ours, theirs)
                p, t = (x.reshape(-1, x.shape[-1]) for x in (ours, theirs))
                terms = stage.config.loss.terms(name, kind)
                losses[name, row, kind] = terms_by_hand(terms, p, t)
                tokens[name, row, kind] = p, t
    return losses, tokens


def mean_by_teacher(losses, counts=None):
    """For each teacher the mean over its rows of the loss of both kinds, some rows at nothing."""
    total = {}
    for name in {name for name, _, _ in losses}:
        rows = sorted({row for n, row, _ in losses if n == name})
        each = [sum(v for (n, r, _), v in losses.items() if (n, r) == (name, row)) for row in rows]
        kept = [1.0 if counts is None else float(counts[name, row]) for row in rows]
        total[name] = sum(k * loss for k, loss in zip(kept, each, strict=True)) / len(rows)
    return total


def assert_as_by_hand(stage, trainee, step, total):
    """The engine's gradients are those of `total`, the weighed sum over teachers."""
    weighed = sum(stage.teachers[name].weight * loss for name, loss in total.items())
    weighed.backward()
    expected = _gradients(trainee)
    found, _, _ = gradients_of(stage, trainee, step)
    assert expected.keys() <= found.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        wanted = expected.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_each_teacher_has_its_images(make, step):
    """Partitions of a batch, and images of a teacher's own, with terms of a teacher's own."""
    stage, trainee = make(
        sources={
            "all": SourceConfig("scenes:count=16,size=32"),
            "own": SourceConfig("scenes:count=16,size=32,seed=1", teachers=["sam"]),
        },
        partitions={
            "low": PartitionConfig(3.0, [32]),
            "high": PartitionConfig(1.0, [48], ["sam"]),
        },
        loss=LossConfig(teachers={"sam": TeacherLossConfig(dense={"mse": 1.5})}),
    )
    losses, _ = by_hand(stage, trainee, step)
    seen = {name: {row for n, row, _ in losses if n == name} for name in stage.teachers}
    assert seen["dinov2"] < seen["sam"] == set(range(BATCH))
    assert not seen["dinov2"] & set(HIGH)
    assert_as_by_hand(stage, trainee, step, mean_by_teacher(losses))


@pytest.mark.parametrize("step", [0, 1])
def test_teachers_are_dropped_image_by_image(make, step):
    """UNIC: the largest loss counts, each other one by its draw; with a teacher that sees half."""
    # The smaller loss of the two has the larger weight.
    stage, trainee = make(
        balance=BalanceConfig(kind="dropping", drop=0.9), shares={"sam": 0.5}, weights=(1.0, 4.0)
    )
    losses, _ = by_hand(stage, trainee, step)
    draws = torch.rand(
        BATCH, 2, generator=torch.Generator().manual_seed(key("dropping", 0, "proxy", step))
    )
    counts = {}
    for row in range(BATCH):
        weighed = {
            name: stage.teachers[name].weight
            * float(sum(v.detach() for (n, r, _), v in losses.items() if (n, r) == (name, row)))
            for name in stage.teachers
            if any((n, r) == (name, row) for n, r, _ in losses)
        }
        largest = max(weighed, key=weighed.get)
        for name in weighed:
            drawn = float(draws[row, list(stage.teachers).index(name)])
            counts[name, row] = name == largest or drawn >= 0.9
    assert 0 < sum(counts.values()) < len(counts)
    _, logged, kept = gradients_of(stage, trainee, step)
    for name in stage.teachers:
        own = [count for (n, _), count in counts.items() if n == name]
        assert kept[name] == pytest.approx(sum(own) / len(own))
        # The log shows the losses before any is dropped.
        of_kind = [v.item() for (n, _, kind), v in losses.items() if (n, kind) == (name, "dense")]
        assert logged["dense", name] == pytest.approx(sum(of_kind) / len(of_kind), rel=1e-5)
    assert_as_by_hand(stage, trainee, step, mean_by_teacher(losses, counts))


def test_tokens_are_compared_across_the_batch(make):
    """Relational terms: squared differences of cosines, over the pairs of all tokens."""
    terms = {"cosine": 1.0, "relational": 0.5}
    stage, trainee = make(loss=LossConfig(summary=terms, dense={"gram": 2.0}), shares={"sam": 0.5})
    losses, tokens = by_hand(stage, trainee, 0)
    total = mean_by_teacher(losses)
    for name, kind, within in (
        ("dinov2", "summary", False),
        ("dinov2", "dense", True),
        ("sam", "dense", True),
    ):
        everyone = [
            (row, p[i], t[i])
            for (n, row, k), (p, t) in tokens.items()
            if (n, k) == (name, kind)
            for i in range(len(p))
        ]
        found = [
            (F.cosine_similarity(p, q, dim=0) - F.cosine_similarity(t, u, dim=0)) ** 2
            for (row, p, t), (other, q, u) in itertools.combinations(everyone, 2)
            if not within or row == other
        ]
        weight = 2.0 if within else 0.5
        total[name] = total[name] + weight * torch.stack(found).mean()
    assert_as_by_hand(stage, trainee, 0, total)


def test_losses_of_all_teachers_are_made_of_one_size(make):
    """Magnitude: what each teacher's loss is divided by is its running mean."""
    stage, trainee = make(
        balance=BalanceConfig(kind="magnitude", momentum=0.25),
        loss=LossConfig(teachers={"sam": TeacherLossConfig(dense={"mse": 30.0})}),
    )
    means = None
    for step in range(3):
        losses, _ = by_hand(stage, trainee, step)
        total = mean_by_teacher(losses)
        now = torch.stack([total[name].detach() for name in stage.teachers])
        weights = torch.ones(2) if means is None else (1 / means) / (1 / means).mean()
        weighed = {n: w * total[n] for n, w in zip(stage.teachers, weights, strict=True)}
        assert_as_by_hand(stage, trainee, step, weighed)
        gradients_of(stage, trainee, step)
        _, batch, pixels = next(iter(stage.pixels(step, 1)))
        stage.step([trainee], step, batch, pixels)
        means = now if means is None else means + 0.25 * (now - means)
        torch.testing.assert_close(trainee.balance.means, means, rtol=1e-4, atol=0)
    assert float(means[1] / means[0]) > 3


def test_gradients_of_teachers_are_compared_at_the_last_block(make):
    stage, trainee = make(balance=BalanceConfig(conflicts_every=2))
    assert [trainee.balance.measures_conflicts(step) for step in range(4)] == [False, True] * 2
    losses, _ = by_hand(stage, trainee, 1)
    last = [*trainee.learner.student.model.blocks[-1].parameters()]
    flat = []
    for name, loss in mean_by_teacher(losses).items():
        weighed = stage.teachers[name].weight * loss
        parts = torch.autograd.grad(weighed, last, retain_graph=True, allow_unused=True)
        flat.append(torch.cat([part.flatten() for part in parts if part is not None]))
    expected = float(F.cosine_similarity(*flat, dim=0))
    _, batch, pixels = next(iter(stage.pixels(1, 1)))
    stage.step([trainee], 1, batch, pixels)
    assert {n: float(c) for n, c in trainee.balance.conflicts.items()} == {
        "dinov2|sam": pytest.approx(expected, abs=1e-4)
    }
    assert abs(expected) < 0.999


def test_an_answer_is_drawn_from_keys(make):
    """With dropout: asked again, as after a rehearsal, a student answers the same."""
    stage, trainee = make(
        loss=LossConfig(summary={"relational": 1.0}, dense={}),
        students={
            name: dataclasses.replace(one, model={**one.model, "proj_drop_rate": 0.3})
            for name, one in _students().items()
        },
    )
    _, batch, pixels = next(iter(stage.pixels(0, 1)))
    (lesson,) = stage.lessons(0, batch, pixels)
    first = stage.answer(trainee, 0, lesson)["dinov2"].summary
    assert torch.equal(stage.answer(trainee, 0, lesson)["dinov2"].summary, first)
    assert not torch.equal(stage.answer(trainee, 1, lesson)["dinov2"].summary, first)


def _students():
    from distill.recipe.schema import StudentConfig

    model = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
    arch = "vit_small_patch16_dinov3_qkvb"
    return {"proxy": StudentConfig(["dinov2"], arch=arch, model=model, proxy=True)}
