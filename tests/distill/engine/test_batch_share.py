"""A teacher that sees a part of each batch."""

import pytest
import torch
from safetensors.torch import load_file

from distill.engine.rows import Roster, Rows, rows_seen
from distill.recipe.load import from_dict
from distill.recipe.resolve import problems
from distill.runner import run


@pytest.mark.parametrize("share", [0.25, 0.3, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_has_its_part_and_the_weights_add_up_to_one_mean(share, world):
    batch, values = 24, torch.rand(24 * 5, generator=torch.Generator().manual_seed(0))
    counts = []
    for step in range(5):
        seen, of_ranks = [], []
        for part in torch.arange(step * batch, (step + 1) * batch).chunk(world):
            rows = rows_seen(part, share, batch, world)
            own = rows.of(values[part])
            seen += own.tolist()
            of_ranks.append(rows.weight * float(own.mean()))
        assert sum(of_ranks) / world == pytest.approx(sum(seen) / len(seen), rel=1e-6)
        counts.append(len(seen))
    assert all(abs(count - share * batch) < 1 for count in counts)
    assert abs(sum(counts) - share * batch * 5) < 1


def test_the_whole_batch_is_not_copied():
    tokens = torch.rand(4, 3)
    assert rows_seen(torch.arange(4), 1.0, 4, 1).of(tokens) is tokens


def test_teacher_sees_its_share_and_the_student_learns_from_that_alone(
    tiny, tmp_path, teacher_calls, monkeypatch
):
    """A share of one half is what selecting every other image by hand gives."""
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["sam"]
    tiny["teachers"]["sam"]["batch_share"] = 0.5
    half = run(from_dict(tiny), run_dir=tmp_path / "half", quiet=True)
    assert {call.images for call in teacher_calls} == {2}

    # The rows that floor((p + 1) / 2) > floor(p / 2) names, by hand: every odd position.
    monkeypatch.setattr(
        Roster,
        "of",
        lambda self, positions: {
            name: Rows((positions % 2 == 1).nonzero()[:, 0]) for name in self.shares
        },
    )
    tiny["teachers"]["sam"]["batch_share"] = 1.0
    by_hand = run(from_dict(tiny), run_dir=tmp_path / "hand", quiet=True)
    a, b = (load_file(r.student("proxy/proxy") / "model.safetensors") for r in (half, by_hand))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_less_than_one_image_is_refused(tiny):
    tiny["teachers"]["sam"]["batch_share"] = 0.2
    found = problems(from_dict(tiny))
    assert any(
        "teachers.sam.batch_share: 0.2 of stages.proxy.train.batch_size, 4" in p for p in found
    )
