"""Imports run one way, distill -> teachers -> students, and cost little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"students": {"teachers", "distill"}, "teachers": {"distill"}}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    paths = list((ROOT / package).rglob("*.py"))
    assert paths
    wrong = {str(path): imported(path) & FORBIDDEN[package] for path in paths}
    assert not any(wrong.values()), wrong


def test_heavy_libraries_are_imported_late():
    code = (
        "import sys, students, teachers; "
        "print([m for m in ('transformers', 'timm', 'open_clip') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
