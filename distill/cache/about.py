"""The small files of a store: about.json, and the statistics of its codecs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from distill.cache.codec import ChannelStatistics, Codec, RowLayout


def about_store(label: str, key: Mapping[str, Any], layout: RowLayout) -> str:
    """What about.json of a new store says."""
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    about = {"label": label, "key": key, "layout": asdict(layout), "created": created}
    return json.dumps(about, indent=2) + "\n"


def read_about(folder: Path) -> dict[str, Any] | None:
    """What about.json says; None where there is none, or it is damaged."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def read_layout(folder: Path, key: Mapping[str, Any] | None = None) -> RowLayout | None:
    """The layout of a store's rows; None where about.json is damaged or of another key."""
    about = read_about(folder)
    if about is None or (key is not None and about.get("key") != key):
        return None
    try:
        fields = dict(about["layout"])
        fields["grid"] = None if fields["grid"] is None else tuple(fields["grid"])
        return RowLayout(**fields)
    except (KeyError, TypeError, ValueError):
        return None


def read_codec(folder: Path, layout: RowLayout, name: str) -> Codec | None:
    """The codec that a shard's name ends in; None where its statistics are not as they were."""
    if layout.lossless:
        return Codec(layout, None) if name == "exact" else None
    try:
        held = load_file(folder / f"statistics-{name}.safetensors")
        statistics = {
            kind: ChannelStatistics(held[f"{kind}.mean"], held[f"{kind}.std"])
            for kind in layout.parts
        }
        codec = Codec(layout, statistics)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return codec if codec.name == name else None


def write_codec(folder: Path, codec: Codec) -> None:
    """Writes a codec's statistics down, where they are not there or not whole.

    Raises:
        OSError: if the disk refuses.
    """
    if not codec.statistics or read_codec(folder, codec.layout, codec.name) is not None:
        return
    tensors: dict[str, Tensor] = {}
    for kind, held in codec.statistics.items():
        tensors |= {f"{kind}.mean": held.mean, f"{kind}.std": held.std}
    write_small(folder / f"statistics-{codec.name}.safetensors", save(tensors))


def write_small(path: Path, content: bytes) -> None:
    """Write a file beside, sync it and rename it.

    Raises:
        OSError: if the disk refuses.
    """
    beside = path.with_name(f"{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
