"""Where a checkpoint's files are: built in, in a local folder, or of a hub id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from students.errors import UserError, did_you_mean

BUILTIN = Path(__file__).parent / "builtin"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Layout:
    """What a library calls its files. A name with ".index.json" behind it lists shards; `beside`
    are further ones."""

    config: str
    weights: str
    pickle: str
    preprocessors: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def wanted(self, allow_pickle: bool, code: bool) -> list[str]:
        """Patterns of all that a teacher reads; other frameworks' weights stay where they are."""
        patterns = [self.config, *PREPROCESSORS, *self.beside, "README.md"]
        patterns += ["tokenizer*", "*.model"]
        patterns += ["special_tokens_map.json", "vocab.*", "merges.txt"]
        for name in (self.weights, *([self.pickle] if allow_pickle else [])):
            stem, suffix = name.rsplit(".", 1)
            patterns += [name, f"{name}.index.json", f"{stem}-*-of-*.{suffix}"]
        return [*patterns, "*.py"] if code else patterns


TRANSFORMERS = Layout("config.json", "model.safetensors", "pytorch_model.bin", PREPROCESSORS)
TIMM = Layout("config.json", "model.safetensors", "pytorch_model.bin")
OPEN_CLIP = Layout(
    "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
)


@dataclass(frozen=True)
class Checkpoint:
    """Files of one published model. `folder` is None where none of them is on this machine;
    `fetched` says whether the weights are there too; `pickled` whether they are a pickle."""

    source: str
    folder: Path | None
    fetched: bool
    builtin: bool = False
    layout: Layout = TRANSFORMERS
    pickled: bool = False


def resolve(weights: str, layout: Layout = TRANSFORMERS, allow_pickle: bool = False) -> Checkpoint:
    """Find "builtin:NAME", a local folder or a hub id's cached files; never uses the network.

    Raises:
        UserError: if there is no such built-in model or folder, if the folder holds no weights
            that may be read, or if `weights` is none of the three.
    """
    kind, _, name = weights.partition(":")
    if kind == "builtin":
        folder = BUILTIN / name
        if not name or not (folder / "config.json").is_file():
            known = [path.parent.name for path in BUILTIN.glob("*/config.json")]
            raise UserError(
                f"weights {weights!r}: no such built-in teacher{did_you_mean(name, known)}"
            )
        return Checkpoint(str(folder), folder, fetched=True, builtin=True)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        pickled = _pickled(folder, layout, allow_pickle)
        if not weight_files(folder, layout, pickled):
            raise UserError(f"weights {weights!r}: {_lacking(folder, layout)}")
        return Checkpoint(str(folder), folder, fetched=True, layout=layout, pickled=pickled)
    if folder.is_file():
        raise UserError(
            f"weights {weights!r}: is a file; name the folder that holds {layout.config} and "
            f"{layout.weights}"
        )
    if weights.startswith(("/", ".", "~")):
        raise UserError(f"weights {weights!r}: no such folder")
    if not HUB_ID.fullmatch(weights):
        raise UserError(
            f"weights {weights!r}: no such folder, and no hub id (ORGANISATION/NAME) "
            "or built-in teacher (builtin:NAME) either"
        )
    return _cached(weights, layout, allow_pickle)


def fetch(
    checkpoint: Checkpoint, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Checkpoint:
    """The same checkpoint with its files on this machine, downloaded if they are not.

    Raises:
        UserError: if the hub cannot be reached, does not know the id or does not give it out, or
            if what it has may not be read.
    """
    if checkpoint.fetched:
        return checkpoint
    import huggingface_hub
    from huggingface_hub import errors

    name, layout = checkpoint.source, checkpoint.layout
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=layout.wanted(allow_pickle, trust_remote_code)
            )
        )
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
    pickled = _pickled(folder, layout, allow_pickle)
    weights = weight_files(folder, layout, pickled)
    if not weights or not all(file.exists() for file in weights):
        raise UserError(
            f"weights {name!r}: the hub gave no whole {layout.weights}; only safetensors are read "
            "(allow_pickle: true on the teacher reads a pickle's weights, and nothing else of it), "
            f"and without a network only what is in the local cache (`hf download {name}` fills it)"
        )
    return Checkpoint(name, folder, fetched=True, layout=layout, pickled=pickled)


def weight_files(folder: Path, layout: Layout = TRANSFORMERS, pickled: bool = False) -> list[Path]:
    """One file, else the shards that its index names; none where there is neither.

    Raises:
        UserError: if the index cannot be read.
    """
    name = layout.pickle if pickled else layout.weights
    if (folder / name).exists():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.exists():
        return []
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{folder}: {index.name} cannot be read; fetch it again") from None
    return [folder / name for name in sorted(names)]


def _cached(hub_id: str, layout: Layout, allow_pickle: bool) -> Checkpoint:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(hub_id, layout.config)
    except HFValidationError:
        raise UserError(f"weights {hub_id!r}: no such folder, and no legal hub id") from None
    if not isinstance(config, str):
        return Checkpoint(hub_id, None, fetched=False, layout=layout)
    folder = Path(config).parent
    pickled = _pickled(folder, layout, allow_pickle)
    weights = weight_files(folder, layout, pickled)
    # transformers' own loading of a model leaves the preprocessor behind.
    wanted = layout.preprocessors
    statistics = not wanted or any((folder / name).exists() for name in wanted)
    complete = bool(weights) and statistics and all(file.exists() for file in weights)
    return Checkpoint(hub_id, folder, fetched=complete, layout=layout, pickled=pickled)


def _pickled(folder: Path, layout: Layout, allow_pickle: bool) -> bool:
    """Whether the weights are to be read from a pickle: allowed, and nothing better is there."""
    return allow_pickle and not weight_files(folder, layout)


def _lacking(folder: Path, layout: Layout) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if layout.pickle in pickles:
        return (
            f"only pickled weights ({layout.pickle}), which can run code; save the model again as "
            "safetensors, or set allow_pickle: true on this teacher to read nothing but the "
            "weights of it"
        )
    if pickles:
        return (
            f"only pickled weights ({pickles[0]}), which can run code; only safetensors are read: "
            "save the model again with save_pretrained"
        )
    return f"the folder has no {layout.weights}"
