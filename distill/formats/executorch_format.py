"""The format executorch: a .pte for one image of one size, its layers handed to XNNPACK.

One size, because a phone shows one, and memory is planned when the file is written. int8 is by
torch's export quantisation with XNNPACK's quantiser, weights per channel: int8-static quantises
linear layers and all convolutions but the first with scales from calibration images, int8-dynamic
linear layers alone with activation scales of the moment. What lies between stays in float32: the
sums of a residual stream have channels of very unlike ranges, and one scale for all of them loses
two to four times as much in all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.formats.about import About
from distill.formats.encoder import ExportedEncoder
from distill.formats.extras import library, require, silent
from distill.formats.module import exported_module, trace
from students import Student, UserError

_PURPOSE = "the format executorch"


def write_executorch(
    path: Path, student: Student, size: int, quantize: str | None, images: Tensor | None
) -> str:
    """Write `path` (.pte), and return how it was quantised, "" for not at all.

    Args:
        path: where to.
        student: whom.
        size: side of the one image that the file takes, a multiple of the student's stride.
        quantize: None, "int8-dynamic" or "int8-static".
        images: (N, 3, size, size) in [0, 1], for "int8-static".

    Raises:
        UserError: if a library is missing, or the architecture cannot be lowered.
    """
    require("executorch", _PURPOSE)
    exir = library("executorch.exir", "executorch", _PURPOSE)
    partitioner = library(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", _PURPOSE
    )
    folding = library("executorch.exir.passes.constant_prop_pass", "executorch", _PURPOSE)
    # XNNPACK takes no part of torch's safe softmax: three times as slow for a ViT at 512 pixels.
    module = exported_module(student, fused_attention=False)
    program, method = trace(module, student, size, dynamic=False), ""
    try:
        # Positions are resized for any size in torch; for one size they are constants.
        program = folding.constant_prop_pass(program)
        if quantize is not None:
            quantized, method = _to_int8(program.module(), quantize, images, size)
            program = trace(quantized, student, size, dynamic=False)
        lowered = exir.to_edge_transform_and_lower(
            program, partitioner=[partitioner.XnnpackPartitioner()]
        )
        made = lowered.to_executorch()
    except UserError:
        raise
    except Exception as error:  # of many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{student.arch} cannot be lowered to ExecuTorch: {reason[0]}") from error
    with path.open("wb") as file:
        made.write_to_file(file)
    return method


def _to_int8(
    module: Any, quantize: str, images: Tensor | None, size: int
) -> tuple[torch.nn.Module, str]:
    """The module with quantised layers, and how they became so."""
    quantizers = library(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "executorch", _PURPOSE
    )
    pt2e = library("torchao.quantization.pt2e.quantize_pt2e", "executorch", _PURPOSE)
    dynamic = quantize == "int8-dynamic"
    quantizer = quantizers.XNNPACKQuantizer()
    config = quantizers.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    if dynamic:
        # XNNPACK's dynamic convolutions refuse some shapes, when it is too late.
        quantizer.set_operator_type(torch.ops.aten.linear.default, config)
    else:
        quantizer.set_global(config)
        quantizer.set_filter_function(_in_8_bits)
    observed = pt2e.prepare_pt2e(module, quantizer)
    if images is None:  # the dynamic kind looks at no activation, but has to have run once
        images = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        for image in images.split(1):
            observed(image)
    kind = "dynamic: Linear" if dynamic else "static: Linear, Conv but the first"
    return pt2e.convert_pt2e(observed), f"pt2e with XNNPACKQuantizer, per channel, {kind}"


def _in_8_bits(node: torch.fx.Node) -> bool:
    """Whether a layer's node is quantised by int8-static; its weight's and bias's nodes are.

    The convolution that reads pixels is not: pixels of 8 bits are rounded again, and it is cheap.
    Depthwise ones are, for XNNPACK fails to run a file in which they are not.
    """
    if node.op != "call_function" or node.target == torch.ops.aten.linear.default:
        return True
    if node.target != torch.ops.aten.conv2d.default:
        return False
    weight: Any = node.args[1]
    groups: Any = node.args[6] if len(node.args) > 6 else 1
    return int(weight.meta["val"].shape[1]) * groups != 3


class ExecutorchEncoder(ExportedEncoder):
    """Runs a .pte by ExecuTorch's runtime, an image at a time. `threads` holds for the process."""

    def __init__(self, path: Path, about: About, threads: int | None = None):
        super().__init__(path, about)
        runtime = library("executorch.runtime", "executorch", _PURPOSE)
        if threads is not None:
            set_threads(threads)
        try:
            # The program owns the memory that the method runs in.
            with silent():  # it tells which files of the system it looks for cores in
                self._program = runtime.Runtime.get().load_program(path)
                self._forward = self._program.load_method("forward")
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{path} cannot be loaded by ExecuTorch: {reason[0]}") from error

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As ExportedEncoder.run."""
        found = []
        for image in pixels.split(1):
            outputs = self._forward.execute([image.contiguous()])
            # The next call writes to the same memory.
            found.append([output.clone() for output in outputs])
        summaries, maps = zip(*found, strict=True)
        return torch.cat(summaries), torch.cat(maps)


def set_threads(threads: int) -> None:
    """Threads of ExecuTorch in this process, whatever files it runs."""
    bindings = library("executorch.extension.pybindings.portable_lib", "executorch", _PURPOSE)
    with silent():
        if bindings._threadpool_get_thread_count() != threads:
            bindings._unsafe_reset_threadpool(threads)
