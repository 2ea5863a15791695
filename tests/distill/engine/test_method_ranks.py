"""What published methods add is the same on one process, on two, and in parts of a batch."""

import copy

import pytest
from launch import assert_same_run, run_on, varied
from method_recipes import METHODS

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
