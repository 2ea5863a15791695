"""The Python of a student's card: how timm, transformers and its adapters load it.

The blocks are run in their order; each but the first says only what is new in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.export.costs import without_weights
from distill.export.origin import Origin
from distill.export.place import Place, quoted
from distill.export.secrets import without_secrets
from students import Spaces, Student


@dataclass(frozen=True)
class Snippet:
    """A block of Python under a title, with a text before it."""

    title: str
    text: str
    code: str


def snippets(student: Student, spaces: Spaces, origin: Origin, place: Place) -> list[Snippet]:
    """All that a student's card shows, in the order in which they run."""
    return [
        _timm(student, place),
        _intermediate(student),
        _transformers(student, place),
        *_adapters(student, spaces, origin, place),
    ]


def dense_expression(student: Student, tokens: str, model: str) -> str:
    """Python for the dense map (B, h, w, D), after the final norm, of what `model`'s
    forward_features gave as `tokens`, for images of the student's own size."""
    import torch

    encoder = without_weights(student)
    with torch.device("meta"), torch.no_grad():
        out = encoder.forward_features(torch.zeros(1, 3, student.size, student.size))
    if out.ndim == 3:
        side = student.size // student.stride
        return f"{tokens}[:, {model}.num_prefix_tokens :].unflatten(1, ({side}, {side}))"
    channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
    width = out.shape[-1] if channels_last else out.shape[1]
    norm: Any = getattr(getattr(encoder, "head", None), "norm", None)
    weight = getattr(norm, "weight", None)
    if weight is None or tuple(weight.shape) != (width,):
        return tokens if channels_last else f"{tokens}.permute(0, 2, 3, 1)"
    if "2d" not in type(norm).__name__:
        return f"{model}.head.norm({tokens}{'' if channels_last else '.permute(0, 2, 3, 1)'})"
    before = f"{tokens}.permute(0, 3, 1, 2)" if channels_last else tokens
    return f"{model}.head.norm({before}).permute(0, 2, 3, 1)"


def _timm(student: Student, place: Place) -> Snippet:
    side = student.size // student.stride
    code = f"""\
import timm
import torch

model = timm.create_model({quoted(place.timm)}, pretrained=True).eval()
mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
pixels = torch.rand(1, 3, {student.size}, {student.size})  # RGB in [0, 1]
pixels = (pixels - mean) / std
with torch.no_grad():
    tokens = model.forward_features(pixels)
    summary = model.forward_head(tokens, pre_logits=True)  # (1, {student.summary_dim})
    dense = {dense_expression(student, "tokens", "model")}
assert dense.shape == (1, {side}, {side}, {student.dense_dim})"""
    return Snippet("timm", "`model(pixels)` gives the summary alone.", code)


def _intermediate(student: Student) -> Snippet:
    if getattr(student.model, "num_prefix_tokens", None) is not None:
        text = "The maps of earlier blocks, (B, D, h, w); the last is the dense map above."
        code = """\
with torch.no_grad():
    maps = model.forward_intermediates(pixels, norm=True, intermediates_only=True)
assert torch.equal(maps[-1].permute(0, 2, 3, 1), dense)"""
        return Snippet("Earlier layers", text, code)
    text = (
        "The maps of all stages, (B, D, h, w). **The library leaves the final norm to the head**, "
        "here, in `features_only` and in transformers' `last_hidden_state`: apply it, for these "
        "features were trained after it."
    )
    code = f"""\
with torch.no_grad():
    maps = model.forward_intermediates(pixels, intermediates_only=True)
    last = {dense_expression(student, "maps[-1]", "model")}
assert torch.equal(last, dense)"""
    return Snippet("Earlier layers", text, code)


def _transformers(student: Student, place: Place) -> Snippet:
    dense = dense_expression(student, "out.last_hidden_state", "encoder.timm_model")
    code = f"""\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

processor = AutoImageProcessor.from_pretrained({place.transformers})
encoder = AutoModel.from_pretrained({place.transformers}).eval()
image = Image.new("RGB", (320, 240), "gray")
inputs = processor(image, return_tensors="pt")  # resized, cropped to {student.size}, normalised
with torch.no_grad():
    out = encoder(**inputs)
    image_summary = out.pooler_output
    image_dense = {dense}

extract = pipeline("image-feature-extraction", model={place.transformers})
(pooled,) = extract(image, pool=True)"""
    return Snippet("transformers", "The same features; `pooler_output` is the summary.", code)


def _adapters(student: Student, spaces: Spaces, origin: Origin, place: Place) -> Iterator[Snippet]:
    reached = dict(spaces.routes())
    if not reached:
        return
    first = next(iter(reached))
    text = (
        "`adapters.py`, a file of torch and safetensors alone, turns these features into those "
        "of a teacher: through the adapters of every step, which hold their calibrated scalars and "
        "the inverse of each teacher's normaliser."
    )
    code = f"""\
import sys

{place.folder}
sys.path.insert(0, folder)
from adapters import Adapters, encode

adapters = Adapters(folder)
with torch.no_grad():
    features = encode(model, pixels)  # features.summary, features.dense
    there = adapters({quoted(first)}, features)"""
    yield Snippet("Into a teacher's space", text, code)
    for teacher in reached:
        about = origin.teachers.get(teacher)
        # What comes with this project, no other program finds by its name.
        if about is None or str(about["weights"]).startswith("builtin:"):
            continue
        kinds, weights = _kinds(spaces, reached[teacher]), without_secrets(str(about["weights"]))
        if "summary" in kinds and about["family"] in ("siglip", "siglip2"):
            yield _siglip(teacher, weights)
        elif "summary" in kinds and about["family"] in ("clip", "metaclip"):
            yield _clip(teacher, weights)
        elif "dense" in kinds and about["family"] == "sam":
            yield _sam(student, teacher, weights)


def _kinds(spaces: Spaces, path: list[str]) -> set[str]:
    """The kinds of token that every step of a chain has."""
    steps = zip(["student", *path], path, strict=False)
    return set.intersection(*(set(spaces.steps[step].kinds) for step in steps))


def _siglip(teacher: str, weights: str) -> Snippet:
    text = (
        f"Zero-shot with the text tower of {teacher}. Its texts are lower-case, without "
        "punctuation, and padded to full length."
    )
    code = f"""\
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

teacher = AutoModel.from_pretrained({quoted(weights)}, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained({quoted(weights)})
texts = ["a photo of a cat", "a photo of a dog"]
ids = tokenizer(
    texts,
    padding="max_length",
    padding_side="right",
    truncation=True,
    max_length=teacher.config.text_config.max_position_embeddings,
    return_tensors="pt",
)["input_ids"]
with torch.no_grad():
    words = teacher.text_model(input_ids=ids).pooler_output
    summaries = adapters({quoted(teacher)}, features).summary
scores = cosine_similarity(summaries[:, None], words[None], dim=-1)  # (images, texts)"""
    return Snippet(f"Texts, through {teacher}", text, code)


def _clip(teacher: str, weights: str) -> Snippet:
    text = f"Zero-shot with the text tower of {teacher}, and its two projections."
    code = f"""\
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

teacher = AutoModel.from_pretrained({quoted(weights)}, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained({quoted(weights)})
texts = ["a photo of a cat", "a photo of a dog"]
asked = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    words = teacher.text_model(asked["input_ids"], asked["attention_mask"]).pooler_output
    words = teacher.text_projection(words)
    summaries = teacher.visual_projection(adapters({quoted(teacher)}, features).summary)
scores = cosine_similarity(summaries[:, None], words[None], dim=-1)  # (images, texts)"""
    return Snippet(f"Texts, through {teacher}", text, code)


def _sam(student: Student, teacher: str, weights: str) -> Snippet:
    text = f"Masks of what a point shows, by the mask decoder of {teacher}. Square images."
    code = f"""\
from transformers import SamModel

segmenter = SamModel.from_pretrained({quoted(weights)}, dtype=torch.float32).eval()
with torch.no_grad():
    embeddings = adapters({quoted(teacher)}, features).dense.permute(0, 3, 1, 2)
    side = embeddings.shape[-1]
    segmenter.prompt_encoder.image_embedding_size = (side, side)
    segmenter.prompt_encoder.input_image_size = pixels.shape[-1]
    segmenter.config.prompt_encoder_config.image_embedding_size = side
    point = torch.tensor([[[[{student.size / 2}, {student.size / 2}]]]])  # x and y in pixels
    label = torch.ones(1, 1, 1, dtype=torch.long)
    masks = segmenter(
        image_embeddings=embeddings, input_points=point, input_labels=label
    ).pred_masks  # logits (1, 1, 3, 4 h, 4 w)"""
    return Snippet(f"Masks, through {teacher}", text, code)
