"""Stages whose teachers' features come from a cache."""

import pytest
import torch
from safetensors.torch import load_file

from distill.engine.stage import Stage
from distill.recipe.load import from_dict
from distill.runner import run


def weights(result):
    found = {}
    for file in ("model.safetensors", "adapters.safetensors"):
        for name, tensor in load_file(result.student("proxy/proxy") / file).items():
            found[file, name] = tensor
    return found


@pytest.fixture
def views(tiny):
    """Four scenes of two views each: every view comes round several times. The built-in teachers,
    since torch gives a row of ten numbers other last bits at other places of a batch."""
    tiny["data"]["views"] = {"per_sample": 2}
    tiny["data"]["train"]["scenes"]["source"] = "scenes:count=4,size=32"
    tiny["validate"] = None
    for name, teacher in tiny["teachers"].items():
        teacher |= {"weights": f"builtin:{name}-tiny", "sizes": [32, 48]}
    for stage in tiny["stages"].values():
        stage["train"] |= {"steps": 12, "batch_size": 8}
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["image_sizes"] = [32, 48]
    return tiny


def images(calls):
    return sum(call.images for call in calls)


@pytest.mark.slow
def test_a_cached_run_is_the_live_one(views, tmp_path, teacher_calls):
    """Byte for byte: while the cache fills, from it alone, and with other workers."""
    live = run(from_dict(views), run_dir=tmp_path / "live", quiet=True)
    without = images(teacher_calls)
    views["cache"] = {"folder": str(tmp_path / "cache")}
    for name, workers in (("filling", 0), ("filled", 2)):
        teacher_calls.clear()
        views["data"]["workers"] = workers
        cached = run(from_dict(views), run_dir=tmp_path / name, quiet=True)
        expected, found = weights(live), weights(cached)
        assert all(torch.equal(found[where], expected[where]) for where in expected)
        # Batches are computed whole while any of their views is new.
        assert images(teacher_calls) < (without if name == "filling" else 1)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "error"), [("float16", 2e-3), ("int8", 2e-2)])
def test_a_lossy_cache_moves_the_weights_by_its_error(views, tmp_path, format, error):
    live = run(from_dict(views), run_dir=tmp_path / "live", quiet=True)
    views["cache"] = {"folder": str(tmp_path / "cache"), "format": format}
    for name in ("filling", "filled"):
        cached = run(from_dict(views), run_dir=tmp_path / name, quiet=True)
        expected, found = weights(live), weights(cached)
        off = [
            (found[where] - expected[where]).norm() / expected[where].norm().clamp_min(1e-6)
            for where in expected
            if where[0] == "model.safetensors"
        ]
        assert 0 < torch.stack(off).mean() < error


@pytest.mark.slow
def test_a_full_cache_stops_growing_and_the_run_goes_on(views, tmp_path, capsys):
    live = run(from_dict(views), run_dir=tmp_path / "live", quiet=True)
    views["cache"] = {"folder": str(tmp_path / "cache"), "limit_gb": 1e-4}
    cached = run(from_dict(views), run_dir=tmp_path / "full", quiet=False)
    assert "cache" in capsys.readouterr().out
    used = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*") if f.is_file())
    assert used <= 1e5
    expected, found = weights(live), weights(cached)
    for where in expected:
        torch.testing.assert_close(found[where], expected[where], atol=1e-3, rtol=1e-3)


def test_resuming_may_change_the_cache(views, tmp_path):
    run(from_dict(views), run_dir=tmp_path / "run", quiet=True)
    views["cache"] = {"folder": str(tmp_path / "cache")}
    again = run(from_dict(views), run_dir=tmp_path / "run", quiet=True)
    assert again.student("proxy/proxy").is_dir()


@pytest.mark.slow
def test_a_damaged_shard_is_computed_again_and_said(views, tmp_path, capsys, teacher_calls):
    """Half way through a run, whose weights are those of one that nothing happened to."""
    live = run(from_dict(views), run_dir=tmp_path / "live", quiet=True)
    views["cache"] = {"folder": str(tmp_path / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        step = Stage.step

        def stops(self, trainees, number, *rest):
            if number == 7:
                raise KeyboardInterrupt
            step(self, trainees, number, *rest)

        patch.setattr(Stage, "step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(from_dict(views), run_dir=tmp_path / "run", quiet=True)
    for rows in (tmp_path / "cache").rglob("*.rows"):
        with rows.open("r+b") as file:
            file.seek(100)
            file.write(b"damage")
    capsys.readouterr()
    teacher_calls.clear()
    again = run(from_dict(views), run_dir=tmp_path / "run")
    said = capsys.readouterr().out
    assert "damage" in said
    assert teacher_calls
    expected, found = weights(live), weights(again)
    assert all(torch.equal(found[where], expected[where]) for where in expected)
    teacher_calls.clear()
    run(from_dict(views), run_dir=tmp_path / "third", quiet=True)
    assert not teacher_calls  # what was damaged has been replaced
