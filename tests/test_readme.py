"""What the README shows is run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_python_path(tmp_path):
    code = "\n".join(blocks("python")) + "\nassert summary.shape == (1, 64), summary.shape\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "DISTILL_CACHE": str(tmp_path / "cache"),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs/ten-lines/only/vit/model.safetensors").exists()


def test_commands_are_of_the_makefile_and_recipes_are_shipped():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert set(re.findall(r"recipes/([\w-]+)\.yaml", text)) <= shipped
    for page in re.findall(r"\]\((docs/[\w.-]+)\)", text):
        assert (ROOT / page).is_file(), page
