"""Family `radio`: RADIO and C-RADIO (Ranzinger et al., 2024; Heinrich et al., 2025).

transformers has a class for the newer checkpoints. The older ones bring their own code, which runs
only where the recipe trusts it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from students.errors import UserError
from students.features import Features
from students.pixels import Size
from teachers.checkpoint import Checkpoint, weight_files
from teachers.contents import crop_side, read_config, weight_shapes
from teachers.loading import load_model, quiet, refuse_misfits
from teachers.spec import FamilyCard, TeacherInfo, TeacherSpec
from teachers.teacher import register_family
from teachers.transformers_teacher import Geometry, TransformersTeacher

# Buffers that the file holds beside the weights.
BUFFERS = ("norm_mean", "norm_std", "summary_idxs")


@register_family("radio")
class RadioTeacher(TransformersTeacher):
    """summary: the class tokens of its summary teachers, side by side. dense: the patch tokens of
    the last block, which has no norm behind it. It normalises its pixels itself."""

    model_types = ("radio",)
    runs_code = True
    card = FamilyCard(
        models="transformers: RadioModel; older checkpoints by their own code",
        summary="the model's summary",
        dense="the model's features, stride 16",
        sizes="multiples of the patch",
        beside="earlier layers (RadioModel)",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        load = OwnCode if self.needs_code(read_config(checkpoint)) else _load
        self.model = load(checkpoint, dtype)

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D_s), dense (B, H / patch, W / patch, D_d) of pixels in [0, 1]."""
        out = self.model(pixels, **self.record)
        summary, patches = _both(out)
        if self.spec.layer is not None:
            prefix = out.last_hidden_state.shape[1] - patches.shape[1]
            patches = out.hidden_states[self.spec.layer][:, prefix:]
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return Features(summary, patches.unflatten(1, grid))

    @classmethod
    def statistics(
        cls,
        spec: TeacherSpec,
        checkpoint: Checkpoint,
        preprocessor: dict[str, Any],
        source: str | None,
    ) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        """None that would change a pixel: the model takes them in [0, 1].

        Raises:
            UserError: if the spec has its own, which would be applied beside the model's.
        """
        if spec.mean is not None:
            raise UserError(
                f"{spec.weights}: mean and std cannot be given, a model of family {spec.family!r} "
                "normalises its pixels itself; leave them out"
            )
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "the model normalises its pixels itself"

    @classmethod
    def configuration(cls, checkpoint: Checkpoint, fields: dict[str, Any]) -> Any:
        """The library's configuration object, or the one of the checkpoint's own code."""
        if not cls.needs_code(fields):
            return super().configuration(checkpoint, fields)
        from transformers import AutoConfig

        read = partial(AutoConfig.from_pretrained, checkpoint.folder, local_files_only=True)
        return _run_code(checkpoint.source, partial(read, trust_remote_code=True))

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """From the configuration; of a checkpoint with its own code, from a run without memory."""
        from transformers import RadioConfig

        if not isinstance(config, RadioConfig):
            return _traced(config, preprocessor)
        size, width = crop_side(preprocessor) or config.image_size, config.hidden_size
        summary_dim = len(config.summary_idxs) * width
        return Geometry(size, config.patch_size, summary_dim, width, config.num_hidden_layers)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """All of it."""
        from transformers import RadioModel

        return RadioModel, config

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """All that is learnt."""
        return not name.endswith(BUFFERS)

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """The library takes multiples of the patch only."""
        sides = (size, size) if isinstance(size, int) else size
        if info.stride is None or all(side > 0 and side % info.stride == 0 for side in sides):
            return None
        near = [max(1, round(side / info.stride)) * info.stride for side in sides]
        return (
            f"{info.spec.weights}: size {size} is no multiple of RADIO's patch of {info.stride} "
            f"pixels; the nearest is {near[0] if isinstance(size, int) else tuple(near)}"
        )


class OwnCode(nn.Module):
    """A model that the checkpoint's own code makes, with weights in float32 whatever the teacher's
    dtype: that code casts inside, and what it documents is mixed precision."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__()
        config = RadioTeacher.configuration(checkpoint, read_config(checkpoint))
        self.model = _run_code(checkpoint.source, partial(_built, config))
        self.dtype = dtype
        _run_code(checkpoint.source, partial(self._read, checkpoint))
        self.requires_grad_(False).eval()

    def _read(self, checkpoint: Checkpoint) -> None:
        # The library's from_pretrained leaves what the code computes by itself, and no file holds,
        # without a value.
        weights, own = _weights(checkpoint), self.model.state_dict()
        shapes = [
            f"{name} (is {list(weights[name].shape)}, not {list(own[name].shape)})"
            for name in own.keys() & weights.keys()
            if weights[name].shape != own[name].shape
        ]
        missing, unexpected = [*(own.keys() - weights.keys())], [*(weights.keys() - own.keys())]
        refuse_misfits(checkpoint, type(self.model).__name__, missing, unexpected, shapes)
        self.model.load_state_dict(weights)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """summary (B, D_s) and features (B, T, D_d), in the teacher's dtype."""
        mixed = self.dtype != torch.float32
        with torch.autocast(pixels.device.type, self.dtype, enabled=mixed):
            summary, features = _both(self.model(pixels.float()))
        return summary.to(self.dtype), features.to(self.dtype)


def _built(config: Any) -> Any:
    """The model of the checkpoint's own code, with its initial weights."""
    from transformers import AutoModel

    return AutoModel.from_config(config, trust_remote_code=True).float().eval()


def _weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of its weight files."""
    weights: dict[str, Tensor] = {}
    assert checkpoint.folder is not None
    for path in weight_files(checkpoint.folder, checkpoint.layout, checkpoint.pickled):
        if checkpoint.pickled:
            weights |= torch.load(path, map_location="cpu", weights_only=True)
        else:
            weights |= load_file(path)
    return weights


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The library's frozen model.

    Raises:
        UserError: as `load_model`, also for layer scales of which only some are there.
    """
    from transformers import RadioModel

    model = load_model(RadioModel, checkpoint, dtype)
    # The library takes a missing layer scale for 1, as in C-RADIO, which has none at all.
    wanted = [name for name, _ in model.named_parameters() if name.endswith(".lambda1")]
    found = [name for name in weight_shapes(checkpoint) if name.endswith(".lambda1")]
    if found and len(found) < len(wanted):
        raise UserError(
            f"{checkpoint.source}: has {len(found)} of {len(wanted)} layer scales (.lambda1); "
            "fetch the whole model again"
        )
    return model


def _run_code(source: str, run: Callable[[], Any]) -> Any:
    """What `run` returns; the library says nothing meanwhile.

    Raises:
        UserError: if the checkpoint's own code, whatever it does, fails.
    """
    try:
        with quiet():
            return run()
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source}: the code that it brings fails ({type(error).__name__}: {reason})"
        ) from error


def _both(out: Any) -> tuple[Tensor, Tensor]:
    """summary (B, D_s) and features (B, T, D_d) of a model's output: by name, or a pair."""
    return (out.summary, out.features) if hasattr(out, "summary") else (out[0], out[1])


def _traced(config: Any, preprocessor: dict[str, Any]) -> Geometry:
    """What the checkpoint's own code makes of one image, run on tensors without content."""
    source = config.name_or_path
    native = getattr(config, "preferred_resolution", None) or getattr(config, "image_size", None)
    size = crop_side(preprocessor) or (native[0] if isinstance(native, list | tuple) else native)
    if size is None:
        raise UserError(
            f"{source}: neither crop_size of preprocessor_config.json nor preferred_resolution or "
            "image_size of config.json says at which size the model is used"
        )

    def run() -> tuple[Tensor, Tensor]:
        with torch.device("meta"), torch.no_grad():
            return _both(_built(config)(torch.empty(1, 3, size, size)))

    summary, features = _run_code(source, run)
    side = isqrt(features.shape[1]) if features.ndim == 3 else 0
    if not side or side * side != features.shape[1]:
        raise UserError(
            f"{source}: its features are {tuple(features.shape)} for an image of {size} x {size} "
            "pixels: expected (B, h * w, D)"
        )
    return Geometry(size, size // side, summary.shape[1], features.shape[2])
