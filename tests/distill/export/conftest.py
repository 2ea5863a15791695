import pytest
from tiny_students import make_run


@pytest.fixture
def run_folder(tmp_path):
    """runs/demo with one student, fixed/vit."""
    make_run(tmp_path / "runs/demo")
    return tmp_path / "runs/demo"
