"""What a user installs: recipes, built-in teachers and templates are in the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel of this checkout, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=HOME,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_packages_is_there(installed):
    tracked = subprocess.run(
        ["git", "ls-files", "teachers", "students", "distill"],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(tracked) > 50
    assert not [name for name in tracked if not (installed / name).is_file()]
    recipes = {path.name for path in (HOME / "recipes").glob("*.yaml")}
    assert {path.name for path in (installed / "distill/_recipes").iterdir()} == recipes


@pytest.mark.slow
def test_a_shipped_recipe_is_found_without_the_checkout(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "distill", "check", "quickstart"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "builtin:siglip-tiny" in done.stdout
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import distill; print(distill.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(installed))
