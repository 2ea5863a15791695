"""Features of a distilled encoder, and the way from them into its teachers' feature spaces.

This file needs torch and safetensors alone. It belongs to the folder that it lies in: `encode`
gives the features of the encoder that timm or transformers load from there, `Adapters` reads
adapters.json and adapters.safetensors beside it.

    features = encode(model, pixels)        # of the encoder's own
    there = Adapters(folder)("siglip", features)    # as the teacher "siglip" would give them

License: Apache-2.0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

KINDS = ("summary", "dense")


class Features(NamedTuple):
    """`summary` (B, D_s), one vector an image; `dense` (B, h, w, D_d), one a patch. Either may be
    None."""

    summary: Tensor | None = None
    dense: Tensor | None = None


def encode(model: Any, pixels: Tensor) -> Features:
    """Features of pixels (B, 3, H, W), normalised as the folder's image processor does it.

    `model` is what timm.create_model or transformers.AutoModel loaded. Dense features are after
    the final norm: a ConvNeXt has it in its head, where timm applies it to the average alone.

    Raises:
        ValueError: if the encoder's tokens are no map of the image.
    """
    model = getattr(model, "timm_model", model)
    tokens = model.forward_features(pixels)
    summary = model.forward_head(tokens, pre_logits=True)
    if tokens.ndim == 3:
        side = model.patch_embed.patch_size
        patch = (side, side) if isinstance(side, int) else side
        grid = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
        patches = tokens[:, model.num_prefix_tokens :]
        if patches.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{patches.shape[1]} tokens are no map of {grid[0]} x {grid[1]}")
        return Features(summary, patches.unflatten(1, grid))
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    dense = tokens if channels_last else tokens.permute(0, 2, 3, 1)
    norm: Any = getattr(getattr(model, "head", None), "norm", None)
    # A norm of another width follows a layer of the head.
    if getattr(norm, "weight", None) is not None and norm.weight.shape == dense.shape[-1:]:
        if "2d" in type(norm).__name__:
            dense = norm(dense.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            dense = norm(dense)
    return Features(summary, dense)


class Adapters(torch.nn.Module):
    """All teachers' spaces that an encoder reaches; `.to(device)` moves it.

    `chains` has, for each teacher, the names on the way to it, itself last: an encoder that
    learnt from a proxy goes through the proxy's space, ["stage/proxy", "siglip"].

    Args:
        folder: with adapters.json and adapters.safetensors (default: where this file lies).

    Raises:
        OSError: if they are not there.
        ValueError: if they are of a kind that this file does not know.
    """

    def __init__(self, folder: str | Path | None = None):
        super().__init__()
        folder = Path(__file__).parent if folder is None else Path(folder)
        about = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))
        self.chains: dict[str, list[str]] = about["chains"]
        self._spaces = {(space["from"], space["to"]): space for space in about["spaces"]}
        for space in self._spaces.values():
            known = space["adapter"] in ("mlp", "linear")
            if not known or space["normaliser"] not in ("standardise", "none", "l2"):
                raise ValueError(
                    f"{folder}: adapter {space['adapter']!r} with normaliser "
                    f"{space['normaliser']!r} is of a later version of this file"
                )
        # A buffer's name may hold no dot.
        self._places = {}
        for number, (name, tensor) in enumerate(load_file(folder / "adapters.safetensors").items()):
            self._places[name] = f"tensor_{number}"
            self.register_buffer(f"tensor_{number}", tensor)

    def forward(self, teacher: str, features: Features) -> Features:
        """Features (an encoder's own, see `encode`) as the teacher's, in the teacher's scale.

        Each step is the adapter, its calibrated scalar and the inverse of the teacher's
        normaliser. A kind of token that a step does not have comes back as None.

        Raises:
            KeyError: if the teacher is not reached; the message lists those that are.
        """
        if teacher not in self.chains:
            raise KeyError(f"{teacher!r}: this encoder reaches {', '.join(self.chains)}")
        source = "student"
        for name in self.chains[teacher]:
            tokens = zip(KINDS, (features.summary, features.dense), strict=True)
            features = Features(*(self._step(source, name, kind, one) for kind, one in tokens))
            source = name
        return features

    def is_direction(self, teacher: str) -> bool:
        """Whether features in this teacher's space have a direction and no length, because a
        normaliser on the way has no inverse. Cosines hold; a decoder needs more."""
        steps = zip(["student", *self.chains[teacher]], self.chains[teacher], strict=False)
        return any(self._spaces[step]["normaliser"] == "l2" for step in steps)

    def _step(self, source: str, teacher: str, kind: str, tokens: Tensor | None) -> Tensor | None:
        space = self._spaces[source, teacher]
        if tokens is None or kind not in space["widths"]:
            return None

        def stored(name: str) -> Any:
            place = self._places.get(f"{source}>{teacher}|{name}")
            return None if place is None else getattr(self, place)

        layer = f"adapters.{kind}"
        out = F.linear(tokens, stored(f"{layer}.0.weight"), stored(f"{layer}.0.bias"))
        if space["adapter"] == "mlp":
            weight, bias = stored(f"{layer}.1.weight"), stored(f"{layer}.1.bias")
            out = F.gelu(F.layer_norm(out, weight.shape, weight, bias))
            out = F.linear(out, stored(f"{layer}.3.weight"))
        out = out.float() * stored(f"scales.{kind}")
        return out * stored(f"normalisers.{kind}.std") + stored(f"normalisers.{kind}.mean")
