"""What published methods add is the same on one process, on two, and in parts of a batch."""

import copy

import pytest
from launch import assert_same_run, run_on, varied
from method_recipes import METHODS

from students import UserError

RUNS = {}


def alone(config, name, tmp_path_factory):
    """The run of one process that the others are compared with."""
    if name not in RUNS:
        RUNS[name] = tmp_path_factory.mktemp("alone") / "run"
        run_on(1, config, RUNS[name])
    return RUNS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("ranks", "changes"), [(1, {"micro_batch": 3}), (2, {}), (2, {"micro_batch": 3})], ids=str
)
def test_ranks_and_parts_change_nothing(tiny, tmp_path, tmp_path_factory, name, ranks, changes):
    config = varied(tiny)
    METHODS[name](config)
    one = alone(config, name, tmp_path_factory)
    changed = copy.deepcopy(config)
    for stage in changed["stages"].values():
        stage["train"] |= changes
    run_on(ranks, changed, tmp_path / "run")
    assert_same_run(one, tmp_path / "run")


def test_a_teacher_that_sees_no_image_while_targets_are_measured(tiny, tmp_path):
    """One image in 256 is sam's own, and it is in none of the first batches."""
    tiny["data"]["train"] = {
        "all": {"source": "scenes:count=16,size=32", "teachers": ["dinov2", "proxy/proxy"]},
        "own": {"source": "scenes:count=16,size=32,seed=1", "share": 0.004, "teachers": ["sam"]},
    }
    tiny["stages"]["proxy"]["calibration_batches"] = 1
    with pytest.raises(UserError, match=r"stages\.proxy\.calibration_batches: sam sees no image"):
        run_on(1, tiny, tmp_path / "run")
