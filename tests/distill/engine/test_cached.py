"""Stages whose teachers' features come from a cache."""

import pytest
import torch
from safetensors.torch import load_file

from distill.recipe.load import from_dict
from distill.runner import run
from teachers import Teacher


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
    return tiny


def count_images(monkeypatch):
    seen = []
    forward = Teacher.forward

    def counted(self, pixels, size=None):
        seen.append(len(pixels))
        return forward(self, pixels, size)

    monkeypatch.setattr(Teacher, "forward", counted)
    return seen


def test_a_cached_run_is_the_live_one(views, tmp_path, monkeypatch):
    """Byte for byte: while the cache fills, from it alone, and with other workers."""
    seen = count_images(monkeypatch)
    live = run(from_dict(views), run_dir=tmp_path / "live", quiet=True)
    without = sum(seen)
    views["cache"] = {"folder": str(tmp_path / "cache")}
    for name, workers in (("filling", 0), ("filled", 2)):
        seen.clear()
        views["data"]["workers"] = workers
        cached = run(from_dict(views), run_dir=tmp_path / name, quiet=True)
        expected, found = weights(live), weights(cached)
        assert all(torch.equal(found[where], expected[where]) for where in expected)
        # Batches are computed whole while any of their views is new.
        assert sum(seen) < (without if name == "filling" else 1)


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
