"""The format onnx: one .onnx file for any batch and size, run by ONNX Runtime.

Both kinds of int8 quantise weights per output channel to signed and activations to unsigned 8 bits
by ONNX Runtime's own tool. int8-dynamic: matrix products with a constant, activations with a scale
of the moment. int8-static: the same and convolutions, as QDQ nodes, with scales from the smallest
and largest activation over calibration images. What a layer reads is quantised and not what it
gives, and the convolution that reads pixels and the depthwise ones stay in float32: that is as
fast, and loses a third to a tenth of what it does otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.formats.about import About
from distill.formats.encoder import ExportedEncoder
from distill.formats.extras import library, require
from distill.formats.module import DENSE, PIXELS, SUMMARY, exported_module, trace
from students import Student, UserError

_LARGEST = 2_000_000_000
"""Bytes of weights beyond which ONNX does not hold a model in one file."""


def write_onnx(path: Path, student: Student) -> None:
    """Write `path` (.onnx) in float32.

    Raises:
        UserError: if a library is missing, the model is too large for one file, or its
            architecture cannot be translated.
    """
    require("onnx", "the format onnx")
    if 4 * student.parameter_count > _LARGEST:
        raise UserError(
            f"{student.arch} has {student.parameter_count:,} parameters, and one ONNX file holds "
            f"at most {_LARGEST // 4:,}: export a student, not a proxy"
        )
    module = exported_module(student, fused_attention=False)
    program = trace(module, student, student.size, dynamic=True)
    try:
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=[PIXELS],
            output_names=[SUMMARY, DENSE],
        )
    except Exception as error:  # torch.onnx raises kinds of its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{student.arch} cannot be written as ONNX: {reason[0]}") from error
    assert made is not None
    made.save(path)


def quantize_onnx(source: Path, path: Path, quantize: str, images: Tensor | None) -> str:
    """Write `path`, `source` in 8 bits, and return how.

    Args:
        source: a float file of `write_onnx`.
        path: where to.
        quantize: "int8-dynamic" or "int8-static".
        images: (N, 3, S, S) in [0, 1], for "int8-static".

    Raises:
        UserError: if a library is missing.
    """
    require("onnx", "the format onnx")
    tool = library("onnxruntime.quantization", "onnx", "the format onnx")
    prepared = path.with_name(f"{path.name}.prepared")
    shared: dict[str, Any] = {
        "per_channel": True,
        "weight_type": tool.QuantType.QInt8,
        # Products of two activations (attention) lose most and gain little.
        "extra_options": {"MatMulConstBOnly": True},
    }
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        # The symbolic inference knows no operator that torch leaves as a function.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if quantize == "int8-dynamic":
            kinds = ["MatMul", "Gemm"]
            tool.quantize_dynamic(prepared, path, op_types_to_quantize=kinds, **shared)
            return "onnxruntime quantize_dynamic, per channel: MatMul, Gemm"
        assert images is not None
        kinds = ["MatMul", "Gemm", "Conv"]
        shared["extra_options"] |= {"OpTypesToExcludeOutputQuantization": kinds}
        tool.quantize_static(
            prepared,
            path,
            _Images(images),
            quant_format=tool.QuantFormat.QDQ,
            activation_type=tool.QuantType.QUInt8,
            op_types_to_quantize=kinds,
            nodes_to_exclude=_float_convolutions(prepared),
            **shared,
        )
        return (
            "onnxruntime quantize_static, QDQ, per channel: MatMul, Gemm, Conv but the first and "
            "depthwise ones"
        )
    finally:
        prepared.unlink(missing_ok=True)


def _float_convolutions(path: Path) -> list[str]:
    """The names of the convolutions of a model that int8-static leaves in float32."""
    graph = library("onnx", "onnx", "the format onnx").load(path).graph
    widths = {tensor.name: tensor.dims[1] for tensor in graph.initializer if len(tensor.dims) == 4}
    found = []
    for node in graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and (groups > 1 or widths.get(node.input[1]) == 3):
            found.append(str(node.name))
    return found


class _Images:
    """Calibration images, one at a time, as ONNX Runtime's tool asks for them."""

    def __init__(self, images: Tensor):
        self._left = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {PIXELS: image.numpy()}

    def __iter__(self) -> _Images:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found


class OnnxEncoder(ExportedEncoder):
    """Runs a .onnx file by ONNX Runtime on the CPU, in `threads` of its own."""

    def __init__(self, path: Path, about: About, threads: int | None = None):
        super().__init__(path, about)
        runtime = library("onnxruntime", "onnx", "the format onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its kinds derive from Exception alone
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{path} cannot be loaded by ONNX Runtime: {reason[0]}") from error

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ExportedEncoder.run."""
        summary, dense = self._session.run([SUMMARY, DENSE], {PIXELS: pixels.numpy()})
        return torch.from_numpy(summary), torch.from_numpy(dense)
