"""Students in other formats: ONNX, ExecuTorch, torch.export; in float32 and in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.formats.about import exported_files, read_about
    from distill.formats.encoder import ExportedEncoder, load_exported
    from distill.formats.module import ExportedModule, exported_module
    from distill.formats.write import FormatWriter, export_formats

_WHERE = {
    "ExportedEncoder": "distill.formats.encoder",
    "ExportedModule": "distill.formats.module",
    "FormatWriter": "distill.formats.write",
    "export_formats": "distill.formats.write",
    "exported_files": "distill.formats.about",
    "exported_module": "distill.formats.module",
    "load_exported": "distill.formats.encoder",
    "read_about": "distill.formats.about",
}

__all__ = [
    "ExportedEncoder",
    "ExportedModule",
    "FormatWriter",
    "export_formats",
    "exported_files",
    "exported_module",
    "load_exported",
    "read_about",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the arguments of `distill export` must not wait for torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'distill.formats' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
