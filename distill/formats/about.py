"""What an exported file says of itself: the JSON that lies beside it, and the files' names."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill.formats.kinds import DYNAMIC, FORMATS, QUANTIZATIONS
from students import Student, UserError, did_you_mean

_LIBRARIES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "executorch": ("executorch", "torchao"),
    "torch-export": ("torchao",),
}

About = dict[str, Any]
"""The content of the JSON; `describe` lists its keys."""


def file_name(form: str, quantize: str | None, size: int) -> str:
    """model.onnx, model.int8-static.onnx, model_224.pte: with the size, where there is only one."""
    stem = "model" if DYNAMIC[form] else f"model_{size}"
    return f"{stem}{'' if quantize is None else f'.{quantize}'}{FORMATS[form]}"


def describe(student: Student, form: str, quantize: str | None, size: int) -> About:
    """What is known before a file is written: format, quantization, arch, parameters, stride, size,
    sizes and batch ("any" or the only one), input, outputs and versions. The writer adds weights
    (see `digest`), bytes, verification, and of a file in 8 bits method, calibration and probes."""
    stride, dynamic = student.stride, DYNAMIC[form]
    images: str | int = "B" if dynamic else 1
    sides = ["H", "W"] if dynamic else [size, size]
    grid = [f"H/{stride}", f"W/{stride}"] if dynamic else [size // stride] * 2
    return {
        "format": form,
        "quantization": quantize,
        "arch": student.arch,
        "parameters": student.parameter_count,
        "stride": stride,
        "size": size,
        "sizes": f"any multiple of {stride}, from {2 * stride}" if dynamic else [size],
        "batch": "any" if dynamic else 1,
        "input": {
            "name": "pixels",
            "shape": [images, 3, *sides],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": "RGB",
        },
        "outputs": {
            "summary": {"shape": [images, student.summary_dim], "dtype": "float32"},
            "dense": {"shape": [images, *grid, student.dense_dim], "dtype": "float32"},
        },
        "versions": _versions(form),
    }


def about_path(file: Path) -> Path:
    """Where the JSON of an exported file lies: model.onnx has model.json."""
    return file.with_suffix(".json")


def read_about(file: Path) -> About:
    """What an exported file says of itself.

    Raises:
        UserError: if there is no such file, or none of ours.
    """
    suffixes = {suffix: form for form, suffix in FORMATS.items()}
    if file.suffix not in suffixes:
        raise UserError(f"{file} is no exported file: expected one of {', '.join(suffixes)}")
    if not file.is_file():
        raise UserError(f"there is no {file}: `distill export` writes it")
    try:
        about = json.loads(about_path(file).read_text(encoding="utf-8"))
        if about["format"] != suffixes[file.suffix]:
            raise ValueError(f"it is of the format {about['format']}")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{about_path(file)} does not describe {file.name} ({error}): export it again"
        ) from None
    return about


def exported_files(folder: Path) -> list[Path]:
    """The exported files of a student's folder, in the order of FORMATS, then by name."""
    return [file for file in _candidates(folder) if _describes_itself(file)]


def digest(folder: Path) -> str:
    """SHA-256 of the weights of a student's folder: of which student a file was made."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unfit_files(folder: Path) -> dict[Path, str]:
    """The files of other formats in a student's folder that may not be given away as its, and why
    in a few words: those that are not described, or were made of other weights."""
    own, found = digest(folder), {}
    for file in _candidates(folder):
        if not _describes_itself(file):
            found[file] = f"{about_path(file).name} does not describe it"
        elif read_about(file).get("weights") != own:
            found[file] = "it was made of other weights"
    return found


def check_format(form: str, quantize: str | None) -> None:
    """See that there is such a format, and that it has the quantization.

    Raises:
        UserError: if not.
    """
    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}{did_you_mean(form, FORMATS)}")
    if quantize is None:
        return
    if quantize not in QUANTIZATIONS:
        raise UserError(f"unknown quantization {quantize!r}{did_you_mean(quantize, QUANTIZATIONS)}")
    if form not in QUANTIZATIONS[quantize]:
        having = " and ".join(QUANTIZATIONS[quantize])
        raise UserError(f"{quantize} is for {having}, not for {form}: export that by itself")


def _candidates(folder: Path) -> list[Path]:
    return [
        file
        for form, suffix in FORMATS.items()
        for file in sorted((folder / form).glob(f"*{suffix}"))
        if not file.name.startswith(".")
    ]


def _describes_itself(file: Path) -> bool:
    try:
        read_about(file)
    except UserError:
        return False
    return True


def _versions(form: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "timm", *_LIBRARIES[form]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # torchao, where nothing is quantised
            continue
    return found
