"""The formats that a student can be written in, and the ways to 8 bits."""

from __future__ import annotations

FORMATS: dict[str, str] = {"onnx": ".onnx", "executorch": ".pte", "torch-export": ".pt2"}
"""The formats and their files' suffixes."""

DYNAMIC: dict[str, bool] = {"onnx": True, "executorch": False, "torch-export": True}
"""Whether a file takes any batch and size; if not, it takes one image of one size."""

QUANTIZATIONS: dict[str, tuple[str, ...]] = {
    "int8-dynamic": ("onnx", "executorch", "torch-export"),
    "int8-static": ("onnx", "executorch"),
}
"""The ways to 8 bits, and the formats that have each."""
