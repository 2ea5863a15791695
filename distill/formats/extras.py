"""Libraries that only some formats need, and the line that says what to install."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType

from students.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "executorch": ("executorch.runtime", "executorch.exir"),
    "int8": ("torchao",),
}
"""What each of the package's extras brings, by the names of import."""


def require(extra: str, purpose: str) -> None:
    """See that all libraries of an extra can be imported.

    Args:
        extra: a name of EXTRAS.
        purpose: what they are wanted for, as the error begins: "the format onnx".

    Raises:
        UserError: if one cannot.
    """
    for name in EXTRAS[extra]:
        library(name, extra, purpose)


def library(name: str, extra: str, purpose: str) -> ModuleType:
    """The module `name` of an extra, imported.

    Raises:
        UserError: if it cannot be.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).split(".")[0]
        raise UserError(
            f"{purpose} needs {missing}, which is not installed: pip install "
            f'"distill-workbench[{extra}]"'
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries log and warn of, which is for their developers: an error that matters
    is raised too."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def silent() -> Iterator[None]:
    """Without what a library's C++ prints on stderr by itself, there or by way of Python's
    sys.stderr; what it raises is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            with redirect_stderr(nowhere):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
