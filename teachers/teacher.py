"""Teacher: a frozen encoder of a family, from its spec; and the registry of families."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from students.errors import UserError, did_you_mean
from students.features import TOKEN_KINDS, Features, concatenated
from students.pixels import PixelNorm, Size, resize
from teachers import checkpoint as files
from teachers.checkpoint import Checkpoint
from teachers.loading import choose_dtype, torch_quiet
from teachers.presets import with_known_facts
from teachers.spec import DTYPES, FamilyCard, TeacherInfo, TeacherSpec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from teachers.sam import MaskDecoder, Segmenter
    from teachers.text import TextTower

ENTRY_POINTS = "distill.teachers"
"""The group of Python entry points under which other packages offer families."""

_FAMILIES: dict[str, type[Teacher]] = {}


class Teacher(nn.Module):
    """A frozen encoder with its own image size, pixel statistics and dtype.

    A family is a subclass with a registered name and a `card`. Always in eval mode: `train()` has
    no effect. No parameter requires a gradient and nothing in it is ever trained, so it belongs in
    no checkpoint; it is loaded again from its spec.

    Attributes: `spec`, `info`; `size`, the native image side, and `stride`, pixels per dense token;
    `summary_dim` (None where the family has no summary) and `dense_dim`, token widths; `dtype`.
    """

    card: ClassVar[FamilyCard]

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__()
        if not (info.size and info.stride and info.mean and info.std):
            raise ValueError(f"{info.source}: its files are not all on this machine")
        self.spec, self.info = info.spec, info
        self.size, self.stride = info.size, info.stride
        self.summary_dim, self.dense_dim = info.summary_dim, info.dense_dim
        self.dtype = dtype
        self.checkpoint = checkpoint
        self.norm = PixelNorm(info.mean, info.std)
        super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, size: Size | None = None) -> Features:
        """Features of pixels (B, 3, H, W), RGB float in [0, 1], shown at `size`.

        `size` is a side or (height, width) in pixels, None for the native size. The features are
        in the teacher's own dtype, whatever autocast is around it, and on the pixels' device,
        whatever the teacher's is; only `spec.tokens` are given.

        Raises:
            UserError: if the teacher does not take this size.
            TypeError: if the pixels are not floating point.
        """
        parts = pixels.split(self.spec.micro_batch or len(pixels))
        with torch.autocast(self.device.type, enabled=False):
            shown = (self.shown(part, size) for part in parts)
            found = [self.encode(part).only(self.spec.tokens) for part in shown]
        return concatenated(found).map(lambda _, tokens: tokens.to(pixels.device))

    def shown(self, pixels: Tensor, size: Size | None = None) -> Tensor:
        """Pixels (B, 3, H, W) as `encode` takes them, of pixels as `forward` takes them: resized to
        `size`, normalised, in the teacher's dtype and on its device.

        Raises:
            UserError, TypeError: as `forward`.
        """
        if not pixels.is_floating_point():
            raise TypeError(f"pixels are {pixels.dtype}: expected float in [0, 1]")
        size = self.size if size is None else size
        problem = self.size_error(self.info, size)
        if problem:
            raise UserError(problem)
        # Statistics have more digits than a short float: normalise first, cast after.
        return self.norm(resize(pixels.to(self.device).float(), size)).to(self.dtype)

    @abstractmethod
    def encode(self, pixels: Tensor) -> Features:
        """Features of normalised pixels (B, 3, H, W) in the teacher's dtype."""

    def train(self, mode: bool = True) -> Teacher:
        """Nothing: a teacher stays in eval mode."""
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.norm.mean.device

    @property
    def encoder(self) -> nn.Module:
        """What `encode` runs, without decoders of a checkpoint that are loaded with it."""
        return self

    @property
    def text_tower(self) -> TextTower | None:
        """The text encoder that shares the summary's space, loaded on first use, or None."""
        return None

    @property
    def mask_decoder(self) -> MaskDecoder | None:
        """The frozen decoder of promptable masks from dense features, or None."""
        return None

    @property
    def segment(self) -> Segmenter | None:
        """(pixels, points, size) to promptable masks of these pixels, or None. A family may have
        this without a `mask_decoder`, where its decoder reads more than the dense features."""
        return None

    @classmethod
    def locate(cls, spec: TeacherSpec) -> Checkpoint:
        """Where the spec's files are; never uses the network.

        Raises:
            UserError: if `spec.weights` names nothing that the family can load.
        """
        return files.resolve(spec.weights, allow_pickle=spec.allow_pickle)

    @classmethod
    @abstractmethod
    def describe(cls, spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
        """What the checkpoint's files say, without its weights and without the network.

        Raises:
            UserError: if they are damaged, of another family, or without pixel statistics.
        """

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """Why the family cannot take images of this size, or None. It floors as its library does:
        a part of a patch at the right or the lower edge is not seen."""
        if info.stride is None:
            return None
        if min(_sides(size)) < info.stride:
            return (
                f"{info.spec.weights}: size {size} is smaller than its patch of "
                f"{info.stride} pixels"
            )
        return None


AnyFamily = TypeVar("AnyFamily", bound=type[Teacher])


def register_family(name: str) -> Callable[[AnyFamily], AnyFamily]:
    """Class decorator: makes a Teacher subclass known as family `name`."""

    def register(family: AnyFamily) -> AnyFamily:
        _FAMILIES[name] = family
        return family

    return register


def families() -> dict[str, type[Teacher]]:
    """Every family by name, in alphabetical order: this package's, and those that installed
    packages offer as entry points of the group "distill.teachers" (NAME = "module:Class").

    Raises:
        UserError: if a package's entry point cannot be loaded, or is no Teacher.
    """
    for entry in _entry_points():
        if entry.name in _FAMILIES:
            continue
        try:
            with torch_quiet():
                family = entry.load()
        except Exception as error:  # another package's code: whatever it raises
            raise UserError(
                f"teacher family {entry.name!r} of the package "
                f"{entry.dist.name if entry.dist else '?'} cannot be loaded ({entry.value}): "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (isinstance(family, type) and issubclass(family, Teacher)):
            raise UserError(
                f"teacher family {entry.name!r} ({entry.value}) is no subclass of teachers.Teacher"
            )
        _FAMILIES[entry.name] = family
    return dict(sorted(_FAMILIES.items()))


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINTS)


def size_error(info: TeacherInfo, size: Size) -> str | None:
    """Why this teacher cannot take images of `size` (a side, or (height, width), in pixels), in one
    line; None if it can, or if its configuration is not on this machine yet."""
    return _family(info.spec).size_error(info, size)


def describe_teacher(spec: TeacherSpec) -> TeacherInfo:
    """What the checkpoint's files say of a teacher, without its weights and without the network.

    A hub id that is not in the local cache is no error: `fetched` is False, and what is known of it
    is what a preset with these weights says.

    Raises:
        UserError: if the spec names what does not exist, or the checkpoint is damaged, of another
            family, or without pixel statistics.
    """
    family = _family(spec)
    _check_names(spec)
    with torch_quiet():
        return _described(family, spec, family.locate(spec))


def load_teacher(spec: TeacherSpec, device: str | torch.device = "cpu") -> Teacher:
    """The frozen teacher on `device`; a hub id that is not in the local cache is fetched.

    Raises:
        UserError: as `describe_teacher`; if the hub cannot be reached; if weights are missing,
            unexpected or of another shape; if the spec has a size or only tokens that the teacher
            cannot do.
    """
    family = _family(spec)
    _check_names(spec)
    checkpoint = files.fetch(family.locate(spec), spec.allow_pickle, spec.trust_remote_code)
    info = _described(family, spec, checkpoint)
    for size in spec.sizes:
        problem = family.size_error(info, size)
        if problem:
            raise UserError(problem)
    device = torch.device(device)
    with torch_quiet():
        teacher = family(info, checkpoint, choose_dtype(spec.dtype, device))
    return teacher.to(device)


def _described(family: type[Teacher], spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
    info = with_known_facts(family.describe(spec, checkpoint))
    if spec.layer is None or info.stride is None:
        return info
    if info.layers is None:
        raise UserError(f"{spec.weights}: family {spec.family!r} offers no earlier layer")
    if not 1 <= spec.layer <= info.layers:
        raise UserError(f"{spec.weights}: layer {spec.layer} is not one of 1 to {info.layers}")
    return info


def _family(spec: TeacherSpec) -> type[Teacher]:
    known = families()
    if spec.family not in known:
        raise UserError(f"teacher family {spec.family!r}{did_you_mean(spec.family, known)}")
    return known[spec.family]


def _check_names(spec: TeacherSpec) -> None:
    for kind in spec.tokens:
        if kind not in TOKEN_KINDS:
            raise UserError(f"{spec.weights}: tokens {kind!r}{did_you_mean(kind, TOKEN_KINDS)}")
    if not spec.tokens:
        raise UserError(f"{spec.weights}: tokens is empty; name summary, dense or both")
    if spec.dtype not in DTYPES:
        raise UserError(f"{spec.weights}: dtype {spec.dtype!r}{did_you_mean(spec.dtype, DTYPES)}")
    if spec.micro_batch is not None and spec.micro_batch < 1:
        raise UserError(f"{spec.weights}: micro_batch {spec.micro_batch} must be at least 1")
    for key in ("mean", "std"):
        values = getattr(spec, key)
        if values is not None and (len(values) != 3 or (key == "std" and min(values) <= 0)):
            raise UserError(
                f"{spec.weights}: {key} {list(values)} must be three numbers, as the "
                "model was trained with; a std is above 0"
            )
    if (spec.mean is None) != (spec.std is None):
        raise UserError(f"{spec.weights}: give mean and std together, or neither")


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
