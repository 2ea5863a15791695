"""The format torch-export: a .pt2 of torch.export, for any batch and size, run by torch itself.

int8-dynamic is torchao's Int8DynamicActivationInt8WeightConfig: weights of Linear layers in 8 bits
per output channel, activations in 8 bits per token with a scale of the moment. Convolutions stay
in float32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.formats.about import About
from distill.formats.encoder import ExportedEncoder
from distill.formats.extras import library, quiet, require
from distill.formats.module import ExportedModule, exported_module, trace
from students import Student, UserError

_SMALLEST = 16
"""Linear layers of fewer inputs or outputs stay as they are: scales would cost what they save."""


def write_torch_export(path: Path, student: Student, quantize: str | None) -> str:
    """Write `path` (.pt2), and return how it was quantised, "" for not at all.

    Raises:
        UserError: if torchao is wanted and missing, or the architecture cannot be traced.
    """
    module, method = exported_module(student), ""
    if quantize == "int8-dynamic":
        require("int8", "torch-export in int8")
        method = _to_int8(module)
    program = trace(module, student, student.size, dynamic=True)
    try:
        torch.export.save(program, path)
    except Exception as error:  # an operator on sizes that torch cannot save
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{student.arch} cannot be saved by torch.export: {reason[0]}") from error
    return method


def _to_int8(module: ExportedModule) -> str:
    quantization = library("torchao.quantization", "int8", "torch-export in int8")

    def wide(layer: torch.nn.Module, _name: str) -> bool:
        return isinstance(layer, torch.nn.Linear) and min(layer.weight.shape) >= _SMALLEST

    quantization.quantize_(
        module, quantization.Int8DynamicActivationInt8WeightConfig(), filter_fn=wide
    )
    return "torchao Int8DynamicActivationInt8WeightConfig: Linear layers"


class TorchExportEncoder(ExportedEncoder):
    """Runs a .pt2 in torch's eager mode. `threads` holds for the whole process."""

    def __init__(self, path: Path, about: About, threads: int | None = None):
        super().__init__(path, about)
        if about["quantization"] is not None:
            require("int8", f"{path.name}")
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with quiet():
                self._module = torch.export.load(path).module()
        except Exception as error:  # of many kinds: zip, JSON, unknown operators
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{path} cannot be loaded by torch: {reason[0]}") from error

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ExportedEncoder.run."""
        summary, dense = self._module(pixels)
        return summary, dense
