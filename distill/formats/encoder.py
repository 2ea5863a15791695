"""An exported file as an encoder: pixels in, Features out, whatever library runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from distill.formats.about import About
from students import Features
from students.pixels import Size, resize


class ExportedEncoder(ABC):
    """Runs one exported file on the CPU, called as a student is.

    Attributes:
        path: the file.
        about: the JSON beside it.
        size, stride: the student's native size, and pixels per dense token.
    """

    def __init__(self, path: Path, about: About):
        self.path, self.about = path, about
        self.size, self.stride = int(about["size"]), int(about["stride"])

    def __call__(self, pixels: Tensor, size: Size | None = None) -> Features:
        """Features of pixels (B, 3, H, W), RGB in [0, 1], resized to `size` (default: `size` of the
        file), in float32 on the CPU.

        Raises:
            ValueError: if a side of `size` is no multiple of `stride`, or the file was made for
                another size.
        """
        size = self.size if size is None else size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if any(side % self.stride for side in sides):
            raise ValueError(
                f"size {size} is no multiple of {self.path.name}'s stride {self.stride}"
            )
        only = self.about["sizes"]
        if isinstance(only, list) and any(side not in only for side in sides):
            raise ValueError(f"{self.path.name} takes {only[0]} px only, not {size}")
        with torch.no_grad():
            summary, dense = self.run(resize(pixels.cpu().float(), size).contiguous())
        return Features(summary, dense)

    @abstractmethod
    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) float32 in [0, 1], of a legal size, to summary (B, D_s) and dense
        (B, h, w, D_d)."""


def load_exported(path: str | Path, threads: int | None = None) -> ExportedEncoder:
    """The exported file (model.onnx, model_224.pte, model.pt2, ...) as an encoder.

    Args:
        path: the file; its JSON lies beside it.
        threads: of one image's computation (default: as many as the library takes). ONNX Runtime
            has threads for each file, torch and ExecuTorch for the whole process.

    Raises:
        UserError: if the file is none of ours, is damaged, or a library is missing.
    """
    from distill.formats.about import read_about

    path = Path(path)
    about = read_about(path)
    if about["format"] == "onnx":
        from distill.formats.onnx_format import OnnxEncoder

        return OnnxEncoder(path, about, threads)
    if about["format"] == "executorch":
        from distill.formats.executorch_format import ExecutorchEncoder

        return ExecutorchEncoder(path, about, threads)
    from distill.formats.torch_export import TorchExportEncoder

    return TorchExportEncoder(path, about, threads)
