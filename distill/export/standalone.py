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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

KINDS = ("summary", "dense")
_LINEAR, _MLP = ("linear",), ("linear", "norm", "gelu", "linear")
_CONV = ("norm", "conv", "norm", "gelu", "conv", "norm", "gelu", "linear")
LAYERS: dict[str, dict[str, Sequence[str]]] = {
    "linear": {"summary": _LINEAR, "dense": _LINEAR},
    "mlp": {"summary": _MLP, "dense": _MLP},
    "conv": {"summary": _MLP, "dense": _CONV},
}
"""Of each adapter and kind of token. "attention" has one of `linear` behind its blocks."""


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
            known = space["adapter"] == "attention" or space["adapter"] in LAYERS
            if not known or not space.get("folded"):
                raise ValueError(
                    f"{folder}: the {space['adapter']} adapter from {space['from']} to "
                    f"{space['to']} was not written by `distill export`, or by a later version of "
                    "it than this file"
                )
        # A buffer's name may hold no dot.
        self._places = {}
        for number, (name, tensor) in enumerate(load_file(folder / "adapters.safetensors").items()):
            self._places[name] = f"tensor_{number}"
            self.register_buffer(f"tensor_{number}", tensor)

    def forward(self, teacher: str, features: Features) -> Features:
        """Features (an encoder's own, see `encode`) as the teacher's, in the teacher's scale.

        Each step is an adapter, whose last layer holds its calibrated scalar and the inverse of
        the teacher's normaliser. A kind of token that a step does not have comes back as None.

        Raises:
            KeyError: if the teacher is not reached; the message lists those that are.
            ValueError: if a kind of token is missing that the adapter needs.
        """
        if teacher not in self.chains:
            raise KeyError(f"{teacher!r}: this encoder reaches {', '.join(self.chains)}")
        source = "student"
        for name in self.chains[teacher]:
            features = self._step(source, name, features)
            source = name
        return features

    def is_direction(self, teacher: str) -> bool:
        """Whether features in this teacher's space have a direction and no length, because a
        normaliser on the way has no inverse. Cosines hold; a decoder needs more."""
        steps = zip(["student", *self.chains[teacher]], self.chains[teacher], strict=False)
        return any(self._spaces[step]["normaliser"] == "l2" for step in steps)

    def _step(self, source: str, teacher: str, features: Features) -> Features:
        space, name = self._spaces[source, teacher], f"{source}>{teacher}|adapters"
        layers = LAYERS["linear"]
        if space["adapter"] == "attention":
            features = self._joined(f"{name}.blocks", space["depth"], features)
        else:
            layers = LAYERS[space["adapter"]]
        found = (
            None
            if tokens is None or kind not in space["widths"]
            else self._layers(f"{name}.{kind}", layers[kind], tokens).float()
            for kind, tokens in zip(KINDS, (features.summary, features.dense), strict=True)
        )
        return Features(*found)

    def _layers(self, name: str, layers: Sequence[str], tokens: Tensor) -> Tensor:
        """Tokens (..., D) through layers, whose tensors are called by their numbers."""
        for number, layer in enumerate(layers):
            if layer == "gelu":
                tokens = F.gelu(tokens)
            else:
                tokens = self._layer(layer, f"{name}.{number}", tokens)
        return tokens

    def _layer(self, layer: str, name: str, tokens: Tensor) -> Tensor:
        weight, bias = (self._tensor(f"{name}.{part}") for part in ("weight", "bias"))
        if layer == "norm":
            return F.layer_norm(tokens, weight.shape, weight, bias)
        if layer == "conv":
            maps = F.conv2d(tokens.permute(0, 3, 1, 2), weight, bias, padding=1)
            return maps.permute(0, 2, 3, 1)
        return F.linear(tokens, weight, bias)

    def _joined(self, name: str, depth: int, features: Features) -> Features:
        """Summary and dense tokens together through pre-norm transformer blocks."""
        if features.summary is None or features.dense is None:
            raise ValueError("an attention adapter needs summary and dense features")
        grid = features.dense.shape[1:3]
        tokens = torch.cat([features.summary[:, None], features.dense.flatten(1, 2)], 1)
        width = tokens.shape[-1]
        each = next(size for size in range(min(64, width), 0, -1) if width % size == 0)
        for block in (f"{name}.{number}" for number in range(depth)):
            seen = self._layer("norm", f"{block}.norm1", tokens)
            parts = self._layer("linear", f"{block}.attn.qkv", seen).unflatten(-1, (3, -1, each))
            query, keys, values = parts.permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(query, keys, values)
            joined = heads.transpose(1, 2).flatten(2)
            tokens = tokens + self._layer("linear", f"{block}.attn.proj", joined)
            seen = self._layer("norm", f"{block}.norm2", tokens)
            inner = F.gelu(self._layer("linear", f"{block}.mlp.fc1", seen))
            tokens = tokens + self._layer("linear", f"{block}.mlp.fc2", inner)
        return Features(tokens[:, 0], tokens[:, 1:].unflatten(1, grid))

    def _tensor(self, name: str) -> Any:
        place = self._places.get(name)
        return None if place is None else getattr(self, place)
