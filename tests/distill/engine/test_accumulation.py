"""Gradient accumulation: a batch that goes through in parts trains what a whole one does."""

import pytest
from launch import assert_same_run, run_on, varied

from teachers import Teacher


@pytest.mark.parametrize("at_once", [3, 1])
def test_parts_are_the_whole(tiny, tmp_path, monkeypatch, at_once):
    config = varied(tiny)
    run_on(1, config, tmp_path / "whole")
    for stage in config["stages"].values():
        stage["train"]["micro_batch"] = at_once
    seen, forward = set(), Teacher.forward

    def counted(self, pixels, size=None):
        seen.add(len(pixels))
        return forward(self, pixels, size)

    monkeypatch.setattr(Teacher, "forward", counted)
    run_on(1, config, tmp_path / "parts")
    # Nor do the passes that calibrate take more at once.
    assert max(seen) == at_once
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
