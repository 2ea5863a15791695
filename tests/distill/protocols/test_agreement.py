"""Agreement with teachers against loops, and CKA against kernels (Gram matrices)."""

import math

import numpy as np
import pytest
import torch
from in_memory import Cells, Owner, Pictures, encoded, setting

from distill.probes.models import CannotProbe
from distill.protocols import agreement
from distill.protocols.agreement import TASK, evenly, linear_cka, teacher_size


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hsic(one, other):
    """The double sum over centred linear kernels, pair by pair."""
    count = len(one)
    kernels = [[[float(a @ b) for b in x] for a in x] for x in (one, other)]
    for kernel in kernels:
        rows = [sum(row) / count for row in kernel]
        columns = [sum(row[j] for row in kernel) / count for j in range(count)]
        mean = sum(rows) / count
        for i in range(count):
            for j in range(count):
                kernel[i][j] += mean - rows[i] - columns[j]
    return sum(kernels[0][i][j] * kernels[1][i][j] for i in range(count) for j in range(count))


def test_cka_against_the_kernels():
    one, other = drawn(14, 5).double() + 3, drawn(14, 8, seed=1).double()
    other[:, :3] += one[:, :3] * 2
    truth = hsic(one, other) / math.sqrt(hsic(one, one) * hsic(other, other))
    assert linear_cka(one, other) == pytest.approx(truth, abs=1e-9)
    assert 0.1 < truth < 0.9


def test_cka_knows_no_rotation_scale_or_offset_but_knows_other_maps():
    one, other = drawn(50, 6), drawn(50, 9, seed=1)
    turn = torch.linalg.qr(drawn(9, 9, seed=2))[0]
    value = linear_cka(one, other)
    assert linear_cka(one * 300, other @ turn * 0.01 + 7) == pytest.approx(value, abs=1e-4)
    assert linear_cka(other, one) == pytest.approx(value, abs=1e-9)
    assert linear_cka(other, other @ turn) == pytest.approx(1, abs=1e-5)
    stretch = torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]))
    assert linear_cka(one, one @ stretch) < 0.9
    for constant in (0.0, 0.1, 1000 / 3):
        for count in (49, 51, 77):  # rounding leaves something of some of them
            never = torch.full((count, 4), constant, dtype=torch.float64)
            assert math.isnan(linear_cka(never, drawn(count, 5)))
            assert math.isnan(linear_cka(drawn(count, 5), never))


SIZE = 16


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(5)
    drawn_ones = [
        torch.randint(0, 256, (3, 20 + n % 4, 28 - n % 5), generator=generator).byte()
        for n in range(9)
    ]
    return Pictures(drawn_ones)


def run(pictures, encoders, teachers, to_space, **more):
    features = encoded(encoders)
    task = setting(
        None, {}, features, SIZE, pictures=pictures, teachers=teachers, to_space=to_space, **more
    )
    return TASK.run(task), features.asked


def space(features):
    """An adapter that is not quite right."""
    return features.map(lambda kind, t: t + 0.3 * t.square())


def cosine(answer, truth):
    """Token by token, without the teacher's mean."""
    answer, truth = (x.reshape(-1, x.shape[-1]).double().numpy() for x in (answer, truth))
    mean = truth.mean(0)
    values = [
        (a - mean) @ (b - mean) / np.linalg.norm(a - mean) / np.linalg.norm(b - mean)
        for a, b in zip(answer, truth, strict=True)
    ]
    return sum(values) / len(values)


def test_against_loops(pictures, monkeypatch):
    monkeypatch.setattr(agreement, "_CHUNK", 4)
    student, teacher = Cells(4, seed=1), Cells(4, seed=2)
    outcome, asked = run(
        pictures, {"": student, "dino": teacher}, {"dino": Owner(4)}, {"dino": space}
    )
    assert [(v.size, of) for _, v, of in asked] == [(SIZE, None), (SIZE, "dino")]
    assert "crop" in asked[0][1].name
    shown = torch.stack([asked[0][1].show(pictures.read(i)) for i in range(9)]).float() / 255
    ours, theirs = student(shown, SIZE), teacher(shown, SIZE)
    assert outcome.samples == 9
    assert list(outcome.values) == [
        f"dino {kind} {metric}" for kind in ("summary", "dense") for metric in ("cka", "cosine")
    ]
    for kind in ("summary", "dense"):
        truth = cosine(space(ours).get(kind), theirs.get(kind))
        assert outcome.values[f"dino {kind} cosine"] == pytest.approx(truth, abs=1e-5)
        # All tokens of so few pictures are taken, in whatever order.
        raw, other = (x.get(kind).flatten(0, -2).double() for x in (ours, theirs))
        truth = hsic(raw, other) / math.sqrt(hsic(raw, raw) * hsic(other, other))
        assert outcome.values[f"dino {kind} cka"] == pytest.approx(truth, abs=1e-5)
    # With the teacher's mean left in, the answer would be another.
    plain = torch.cosine_similarity(space(ours).dense, theirs.dense, dim=-1).mean()
    assert abs(float(plain) - outcome.values["dino dense cosine"]) > 0.1


def test_the_teacher_itself_and_its_mean(pictures):
    teacher = Cells(4, seed=2)
    mean = {}

    def answer_mean(features):
        def answer(kind, tokens):
            # Of all pictures, which come at once here.
            if kind not in mean or len(tokens) == len(pictures):
                mean[kind] = tokens.flatten(0, -2).mean(0)
            return mean[kind].expand_as(tokens)

        return features.map(answer)

    encoders = {"": teacher, "exact": teacher, "mean": teacher}
    reach = {"exact": lambda f: f, "mean": answer_mean, "proxy/proxy": lambda f: f}
    owners = {"exact": Owner(4), "mean": Owner(4)}
    values = run(pictures, encoders, owners, reach)[0].values
    assert not any("proxy" in metric for metric in values)  # nobody has loaded it
    for kind in ("summary", "dense"):
        assert values[f"exact {kind} cosine"] == pytest.approx(1, abs=1e-5)
        assert values[f"exact {kind} cka"] == pytest.approx(1, abs=1e-5)
        # Rounding is all that is left of it, but rounding has a direction.
        assert abs(values[f"mean {kind} cosine"]) < 0.3


def test_other_grids_and_other_kinds(pictures):
    student, sam = Cells(4, seed=1), Cells(8, seed=2, kinds=("dense",))
    encoders = {"": student, "sam": sam}
    values = run(pictures, encoders, {"sam": Owner(8)}, {"sam": lambda f: f})[0].values
    assert set(values) == {"sam dense cosine", "sam dense cka"}
    # A space that gives no dense tokens has no cosine of them.
    summaries = {"": student, "clip": Cells(4, seed=3)}
    only = {"clip": lambda f: f.only(("summary",))}
    values = run(pictures, summaries, {"clip": Owner(4)}, only)[0].values
    assert set(values) == {"clip summary cosine", "clip summary cka", "clip dense cka"}


def test_few_tokens_of_every_picture(pictures, monkeypatch):
    monkeypatch.setattr(agreement, "TOKENS", 30)
    seen = []
    monkeypatch.setattr(agreement, "linear_cka", lambda *x: seen.append(x) or linear_cka(*x))
    encoders = {"": Cells(4, seed=1), "dino": Cells(4, seed=2)}
    teachers, reach = {"dino": Owner(4)}, {"dino": lambda f: f}
    for seed in (0, 0, 1):
        run(pictures, encoders, teachers, reach, seed=seed)
    sampled = seen[1::2]
    assert [len(one) for one, _ in sampled] == [27, 27, 27]  # three of 16 of each
    assert torch.equal(sampled[0][0], sampled[1][0])
    assert not torch.equal(sampled[0][0], sampled[2][0])
    # The same places of both: the student's tokens and the teacher's are maps of the same colours.
    one, other = sampled[0]
    colours = one @ torch.linalg.pinv(encoders[""].map)
    torch.testing.assert_close(colours @ encoders["dino"].map, other, atol=1e-4, rtol=1e-4)


def test_at_most_so_many_pictures(pictures, monkeypatch):
    assert evenly(pictures, 9) is pictures
    some = evenly(pictures, 4)
    assert [some.name(i) for i in range(len(some))] == [f"picture {i}" for i in (0, 2, 4, 6)]
    assert torch.equal(some.read(3), pictures.read(6))
    monkeypatch.setattr(agreement, "PICTURES", 4)
    monkeypatch.setattr(agreement, "evenly", lambda p: evenly(p, agreement.PICTURES))
    encoders = {"": Cells(4), "dino": Cells(4)}
    outcome, asked = run(pictures, encoders, {"dino": Owner(4)}, {"dino": lambda f: f})
    assert outcome.samples == 4
    assert [len(p) for p, _, _ in asked] == [4, 4]


class Picky(Owner):
    """Takes what `info` holds."""

    info = ()

    @classmethod
    def size_error(cls, info, size):
        return None if size in info else f"not {size}"


def test_the_size_that_a_teacher_is_shown():
    assert teacher_size(Owner(14), 256) == 252
    assert teacher_size(Owner(16), 256) == 256
    assert teacher_size(Owner(64), 20) == 64
    for legal, expected in (((240, 256), 240), ((256,), 256), ((1008,), 1008)):
        assert teacher_size(Picky(16, info=legal, size=1008), 245) == expected


def test_what_cannot_be_scored(pictures):
    encoders = {"": Cells(4), "dino": Cells(4)}
    dino = {"dino": Owner(4)}
    with pytest.raises(CannotProbe, match="no other model"):
        run(pictures, encoders, dino, {})
    with pytest.raises(CannotProbe, match="no other model"):
        run(pictures, encoders, dino, {"dino": lambda f: f}, name="dino", role="teacher")
    none = encoders | {"": Cells(4, kinds=("summary",)), "dino": Cells(4, kinds=("dense",))}
    with pytest.raises(CannotProbe, match="no tokens of a kind"):
        run(pictures, none, dino, {"dino": lambda f: f})


def test_numbers_that_are_not_finite_are_not_hidden(pictures):
    encoders = {"": Cells(4), "dino": Cells(4)}
    broken = {"dino": lambda f: f.map(lambda _, t: t * torch.nan)}
    values = run(pictures, encoders, {"dino": Owner(4)}, broken)[0].values
    assert math.isnan(values["dino dense cosine"])
    assert not math.isnan(values["dino dense cka"])
