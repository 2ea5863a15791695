"""Students: trainable timm encoders that return Features, and the cap on their size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from students.errors import UserError, did_you_mean
from students.features import Features
from students.keys import key
from students.pixels import PixelNorm, Size, resize

MAX_PARAMETERS = 100_000_000
"""A student of this many parameters or more has to be declared a proxy."""


@dataclass(frozen=True)
class StudentInfo:
    """What an architecture comes to, without its weights; for `levels` see `levels_of`."""

    arch: str
    parameter_count: int
    stride: int
    summary_dim: int
    dense_dim: int
    levels: int | None


class Student(nn.Module):
    """A timm encoder that returns Features.

    Attributes:
        arch: timm's name of the architecture.
        arguments: what it was built with beyond that name, as `timm.create_model` takes it.
        size: its native image size in pixels.
        stride: pixels per dense token; a size has to be a multiple of it.
        summary_dim, dense_dim: widths of the two kinds of token.
        levels: how many blocks it has before the last; see `levels_of`.
        with_levels: whether its features hold the outputs of these blocks (default: they do not).
    """

    def __init__(self, model: Any, arch: str, arguments: dict[str, Any], size: int):
        super().__init__()
        self.model = model
        self.arch, self.arguments, self.size = arch, arguments, size
        config = model.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.normalise = PixelNorm(self.mean, self.std)
        self.stride, self.levels = stride_of(model), levels_of(model)
        self.with_levels = False
        with torch.no_grad():
            features = _eval_once(model, torch.zeros(1, 3, size, size, device=_device(model)))
        if features.dense is None or features.summary is None:
            raise UserError(f"{arch} yields no dense features: choose another architecture")
        self.summary_dim, self.dense_dim = features.summary.shape[-1], features.dense.shape[-1]

    @property
    def parameter_count(self) -> int:
        """Number of weights of the encoder."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def info(self) -> StudentInfo:
        """The same figures as `describe_student` gives without building weights."""
        return StudentInfo(
            self.arch,
            self.parameter_count,
            self.stride,
            self.summary_dim,
            self.dense_dim,
            self.levels,
        )

    def forward(self, pixels: Tensor, size: Size | None = None) -> Features:
        """Features of pixels (B, 3, H, W), RGB in [0, 1], resized to `size` (default: `size`).

        Raises:
            ValueError: if a side of `size` is no multiple of `stride`.
        """
        size = self.size if size is None else size
        sides = (size, size) if isinstance(size, int) else size
        if any(side % self.stride for side in sides):
            raise ValueError(f"size {size} is no multiple of {self.arch}'s stride {self.stride}")
        return encode(self.model, self.normalise(resize(pixels, size)), self.with_levels)


def encode(model: Any, pixels: Tensor, with_levels: bool = False) -> Features:
    """Features of normalised pixels (B, 3, H, W) through any timm encoder.

    The summary is what timm pools (the class token of a ViT built with global_pool="token", the
    attention pool or the average elsewhere). Dense tokens are `dense_map`'s. `with_levels`: of an
    encoder that has them (`levels_of`) also the class token and the patches of each block before
    the last; the final features are the same, bit for bit.
    """
    levels: tuple[Features, ...] = ()
    if not with_levels:
        out = model.forward_features(pixels)
    else:
        out, blocks = model.forward_intermediates(
            pixels, return_prefix_tokens=True, output_fmt="NLC"
        )
        grid = tuple(side // stride_of(model) for side in pixels.shape[-2:])
        levels = tuple(
            Features(prefix[:, 0], patches.unflatten(1, grid)) for patches, prefix in blocks[:-1]
        )
    summary = model.forward_head(out, pre_logits=True)
    return Features(summary, dense_map(model, out, pixels), levels)


def levels_of(model: Any) -> int | None:
    """How many blocks a ViT has before the last, whose class token and patches timm gives; None
    where the summary is no class token, or timm gives none of earlier blocks."""
    blocks, forward = (getattr(model, n, None) for n in ("blocks", "forward_intermediates"))
    token = getattr(model, "global_pool", "") == "token" and getattr(model, "num_prefix_tokens", 0)
    if not token or blocks is None or forward is None:
        return None
    split = "return_prefix_tokens" in inspect.signature(forward).parameters
    return len(blocks) - 1 if split else None


def dense_map(model: Any, out: Any, pixels: Tensor) -> Tensor | None:
    """Dense tokens (B, h, w, D) in `out`, which timm's `forward_features` made of pixels
    (B, 3, H, W); None where they are no map of the image.

    They are after the final norm: a ConvNeXt has it in its head, where timm applies it to the
    average alone, so it is applied to the map here.
    """
    if not isinstance(out, Tensor) or out.ndim not in (3, 4):
        return None
    if out.ndim == 3:
        tokens = out[:, getattr(model, "num_prefix_tokens", 0) :]
        h, w = (side // stride_of(model) for side in pixels.shape[-2:])
        if tokens.shape[1] != h * w:
            return None
        dense = tokens.unflatten(1, (h, w))
    else:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        dense = out if channels_last else out.permute(0, 2, 3, 1)
    norm: Any = getattr(getattr(model, "head", None), "norm", None)
    weight = getattr(norm, "weight", None)
    # A norm of another width follows a layer of the head.
    if weight is None or weight.shape != dense.shape[-1:]:
        return dense
    if "2d" in type(norm).__name__:
        return norm(dense.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return norm(dense)


def build_student(
    arch: str,
    *,
    size: int,
    overrides: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    proxy: bool = False,
    seed: int = 0,
    name: str = "student",
) -> Student:
    """A new student with weights drawn from (seed, name), or timm's own with `pretrained`.

    `overrides` are arguments of the architecture (embed_dim, depth, num_heads, patch_size, dims,
    depths, output_stride, ...).

    Raises:
        UserError: for an unknown architecture or argument, a size that is no multiple of the
            stride, an encoder without dense features, or MAX_PARAMETERS weights or more in a
            student that is no proxy.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("weights", seed, name))
        model, arguments = _create(arch, size, dict(overrides or {}), pretrained)
    if size % stride_of(model):
        raise UserError(f"size {size} is no multiple of {arch}'s stride {stride_of(model)}")
    student = Student(model, arch, arguments, size)
    if not proxy and student.parameter_count >= MAX_PARAMETERS:
        raise UserError(too_large(arch, student.parameter_count))
    return student


def describe_student(
    arch: str, *, size: int, overrides: Mapping[str, Any] | None = None
) -> StudentInfo:
    """What `build_student` would build, worked out without memory for its weights.

    Raises:
        UserError: for an unknown architecture or argument.
    """
    with torch.device("meta"):
        model, arguments = _create(arch, size, dict(overrides or {}), pretrained=False)
        side = -(-size // stride_of(model)) * stride_of(model)
        return Student(model, arch, arguments, side).info


def too_large(arch: str, count: int) -> str:
    """What a user is told of an encoder that is too large for a student."""
    return (
        f"{arch} has {count:,} parameters, and a student has fewer than {MAX_PARAMETERS:,}: "
        "choose a smaller one, or say proxy: true"
    )


def load_student(folder: str | Path) -> Student:
    """The encoder of an exported student's folder (config.json and model.safetensors).

    Raises:
        UserError: if the folder holds no exported student.
    """
    import json

    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        arguments = dict(config["model_args"])
        size = int(config["pretrained_cfg"]["input_size"][-1])
        weights = load_file(folder / "model.safetensors")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{folder} is not the folder of an exported student ({error}): "
            "it needs config.json and model.safetensors"
        ) from None
    model, _ = _construct(config["architecture"], arguments, pretrained=False)
    wrong = model.load_state_dict(weights, strict=False)
    if wrong.missing_keys or wrong.unexpected_keys:
        raise UserError(
            f"{folder}/model.safetensors does not fit {config['architecture']}: "
            f"missing {wrong.missing_keys[:3]}, unexpected {wrong.unexpected_keys[:3]}"
        )
    model.pretrained_cfg.update(
        mean=config["pretrained_cfg"]["mean"], std=config["pretrained_cfg"]["std"]
    )
    return Student(model, config["architecture"], arguments, size)


def _create(
    arch: str, size: int, overrides: dict[str, Any], pretrained: bool
) -> tuple[Any, dict[str, Any]]:
    """The timm model and its arguments; those that only some architectures take are tried."""
    import timm

    if arch.split(".")[0] not in timm.list_models():
        raise UserError(f"unknown architecture {arch!r}{did_you_mean(arch, timm.list_models())}")
    overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    refused: Exception | None = None
    for optional in (
        {"img_size": size, "dynamic_img_size": True, "global_pool": "token"},
        {"img_size": size, "dynamic_img_size": True},
        {"img_size": size},
        {},
    ):
        try:
            return _construct(arch, {**optional, **overrides}, pretrained)
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            refused = error
    raise UserError(f"{arch} refuses {overrides}: {refused}".replace("\n", " "))


def _construct(
    arch: str, arguments: dict[str, Any], pretrained: bool
) -> tuple[Any, dict[str, Any]]:
    import timm

    arguments = {k: v for k, v in arguments.items() if k != "num_classes"}
    model = timm.create_model(arch, pretrained=pretrained, num_classes=0, **arguments)
    if arguments.get("global_pool") == "token" and not getattr(model, "num_prefix_tokens", 0):
        raise ValueError("no class token to pool")
    return model, arguments


def stride_of(model: Any) -> int:
    """Pixels per dense token of a timm encoder."""
    side = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if getattr(model, "num_prefix_tokens", None) is not None and side is not None:
        return int(side[0] if isinstance(side, tuple | list) else side)
    return int(model.feature_info[-1]["reduction"])


def _eval_once(model: Any, pixels: Tensor) -> Features:
    training = model.training
    features = encode(model.eval(), pixels)
    model.train(training)
    return features


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
