"""Spaces: how a student's features become a teacher's, one step at a time or by a chain.

A space belongs to one (student, teacher): an adapter per token kind, trained with the student;
the teacher's frozen normaliser; and one calibrated scalar per adapter, because a prediction that
was trained by cosine has a direction and no length. A chain `student -> proxy -> siglip` is the
student's space of the proxy followed by the proxy's own space of siglip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from students.errors import UserError
from students.features import TOKEN_KINDS, Features
from students.normalisers import Normaliser


def build_adapter(kind: str, width: int, hidden: int, out: int) -> nn.Sequential:
    """A head from a student's width to a teacher's.

    `mlp` is EUPE's: Linear without bias, LayerNorm, GELU, Linear without bias. `linear` is one
    Linear with bias.
    """
    if kind == "linear":
        return nn.Sequential(nn.Linear(width, out))
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, out, bias=False),
        )
    raise ValueError(f"adapter kind {kind!r}: expected mlp or linear")


def adapter_parameters(kind: str, width: int, hidden: int, out: int) -> int:
    """Number of weights of `build_adapter`'s head."""
    return width * out + out if kind == "linear" else width * hidden + 2 * hidden + hidden * out


class Space(nn.Module):
    """The space of one teacher, reached from one encoder's features.

    Args:
        widths: for each token kind, (the encoder's width, the teacher's width).
        adapter, hidden: see `build_adapter`.
        normaliser: kind of the teacher's normaliser.
    """

    def __init__(
        self,
        widths: Mapping[str, tuple[int, int]],
        *,
        adapter: str = "mlp",
        hidden: int = 1536,
        normaliser: str = "standardise",
    ):
        super().__init__()
        self.config = {
            "widths": {kind: list(pair) for kind, pair in widths.items()},
            "adapter": adapter,
            "hidden": hidden,
            "normaliser": normaliser,
        }
        self.adapters = nn.ModuleDict(
            {kind: build_adapter(adapter, i, hidden, o) for kind, (i, o) in widths.items()}
        )
        self.normalisers = nn.ModuleDict(
            {kind: Normaliser(normaliser, o) for kind, (_, o) in widths.items()}
        )
        self.scales = nn.ParameterDict(
            {kind: nn.Parameter(torch.ones(()), requires_grad=False) for kind in widths}
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The token kinds that this space holds."""
        return tuple(kind for kind in TOKEN_KINDS if kind in self.adapters)

    def predict(self, features: Features) -> Features:
        """The adapters' output, to be compared with normalised targets."""
        return features.only(self.kinds).map(lambda kind, tokens: self.adapters[kind](tokens))

    def forward(self, features: Features) -> Features:
        """An encoder's features as the teacher's own: adapter, scale, inverse normaliser."""
        return self.predict(features).map(
            lambda kind, tokens: self._inverse(kind, tokens.float() * self.scales[kind])
        )

    def _inverse(self, kind: str, tokens: Tensor) -> Tensor:
        normaliser = self.normalisers[kind]
        assert isinstance(normaliser, Normaliser)
        return normaliser.inverse(tokens)


class Chain:
    """Spaces one after the other, from a student's features to a teacher's."""

    def __init__(self, spaces: Sequence[Space]):
        self.spaces = list(spaces)

    def __call__(self, features: Features) -> Features:
        """Features of the student to features of the last teacher."""
        for space in self.spaces:
            features = space(features)
        return features


class Spaces:
    """All that a student can reach: its own spaces, and those of its teachers that were students.

    `steps[(source, teacher)]` is the Space from the features of `source` to those of `teacher`;
    the student itself is called "student".
    """

    def __init__(self, steps: Mapping[tuple[str, str], Space]):
        self.steps = dict(steps)

    def routes(self) -> Iterator[tuple[str, list[str]]]:
        """(teacher, the names on the way from the student to it, itself last)."""

        def walk(source: str, path: list[str]) -> Iterator[tuple[str, list[str]]]:
            for start, teacher in self.steps:
                if start == source and teacher not in path:
                    yield teacher, [*path, teacher]
                    yield from walk(teacher, [*path, teacher])

        seen = set()
        # The shortest way first, so that a space learnt directly is preferred to a chain.
        for teacher, path in sorted(walk("student", []), key=lambda route: len(route[1])):
            if teacher not in seen:
                seen.add(teacher)
                yield teacher, path

    def chains(self) -> dict[str, Chain]:
        """A chain for every teacher that can be reached."""
        found = {}
        for teacher, path in self.routes():
            names = ["student", *path]
            found[teacher] = Chain([self.steps[pair] for pair in zip(names, path, strict=False)])
        return found

    def beyond(self, teacher: str, further: Spaces) -> Spaces:
        """The same and, after `teacher`, what that teacher reaches as a student of its own."""
        steps = dict(self.steps)
        for (source, to), space in further.steps.items():
            steps[(teacher if source == "student" else source, to)] = space
        return Spaces(steps)

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write adapters.safetensors and adapters.json (`about` is put beside the spaces)."""
        tensors, described = {}, []
        for (source, teacher), space in self.steps.items():
            for name, tensor in space.state_dict().items():
                tensors[f"{source}>{teacher}|{name}"] = tensor.detach().cpu().contiguous().clone()
            described.append({"from": source, "to": teacher, **space.config})
        save_file(tensors, folder / "adapters.safetensors")
        content = {**about, "spaces": described, "chains": dict(self.routes())}
        (folder / "adapters.json").write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Spaces:
        """The spaces of an exported student's folder.

        Raises:
            UserError: if the folder holds none.
        """
        folder = Path(folder)
        try:
            described = json.loads((folder / "adapters.json").read_text())["spaces"]
            tensors = load_file(folder / "adapters.safetensors")
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{folder} holds no adapters of a student ({error})") from None
        steps = {}
        for entry in described:
            source, teacher = entry["from"], entry["to"]
            space = Space(
                {kind: (i, o) for kind, (i, o) in entry["widths"].items()},
                adapter=entry["adapter"],
                hidden=entry["hidden"],
                normaliser=entry["normaliser"],
            )
            prefix = f"{source}>{teacher}|"
            space.load_state_dict(
                {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            )
            steps[(source, teacher)] = space.eval().requires_grad_(False)
        return cls(steps)
