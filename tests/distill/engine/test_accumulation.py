"""Gradient accumulation: a batch that goes through in parts trains what a whole one does."""

import pytest
from launch import assert_same_run, run_on, varied


@pytest.mark.parametrize("at_once", [3, 1])
@pytest.mark.slow
def test_parts_are_the_whole(tiny, tmp_path, teacher_calls, at_once):
    config = varied(tiny)
    run_on(1, config, tmp_path / "whole")
    for stage in config["stages"].values():
        stage["train"]["micro_batch"] = at_once
    teacher_calls.clear()
    run_on(1, config, tmp_path / "parts")
    # Nor do the passes that calibrate take more at once.
    assert max(call.images for call in teacher_calls) == at_once
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
