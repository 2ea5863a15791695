"""Teachers over transformers: what a family has to say, and what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from students.errors import UserError
from teachers import contents
from teachers.checkpoint import Checkpoint
from teachers.loading import build_config, count_parameters
from teachers.spec import TeacherInfo, TeacherSpec
from teachers.teacher import Teacher, families


@dataclass(frozen=True)
class Geometry:
    """What a configuration says of an encoder: native side and stride in pixels, token widths, and
    the blocks that `spec.layer` may choose from (None: it offers no earlier layer)."""

    size: int
    stride: int
    summary_dim: int | None
    dense_dim: int
    layers: int | None = None


class TransformersTeacher(Teacher):
    """A teacher whose checkpoint is config.json, preprocessor_config.json and safetensors.

    `model_types` are those of config.json that belong to the family. `runs_code`: whether it has a
    use for code that a checkpoint brings (`auto_map` in config.json), if the spec trusts it.
    """

    model_types: ClassVar[tuple[str, ...]]
    runs_code: ClassVar[bool] = False

    @classmethod
    def describe(cls, spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
        """What the checkpoint's files say, without its weights and without the network.

        Raises:
            UserError: if they are damaged, of another family, without pixel statistics, or if the
                checkpoint needs code of its own that is not trusted.
        """
        if checkpoint.folder is None:
            return TeacherInfo(spec, fetched=False, source=checkpoint.source)
        fields = contents.read_config(checkpoint)
        cls._check_model_type(spec, fields)
        if cls.needs_code(fields) and not checkpoint.fetched:
            return TeacherInfo(spec, fetched=False, source=checkpoint.source)
        preprocessor, source = contents.read_preprocessor(checkpoint)
        mean, std, source = cls.statistics(spec, checkpoint, preprocessor, source)
        config = cls.configuration(checkpoint, fields)
        geometry = cls.geometry(config, preprocessor)
        given = {"summary": geometry.summary_dim, "dense": geometry.dense_dim}
        if not any(given[kind] for kind in spec.tokens):
            raise UserError(f"{spec.weights}: gives no summary; set tokens to [dense]")
        if checkpoint.fetched:
            shapes = contents.weight_shapes(checkpoint)
            vision = {name: shape for name, shape in shapes.items() if cls.is_vision_weight(name)}
            parameters = contents.count_elements(vision)
        else:
            parameters = count_parameters(*cls.vision_part(config))
        return TeacherInfo(
            spec,
            fetched=checkpoint.fetched,
            source=checkpoint.source,
            size=geometry.size,
            stride=geometry.stride,
            summary_dim=geometry.summary_dim,
            dense_dim=geometry.dense_dim,
            parameters=parameters,
            mean=mean,
            std=std,
            statistics_from=source,
            licence=contents.licence(checkpoint),
            layers=geometry.layers,
        )

    @classmethod
    def needs_code(cls, fields: dict[str, Any]) -> bool:
        """Whether config.json names a model that only the checkpoint's own code can make."""
        return "auto_map" in fields and fields.get("model_type") not in cls.model_types

    @classmethod
    def _check_model_type(cls, spec: TeacherSpec, fields: dict[str, Any]) -> None:
        found = fields.get("model_type")
        if found in cls.model_types or (
            cls.runs_code and spec.trust_remote_code and cls.needs_code(fields)
        ):
            return
        known = families()
        fitting = [
            name for name, other in known.items() if found in getattr(other, "model_types", ())
        ]
        if not fitting and cls.needs_code(fields):
            raise UserError(f"{spec.weights}: {_refusal(spec, cls.runs_code)}")
        hint = f"use family {fitting[0]!r}" if fitting else f"families: {', '.join(known)}"
        if found is None:
            raise UserError(f"{spec.weights}: config.json names no model_type; {hint}")
        raise UserError(
            f"{spec.weights}: its config.json says model_type {found!r}, which is not of family "
            f"{spec.family!r}; {hint}"
        )

    @classmethod
    def statistics(
        cls,
        spec: TeacherSpec,
        checkpoint: Checkpoint,
        preprocessor: dict[str, Any],
        source: str | None,
    ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str | None]:
        """Pixel statistics, and where they are from, as `contents.pixel_statistics` gives them."""
        mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
        return contents.pixel_statistics(spec, checkpoint, mean, std, source)

    @classmethod
    def configuration(cls, checkpoint: Checkpoint, fields: dict[str, Any]) -> Any:
        """The library's configuration object from config.json's fields."""
        return build_config(checkpoint, fields)

    @classmethod
    @abstractmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """Sizes and widths from transformers' configuration and the preprocessor's fields."""

    @classmethod
    @abstractmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The class of the vision encoder alone, and its configuration."""

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """Whether a weight of this name in the file belongs to the vision encoder."""
        return True

    @property
    def record(self) -> dict[str, int]:
        """What makes the library's forward give `hidden_states[spec.layer]`, the tokens after that
        block; nothing where no earlier layer is asked for, so that none is kept."""
        return {} if self.spec.layer is None else {"output_hidden_states": self.spec.layer}


def _refusal(spec: TeacherSpec, runs_code: bool) -> str:
    """Why a checkpoint that needs code of its own is not loaded, and what to do."""
    needs = "its config.json needs code that the checkpoint brings (auto_map)"
    if runs_code:
        return f"{needs}, which is off; read that code, then set trust_remote_code: true on it"
    able = [name for name, other in families().items() if getattr(other, "runs_code", False)]
    return (
        f"{needs}; family {spec.family!r} runs none, whatever trust_remote_code says "
        f"(families that can: {', '.join(able)})"
    )
