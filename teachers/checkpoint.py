"""Checkpoints: where their files are, and what the files say. No weights are loaded here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from students.errors import UserError, did_you_mean

BUILTIN = Path(__file__).parent / "builtin"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Everything that a teacher reads; other frameworks' weights stay where they are.
WANTED = (
    "config.json",
    *PREPROCESSORS,
    WEIGHTS,
    INDEX,
    "model-*-of-*.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "*.model",
    "README.md",
)


@dataclass(frozen=True)
class Checkpoint:
    """Files of one published model. `folder` is None where none of them is on this machine;
    `fetched` says whether the weights are there too."""

    source: str
    folder: Path | None
    fetched: bool
    builtin: bool = False


def resolve(weights: str) -> Checkpoint:
    """Find "builtin:NAME", a local folder or a hub id's cached files; never uses the network.

    Raises:
        UserError: if there is no such built-in model or folder, if the folder holds no
            safetensors weights, or if `weights` is none of the three.
    """
    kind, _, name = weights.partition(":")
    if kind == "builtin":
        folder = BUILTIN / name
        if not name or not (folder / "config.json").is_file():
            known = [path.parent.name for path in BUILTIN.glob("*/config.json")]
            raise UserError(
                f"weights {weights!r}: no such built-in teacher{did_you_mean(name, known)}"
            )
        _require_weights(folder, weights)
        return Checkpoint(str(folder), folder, fetched=True, builtin=True)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        _require_weights(folder, weights)
        return Checkpoint(str(folder), folder, fetched=True)
    if folder.is_file():
        raise UserError(
            f"weights {weights!r}: is a file; name the folder that holds config.json and {WEIGHTS}"
        )
    if weights.startswith(("/", ".", "~")):
        raise UserError(f"weights {weights!r}: no such folder")
    if not HUB_ID.fullmatch(weights):
        raise UserError(
            f"weights {weights!r}: no such folder, and no hub id (ORGANISATION/NAME) "
            "or built-in teacher (builtin:NAME) either"
        )
    return _cached(weights)


def fetch(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its files on this machine, downloaded if they are not.

    Raises:
        UserError: if the hub cannot be reached, does not know the id or does not give it out, or
            if what it has is not safetensors.
    """
    if checkpoint.fetched:
        return checkpoint
    import huggingface_hub
    from huggingface_hub import errors

    name = checkpoint.source
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED)))
    except errors.GatedRepoError:
        raise UserError(
            f"weights {name!r}: its owner asks for consent; give it on the model's page, log in "
            "with `hf auth login`, and run again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"weights {name!r}: the hub has no such model for you; check the spelling, or log in "
            "with `hf auth login` if it is private"
        ) from None
    except Exception as error:  # whatever the network stack raises; the type says which
        raise UserError(
            f"weights {name!r}: not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}); fetch it where there is a network (`hf download {name}`) "
            "or name a local folder"
        ) from None
    weights = _weight_files(folder)
    if not weights or not all(file.exists() for file in weights):
        raise UserError(
            f"weights {name!r}: the hub gave no whole {WEIGHTS}; only safetensors are read, and "
            f"without a network only what is in the local cache (`hf download {name}` fills it)"
        )
    return Checkpoint(name, folder, fetched=True)


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of config.json.

    Raises:
        UserError: if it is missing, is no JSON object, or names no model_type.
    """
    fields = _read_json(checkpoint, "config.json")
    if fields is None:
        raise UserError(
            f"{checkpoint.source}: has no config.json; a teacher is a folder in transformers' "
            f"format (config.json, {WEIGHTS}, preprocessor_config.json)"
        )
    if not isinstance(fields.get("model_type"), str):
        raise UserError(f"{checkpoint.source}: config.json names no model_type")
    return fields


def read_preprocessor(checkpoint: Checkpoint) -> dict[str, Any]:
    """The image part of preprocessor_config.json (or of the newer processor_config.json); empty
    while the checkpoint is only partly fetched.

    Raises:
        UserError: if the checkpoint has neither file.
    """
    fields = _read_json(checkpoint, "preprocessor_config.json")
    if fields is None:
        fields = (_read_json(checkpoint, "processor_config.json") or {}).get("image_processor")
    if fields is None and not checkpoint.fetched:
        return {}
    if fields is None:
        raise UserError(
            f"{checkpoint.source}: has no preprocessor_config.json, so its pixel statistics are "
            "unknown; add one with the image_mean and image_std that it was trained with, e.g. "
            '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
        )
    return fields


def pixel_statistics(
    checkpoint: Checkpoint, preprocessor: dict[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel (3 each) for pixels in [0, 1].

    Raises:
        UserError: if they are not three numbers each, or a std is not above 0.
    """
    found: list[tuple[float, ...]] = []
    for key in ("image_mean", "image_std"):
        values: Any = preprocessor.get(key)
        if not _three_numbers(values) or (key == "image_std" and min(values) <= 0):
            raise UserError(
                f"{checkpoint.source}: preprocessor_config.json has {key} {values!r}; set it to "
                "the three numbers that the model was trained with"
            )
        found.append(tuple(float(value) for value in values))
    return found[0], found[1]


def crop_side(preprocessor: dict[str, Any]) -> int | None:
    """The side of a square centre crop in pixels, or None where the preprocessor has none."""
    crop = preprocessor.get("crop_size")
    if not preprocessor.get("do_center_crop", True):
        return None
    if isinstance(crop, dict):
        crop = crop.get("height") if crop.get("height") == crop.get("width") else None
    return crop if isinstance(crop, int) else None


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the weight files, from their headers alone.

    Raises:
        UserError: if a file is missing from a sharded checkpoint or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    assert checkpoint.folder is not None
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(checkpoint.folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(
                f"{checkpoint.source}: {path.name} is missing; fetch the whole model again"
            ) from None
        except SafetensorError as error:
            raise UserError(
                f"{checkpoint.source}: {path.name} cannot be read ({error}); fetch it again"
            ) from None
    return shapes


def count_elements(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(prod(shape) for shape in shapes.values())


def licence(checkpoint: Checkpoint) -> str | None:
    """The licence in the front matter of the model card, or None where none is named."""
    if checkpoint.builtin:
        return "apache-2.0"
    card = checkpoint.folder / "README.md" if checkpoint.folder else None
    if card is None or not card.is_file():
        return None
    front = re.match(
        r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S
    )
    line = re.search(r"^license:\s*['\"]?([^\s'\"#]+)", front[1], re.M) if front else None
    return line[1] if line else None


def _cached(hub_id: str) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        raise UserError(f"weights {hub_id!r}: no such folder, and no legal hub id") from None
    if not isinstance(config, str):
        return Checkpoint(hub_id, None, fetched=False)
    folder = Path(config).parent
    weights = _weight_files(folder)
    # transformers' own loading of a model leaves the preprocessor behind.
    statistics = any((folder / name).exists() for name in PREPROCESSORS)
    complete = bool(weights) and statistics and all(file.exists() for file in weights)
    return Checkpoint(hub_id, folder, fetched=complete)


def _three_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(value, int | float) for value in values)
    )


def _weight_files(folder: Path) -> list[Path]:
    """As transformers chooses them: one file, else the shards that the index names."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        return []
    try:
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{folder}: {INDEX} cannot be read; fetch it again") from None
    return [folder / name for name in sorted(names)]


def _require_weights(folder: Path, weights: str) -> None:
    if _weight_files(folder):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"weights {weights!r}: only pickled weights ({pickles[0]}), which can run code; "
            "only safetensors are read: save the model again with save_pretrained"
        )
    raise UserError(f"weights {weights!r}: the folder has no {WEIGHTS}")


def _read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    path = (checkpoint.folder or Path()) / name
    if checkpoint.folder is None or not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds no JSON object")
    return fields
