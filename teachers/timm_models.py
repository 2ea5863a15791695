"""timm's models by name, folder or hub id: what is stated of them, their shapes, their weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

import torch

from students.encoder import dense_map
from students.errors import UserError, did_you_mean
from teachers import contents
from teachers.checkpoint import TIMM, Checkpoint, Layout, resolve, weight_files
from teachers.spec import TeacherSpec
from teachers.strict import accounted_for
from teachers.teacher import families

HUB_PREFIX = "hf-hub:"
TABLE = "timm's pretrained_cfg"
_LOADING = Lock()


def locate(spec: TeacherSpec) -> Checkpoint:
    """A folder, the cached files of a hub id, or of the hub id that timm has for a name.

    Raises:
        UserError: if `spec.weights` is none of them, or a name without weights.
    """
    if not _is_name(spec.weights):
        return resolve(spec.weights.removeprefix(HUB_PREFIX), TIMM, spec.allow_pickle)
    hub_id = _published(spec.weights).hf_hub_id
    # Of a name timm itself fetches the weights and nothing else.
    names = [TIMM.weights, TIMM.pickle] if spec.allow_pickle else [TIMM.weights]
    layouts = [Layout(name, TIMM.weights, TIMM.pickle) for name in names]
    found = [resolve(hub_id, layout, spec.allow_pickle) for layout in layouts]
    return next((one for one in found if one.fetched), found[0])


def create_name(spec: TeacherSpec, checkpoint: Checkpoint) -> str | None:
    """What timm.create_model is to be called with; None where nothing is known yet."""
    if _is_name(spec.weights):
        return spec.weights
    if checkpoint.folder is not None:
        return f"local-dir:{checkpoint.folder}"
    return _in_table(checkpoint.source)


def stated(spec: TeacherSpec, checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """What config.json or timm's table says of the weights, as a pretrained_cfg, and which of them.

    Raises:
        UserError: if config.json is not that of a timm model.
    """
    from timm.models import get_pretrained_cfg, is_model

    if _is_name(spec.weights) or checkpoint.folder is None:
        return get_pretrained_cfg(create_name(spec, checkpoint)).to_dict(), TABLE
    fields = contents.read_config(checkpoint)
    arch, cfg = fields.get("architecture"), fields.get("pretrained_cfg", fields)
    if not isinstance(arch, str):
        raise UserError(f"{spec.weights}: its config.json names no architecture; {_other(fields)}")
    if not is_model(arch):
        import timm

        hint = did_you_mean(arch, timm.list_models())
        raise UserError(f"{spec.weights}: timm has no architecture {arch!r}{hint}")
    if not isinstance(cfg, dict):
        raise UserError(f"{spec.weights}: its config.json says pretrained_cfg {cfg!r}")
    return cfg, TIMM.config


def skeleton(spec: TeacherSpec, checkpoint: Checkpoint) -> Any:
    """The model without its classifier and without memory for weights, on the meta device.

    Raises:
        UserError: if timm cannot build it.
    """
    name = create_name(spec, checkpoint)
    assert name is not None
    config = (checkpoint.folder or Path()) / TIMM.config
    changed = config.stat().st_mtime_ns if config.is_file() else 0
    try:
        return _skeleton(name, changed)
    except Exception as error:  # whatever an architecture makes of what it is given
        raise UserError(f"{spec.weights}: timm cannot build it: {one_line(error)}") from None


@lru_cache(maxsize=1024)
def refusal(model: Any, sides: tuple[int, int], dense: bool) -> str | None:
    """Why a skeleton does not take images of this height and width, by its own account, or None.

    `dense`: whether it is to give a map of them.
    """
    pixels = torch.empty(1, 3, *sides, device="meta")
    try:
        with torch.no_grad():
            tokens = dense_map(model, model.forward_features(pixels), pixels)
    except Exception as error:  # whatever a model's own code raises
        return one_line(error)
    return "no whole number of patches" if dense and tokens is None else None


def load_timm(spec: TeacherSpec, checkpoint: Checkpoint) -> Any:
    """The frozen model in eval mode on the CPU, without its classifier, with exactly the
    checkpoint's weights: timm's own loading, with every weight accounted for.

    Raises:
        UserError: if weights are missing, unexpected or of another shape, naming them.
    """
    name = create_name(spec, checkpoint)
    assert name is not None
    assert checkpoint.folder is not None
    weights = weight_files(checkpoint.folder, checkpoint.layout, checkpoint.pickled)
    if len(weights) > 1:
        raise UserError(f"{checkpoint.source}: its weights are in parts, which timm cannot read")
    overlay = {"file": str(weights[0]), "source": "", "custom_load": False}
    # The initial weights are drawn and thrown away: nobody else's random numbers shall change.
    with torch.random.fork_rng(devices=[]), _strict_loading(checkpoint):
        model = _create(name, pretrained=True, pretrained_cfg_overlay=overlay)
    model.reset_classifier(0)
    return model.requires_grad_(False).eval()


def architecture(model: Any) -> str:
    """timm's name of a model's architecture."""
    return str(model.pretrained_cfg["architecture"])


def one_line(error: Exception) -> str:
    """An error's message in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".") if len(text) <= 200 else f"{text[:200]}..."


@contextmanager
def _strict_loading(checkpoint: Checkpoint) -> Iterator[None]:
    """timm's loading of weights inside, with every weight accounted for.

    Each architecture hands its own conversion of weights to one function and to nobody else, and
    some ask it to pass over what does not fit.
    """
    builder = importlib.import_module("timm.models._builder")
    timms_own = builder.load_pretrained

    def load(model: Any, *arguments: Any, strict: bool = True, **keywords: Any) -> None:
        with accounted_for(model, checkpoint, lenient=not strict):
            timms_own(model, *arguments, strict=False, **keywords)

    with _LOADING, mock.patch.object(builder, "load_pretrained", load):
        yield


def _create(name: str, **options: Any) -> Any:
    """The model with its classifier, for images of any size where timm has that."""
    import timm

    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # the architecture has no such argument
        return timm.create_model(name, **options)


@lru_cache(maxsize=32)
def _skeleton(name: str, changed: int) -> Any:
    with torch.device("meta"):
        model = _create(name)
    model.reset_classifier(0)
    return model.requires_grad_(False).eval()


def _is_name(weights: str) -> bool:
    """Whether it is neither a path nor a hub id nor built in."""
    return not (
        set(weights) & set("/:") or weights.startswith((".", "~")) or Path(weights).is_dir()
    )


def _published(name: str) -> Any:
    """timm's pretrained_cfg of a name with or without a tag.

    Raises:
        UserError: if timm knows no such name, or no hub id of weights for it.
    """
    import timm
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, is_model

    arch, _, tag = name.partition(".")
    if not is_model(arch):
        hint = did_you_mean(arch, timm.list_models())
        raise UserError(f"weights {name!r}: no such folder, and no model of timm's{hint}")
    known = {full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(arch).items()}
    if tag and tag not in known:
        raise UserError(f"weights {name!r}: {arch} has no such tag{did_you_mean(tag, known)}")
    cfg = get_pretrained_cfg(name)
    if cfg is not None and cfg.hf_hub_id:
        return cfg
    if cfg is not None and cfg.url:
        raise UserError(
            f"weights {name!r}: timm has them at {cfg.url} and not on the hub; create the model "
            "with timm, save it with timm.models.save_for_hf(model, FOLDER, "
            "safe_serialization=True), and name the folder"
        )
    tags = [each for each, other in known.items() if other.hf_hub_id]
    remedy = f"name one of its tags: {', '.join(tags)}" if tags else "choose another model"
    raise UserError(
        f"weights {name!r}: timm has no weights for it, and a teacher needs some; {remedy}"
    )


def _in_table(hub_id: str) -> str | None:
    """The name that has this hub id in timm's table."""
    from timm.models import get_pretrained_cfg, is_model

    name = hub_id.rpartition("/")[2]
    if not is_model(name.partition(".")[0]):
        return None
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        return None
    return name if cfg is not None and cfg.hf_hub_id == hub_id else None


def _other(fields: dict[str, Any]) -> str:
    """Which family loads a folder whose config.json is not timm's."""
    found = fields.get("model_type")
    for name, family in families().items():
        if found is not None and found in getattr(family, "model_types", ()):
            return f"it says model_type {found!r}: use family {name!r}"
    return "timm.models.save_for_hf(model, FOLDER, safe_serialization=True) writes a timm folder"
