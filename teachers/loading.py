"""Strict loading: transformers' own classes, with every weight accounted for.

transformers gives a weight that is missing or of another shape fresh random values and a warning.
For a teacher that is a silent failure, so here it is an error.
"""

from __future__ import annotations

import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from students.errors import UserError
from teachers.checkpoint import Checkpoint
from teachers.contents import weight_shapes
from teachers.spec import DTYPES

# What a part's weights are called by in the file of a whole model.
PARTS = ("vision_model.", "text_model.", "backbone.")


@contextmanager
def torch_quiet() -> Iterator[None]:
    """Without what torch has to say of torchao, which transformers imports where it is there."""
    log = python_logging.getLogger("torch.utils._pytree")
    level = log.level
    log.setLevel(python_logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and warnings, as before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def build_config(checkpoint: Checkpoint, fields: dict[str, Any]) -> Any:
    """transformers' configuration object from config.json's fields, its defaults filled in.

    Raises:
        UserError: if a field's value is not one that the class takes.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = dict(fields)
    try:
        with quiet():
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{checkpoint.source}: config.json is not valid: {reason}") from None


def load_model(
    model_class: Any,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    others: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A frozen `model_class` in eval mode on the CPU, with exactly the checkpoint's weights.

    `others` are prefixes of weights that belong to parts of the checkpoint that are not this
    class's; they are neither read nor missed. `options` are the library's own, of from_pretrained.

    Raises:
        UserError: if weights are missing, unexpected or of another shape, naming them.
    """
    names = weight_shapes(checkpoint)  # before loading: a clear error for a damaged file
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                use_safetensors=not checkpoint.pickled,
                weights_only=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{checkpoint.source}: its weights do not fit {model_class.__name__}: {reason}"
        ) from None
    unexpected = {_in_file(key, names) for key in report["unexpected_keys"]}
    # transformers takes a name with and without a part's prefix, and either if both are there.
    prefixes = (f"{model.base_model_prefix}.", *PARTS)
    unexpected |= {name for name in names if any(prefix + name in names for prefix in prefixes)}
    shapes = [
        f"{key} (is {list(found)}, not {list(wanted)})"
        for key, found, wanted in report["mismatched_keys"]
    ]
    strangers = [key for key in unexpected if not key.startswith(others)]
    refuse_misfits(
        checkpoint, model_class.__name__, list(report["missing_keys"]), strangers, shapes
    )
    return model.requires_grad_(False).eval()


def refuse_misfits(
    checkpoint: Checkpoint,
    model: str,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
) -> None:
    """Nothing, if none of the checkpoint's weights is missing, unexpected or of another shape for
    the class `model`.

    Raises:
        UserError: naming them.
    """
    problems = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("of another shape", shapes),
    ]
    if any(problems):
        raise UserError(
            f"{checkpoint.source}: not the weights of a {model} with this configuration: "
            f"{'; '.join(filter(None, problems))}"
        )


def count_parameters(model_class: Any, config: Any) -> int:
    """Parameters of `model_class(config)`, built without memory for them."""
    with torch.device("meta"), quiet():
        model: nn.Module = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a teacher's weights on `device`; "auto" is bfloat16 on a CUDA device that has
    it, float32 elsewhere."""
    if name != "auto":
        assert name in DTYPES
        return getattr(torch, name)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _in_file(key: str, names: dict[str, tuple[int, ...]]) -> str:
    """A weight's name as the file spells it: transformers strips the model's prefix."""
    return next((name for name in names if name == key or name.endswith(f".{key}")), key)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    names = sorted(names)
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} {what}: {shown}"
