"""What a cached feature depends on: the teacher, its size, the view, and the code between them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import pkgutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import teachers as families
from distill.data.views import POLICIES
from students.pixels import Size
from teachers import Teacher
from teachers.checkpoint import weight_files

FORMAT_VERSION = 1
"""Of the files that docs/cache.md describes; a store of another version is another store."""

_OF_PIXELS = (
    "distill.data.decode",
    "distill.data.photometrics",
    "distill.data.views",
    "distill.scenes.dataset",
    "distill.scenes.generate",
    "distill.scenes.render",
    "students.pixels",
)
_LIBRARIES_OF_PIXELS = ("pillow", "torchvision")
_DISTRIBUTIONS = {"open_clip": "open-clip-torch"}


@dataclass(frozen=True)
class StoreKey:
    """What the rows of one store have in common.

    `teacher`: see `teacher_identity`. `size`: the side, or (height, width), in pixels that the
    teacher is shown. `views`: see `views_identity`. `label`: what a person calls the teacher; two
    keys that differ in nothing else are one.
    """

    teacher: dict[str, Any]
    size: Size
    views: dict[str, Any]
    label: str

    def contents(self, format: str) -> dict[str, Any]:
        """What the digest is of, as JSON holds it; `format` is one of distill.cache.FORMATS."""
        lossless = format in ("exact", self.teacher["dtype"])
        return {
            "version": FORMAT_VERSION,
            "format": "exact" if lossless else format,
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "teacher": self.teacher,
            "views": self.views,
        }

    def digest(self, format: str) -> str:
        """24 hexadecimal digits: the name of the store's folder."""
        text = json.dumps(self.contents(format), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def teacher_identity(teacher: Teacher) -> dict[str, Any]:
    """What of a teacher its features depend on, as JSON holds it.

    The content of its checkpoint's files (SHA-256 each: weights, configuration, preprocessing and
    code), wherever they lie; of its spec the family, layer and tokens; the dtype that it runs in
    and the pixel statistics that it takes; the exact versions of torch and of the library that it
    is built of; the code of its family and of this package. Neither trust flags nor micro_batch.
    """
    model = type(getattr(teacher, "model", teacher))
    libraries = {"torch", model.__module__.partition(".")[0]} - {"builtins", "teachers"}
    return {
        "family": teacher.spec.family,
        "layer": teacher.spec.layer,
        "tokens": sorted(teacher.spec.tokens),
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "mean": list(teacher.info.mean or ()),
        "std": list(teacher.info.std or ()),
        "files": _files(teacher),
        "libraries": {name: _version(name) for name in sorted(libraries)},
        "code": code_digest(_modules_of_teachers(type(teacher))),
    }


def views_identity(
    policy: str, scale: Sequence[float], view_seed: int, canvas: int
) -> dict[str, Any]:
    """What of views the teachers' pixels depend on beside source, index and epoch: how they are
    drawn, the side of the canvas in pixels, and the code and libraries that decode and change
    pixels."""
    return {
        "policy": json.loads(json.dumps(asdict(POLICIES[policy]))),
        "scale": [float(share) for share in scale],
        "view_seed": view_seed,
        "canvas": canvas,
        "libraries": {name: _version(name) for name in _LIBRARIES_OF_PIXELS},
        "code": code_digest(_OF_PIXELS),
    }


def view_prints(pixels: Tensor, draws: Tensor) -> NDArray[np.uint32]:
    """A checksum of each view as the loader gives it, so that an image that was changed, or moved
    to another index, is not taken for what it was.

    Args:
        pixels: (n, 3, S, S) uint8 on the CPU.
        draws: (n, 6) float32 on the CPU, of its colours.

    Returns:
        (n,) uint32, 1 and up.
    """
    rows = zip(pixels.contiguous().numpy(), draws.contiguous().numpy(), strict=True)
    prints = [zlib.crc32(draw.tobytes(), zlib.crc32(row)) for row, draw in rows]
    return np.maximum(np.array(prints, dtype=np.uint32), 1)


def code_digest(modules: Iterable[str]) -> str:
    """A digest of what modules do: of their syntax without comments, layout and docstrings, so that
    nobody has to remember to raise a version. Other versions of Python may give another."""
    digest = hashlib.sha256()
    for name in sorted(set(modules)):
        digest.update(name.encode() + b"\0" + _syntax(name).encode() + b"\0")
    return digest.hexdigest()[:24]


@cache
def _syntax(module: str) -> str:
    spec = importlib.util.find_spec(module)
    source = getattr(spec.loader, "get_source", lambda _: None)(module) if spec else None
    if source is None:  # compiled: what is known of it is its package's version
        return _version(module.partition(".")[0])
    return syntax(source)


def syntax(source: str) -> str:
    """Python source without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                line
                for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return ast.dump(tree)


def _modules_of_teachers(family: type[Teacher]) -> set[str]:
    """This package's modules, and those of a family that another package brings."""
    own = {f"teachers.{module.name}" for module in pkgutil.iter_modules(families.__path__)}
    bases = {base.__module__ for base in family.__mro__}
    foreign = {name for name in bases if name.partition(".")[0] not in ("torch", "builtins", "abc")}
    return own | foreign | {"students.encoder", "students.features"}


def _files(teacher: Teacher) -> dict[str, str]:
    checkpoint = teacher.checkpoint
    if checkpoint.folder is None:
        return {"state": _state_digest(teacher)}
    layout = checkpoint.layout
    found = weight_files(checkpoint.folder, layout, checkpoint.pickled)
    beside = (layout.config, *layout.preprocessors, *layout.beside)
    found += [checkpoint.folder / name for name in beside]
    found += sorted(checkpoint.folder.glob("*.py")) if teacher.spec.trust_remote_code else []
    return {path.name: _sha256(path) for path in found if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_digest(teacher: Teacher) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _version(library: str) -> str:
    """Of a library, without what says how it was built."""
    try:
        return version(_DISTRIBUTIONS.get(library, library)).partition("+")[0]
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(library), "__version__", "unknown"))
