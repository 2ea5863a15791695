"""Run as a program: the memory of one model in a process of its own, with nothing else in it.

    python peak.py KIND FILE SIZE BATCH THREADS

KIND is onnx, executorch, torch-export, student (FILE is its folder) or teacher (FILE is a teacher's
spec as JSON). Prints {"library": bytes resident after the imports, "peak": bytes at most}.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def imported(kind: str, threads: int) -> Callable[[str, int, int], Any]:
    """What loads FILE and runs a batch of SIZE once, with its libraries imported."""
    if kind == "onnx":
        import numpy as np
        import onnxruntime

        def onnx(file: str, size: int, batch: int) -> Any:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
            return session.run(None, {"pixels": np.zeros((batch, 3, size, size), np.float32)})

        return onnx
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if kind == "executorch":
        from executorch.runtime import Runtime

        def executorch(file: str, size: int, batch: int) -> Any:
            program = Runtime.get().load_program(Path(file))
            forward = program.load_method("forward")
            return [forward.execute([torch.zeros(1, 3, size, size)]) for _ in range(batch)]

        return executorch
    if kind == "torch-export":
        if ".int8" in sys.argv[2]:
            import torchao.quantization  # noqa: F401  (its operators are in the file)

        def torch_export(file: str, size: int, batch: int) -> Any:
            return torch.export.load(file).module()(torch.zeros(batch, 3, size, size))

        return torch_export
    import timm  # noqa: F401  (before the weights are there)

    if kind == "student":
        from students import load_student

        def student(file: str, size: int, batch: int) -> Any:
            return load_student(file).eval()(torch.zeros(batch, 3, size, size), size)

        return student
    from teachers import TeacherSpec, load_teacher

    def teacher(file: str, size: int, batch: int) -> Any:
        words: dict[str, Any] = json.loads(file)
        # JSON has lists for tuples.
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in words.items()
        }
        spec = TeacherSpec(**given)
        return load_teacher(spec)(torch.zeros(batch, 3, size, size), size)

    return teacher


def main() -> None:
    """Import, look, load and run, look again."""
    kind, file = sys.argv[1:3]
    size, batch, threads = map(int, sys.argv[3:6])
    run = imported(kind, threads)
    library = _peak()
    run(file, size, batch)
    print(json.dumps({"library": library, "peak": _peak()}))


def _peak() -> int:
    """Bytes at most so far. The system's own count (getrusage) begins with that of the process that
    started this one."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main()
