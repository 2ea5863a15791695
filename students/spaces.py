"""Spaces: how a student's features become a teacher's, one step at a time or by a chain.

A space belongs to one (student, teacher): an adapter per token kind, trained with the student;
the teacher's frozen normaliser; and one calibrated scalar per adapter, because a prediction that
was trained by cosine has a direction and no length. A chain `student -> proxy -> siglip` is the
student's space of the proxy followed by the proxy's own space of siglip.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from students.adapters import build_adapters
from students.errors import UserError
from students.features import TOKEN_KINDS, Features
from students.normalisers import Normaliser, build_normaliser

LADDER = "a ladder reads every block of the encoder and serves training only"
JOINT = "an attention adapter reads summary and dense tokens together, and one of them is missing"


class Space(nn.Module):
    """The space of one teacher, reached from one encoder's features.

    Args:
        widths: for each token kind, (the encoder's width, the teacher's width).
        adapter, hidden, depth, levels: see `students.adapters.build_adapters`.
        normaliser: kind of the teacher's normaliser.
        folded: whether it is what `folded` makes.
    """

    def __init__(
        self,
        widths: Mapping[str, tuple[int, int]],
        *,
        adapter: str = "mlp",
        hidden: int = 1536,
        depth: int = 1,
        levels: int = 0,
        normaliser: str = "standardise",
        folded: bool = False,
    ):
        super().__init__()
        self.config = {
            "widths": {kind: list(pair) for kind, pair in widths.items()},
            "adapter": adapter,
            "hidden": hidden,
            "depth": depth,
            "levels": levels,
            "normaliser": normaliser,
            **({"folded": True} if folded else {}),
        }
        self.adapters = build_adapters(
            adapter, widths, hidden=hidden, depth=depth, levels=levels, bias=folded
        )
        self.normalisers = nn.ModuleDict(
            {kind: build_normaliser(normaliser, o) for kind, (_, o) in widths.items()}
        )
        self.scales = nn.ParameterDict(
            {kind: nn.Parameter(torch.ones(()), requires_grad=False) for kind in widths}
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The token kinds that this space holds."""
        return self.adapters.kinds

    @property
    def joint(self) -> bool:
        """Whether tokens of either kind are made of the encoder's tokens of both."""
        return self.adapters.joint

    @property
    def needs_levels(self) -> bool:
        """Whether it reads the outputs of all blocks of the encoder (`Features.levels`)."""
        return self.adapters.needs_levels

    def predict(self, features: Features) -> Features:
        """The adapters' output, to be compared with normalised targets."""
        return self.adapters(features)

    def forward(self, features: Features) -> Features:
        """An encoder's features as the teacher's own: adapter, scale, inverse normaliser."""
        return self.predict(features).map(
            lambda kind, tokens: self.normaliser(kind).inverse(tokens.float() * self.scales[kind])
        )

    def normaliser(self, kind: str) -> Normaliser:
        """The teacher's normaliser of a kind of token."""
        normaliser = self.normalisers[kind]
        assert isinstance(normaliser, Normaliser)
        return normaliser

    @torch.no_grad()
    def folded(self) -> Space:
        """The same map with scale 1 and the normaliser `none`: scale and inverse are in the last
        layer of each adapter, which has a bias then. `l2`, which has no inverse, stays."""
        made = copy.deepcopy(self)
        for kind in self.kinds:
            affine = self.normaliser(kind).inverse_affine()
            _fold(made.adapters.last(kind), self.scales[kind], affine)
            made.scales[kind].fill_(1)
            if affine is not None:
                made.config["normaliser"] = "none"
                plain = build_normaliser("none", len(affine[1]))
                made.normalisers[kind] = plain.to(affine[1].device)
        made.config["folded"] = True
        return made


def _fold(layers: Sequence[nn.Linear], scale: Tensor, affine: tuple[Tensor, Tensor] | None) -> None:
    """Put s * y, and W and b of an inverse after it, into the layers A h + a whose outputs add up
    to y: s W A h + (s W a + b), worked out in float64."""
    times, plus = affine or (torch.ones_like(scale), torch.zeros_like(scale))
    times, plus = times.double() * scale, plus.double()
    turn = times if times.ndim == 2 else times.expand(layers[0].out_features).diag()
    for layer in layers:
        bias = plus if layer.bias is None else turn @ layer.bias.double() + plus
        layer.weight.copy_(turn @ layer.weight.double())
        bias = bias.expand(layer.out_features).to(layer.weight)
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        plus = torch.zeros_like(plus)  # it is added once


class Chain:
    """Spaces one after the other, from a student's features to a teacher's."""

    def __init__(self, spaces: Sequence[Space]):
        self.spaces = list(spaces)

    @property
    def joint(self) -> bool:
        """Whether tokens of either kind are made of the student's tokens of both."""
        return any(space.joint for space in self.spaces)

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
        yield from ((path[-1], path) for path, closed in self._ways() if closed is None)

    def left_out(self) -> dict[str, str]:
        """Teachers of which there are spaces and no chain, and in one line why."""
        return {path[-1]: closed for path, closed in self._ways() if closed is not None}

    def _ways(self) -> list[tuple[list[str], str | None]]:
        """For every teacher the names on the way to it, and why that cannot be gone, if it cannot.

        An open way before a closed one, then the shortest, so that a space learnt directly is
        preferred to a chain.
        """

        def walk(
            source: str, path: list[str], kinds: tuple[str, ...], closed: str | None
        ) -> Iterator[tuple[list[str], str | None]]:
            for (start, teacher), space in self.steps.items():
                if start == source and teacher not in path:
                    reason = closed or _closed(space, kinds)
                    yield [*path, teacher], reason
                    given = tuple(k for k in space.kinds if space.joint or k in kinds)
                    yield from walk(teacher, [*path, teacher], given, reason)

        found = sorted(
            walk("student", [], TOKEN_KINDS, None),
            key=lambda way: (way[1] is not None, len(way[0])),
        )
        best: dict[str, tuple[list[str], str | None]] = {}
        for path, closed in found:
            best.setdefault(path[-1], (path, closed))
        return list(best.values())

    def chains(self) -> dict[str, Chain]:
        """A chain for every teacher that can be reached."""
        found = {}
        for teacher, path in self.routes():
            found[teacher] = Chain([self.steps[pair] for pair in pairwise(["student", *path])])
        return found

    def beyond(self, teacher: str, further: Spaces) -> Spaces:
        """The same and, after `teacher`, what that teacher reaches as a student of its own."""
        steps = dict(self.steps)
        for (source, to), space in further.steps.items():
            steps[(teacher if source == "student" else source, to)] = space
        return Spaces(steps)

    def folded(self) -> Spaces:
        """These spaces folded, without those that no chain goes through."""
        used = {pair for _, path in self.routes() for pair in pairwise(["student", *path])}
        return Spaces({pair: space.folded() for pair, space in self.steps.items() if pair in used})

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write adapters.safetensors and adapters.json (`about` is put beside the spaces)."""
        for name, content in self.files(about).items():
            (folder / name).write_bytes(content)

    def files(self, about: Mapping[str, Any]) -> dict[str, bytes]:
        """What `save` writes, by name."""
        tensors, described = {}, []
        for (source, teacher), space in self.steps.items():
            for name, tensor in space.state_dict().items():
                tensors[f"{source}>{teacher}|{name}"] = tensor.detach().cpu().contiguous().clone()
            described.append({"from": source, "to": teacher, **space.config})
        content = {**about, "spaces": described, "chains": dict(self.routes())}
        return {
            "adapters.safetensors": save(tensors),
            "adapters.json": (json.dumps(content, indent=2) + "\n").encode(),
        }

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
                # Older files do not have these.
                depth=entry.get("depth", 1),
                levels=entry.get("levels", 0),
                normaliser=entry["normaliser"],
                folded=entry.get("folded", False),
            )
            prefix = f"{source}>{teacher}|"
            space.load_state_dict(
                {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            )
            steps[(source, teacher)] = space.eval().requires_grad_(False)
        return cls(steps)


def _closed(space: Space, kinds: tuple[str, ...]) -> str | None:
    """Why a chain cannot go on through a space with tokens of these kinds; None where it can."""
    if space.needs_levels:
        return LADDER
    return JOINT if space.joint and len(kinds) < len(TOKEN_KINDS) else None
