"""A few of a task's answers, kept beside its figures so that pictures can be drawn of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.datasets.parts import Classification, Correspondence, Instances, KeypointPair
from distill.probes.masks import Prompts, largest_prompts, object_prompts, squashed_instances
from distill.protocols.correspondence import matched_points
from distill.protocols.spaces import kept, mapped, owner, segments_alone
from distill.protocols.task import SHOWN, Setting
from distill.protocols.views import centre_crop, squashed
from distill.report.pictures import decoded_masks, segmented_masks

BEST, QUERIES = 5, 3


def features(setting: Setting) -> dict[str, Tensor]:
    """Dense features (h, w, D) of the first test pictures, by number; none of a model without."""
    stored = setting.features(setting.data.pictures, squashed(setting.size))
    if stored.dense is None:
        return {}
    rows = stored.dense[: min(SHOWN, len(stored.dense))]
    return {str(number): dense.contiguous() for number, dense in enumerate(rows)}


def correspondences(setting: Setting) -> dict[str, Tensor]:
    """Predicted points (K, 2) of the first pairs, in pixels of the target picture."""
    part = setting.data.parts["correspondence"]
    assert isinstance(part, Correspondence)
    dense = kept(setting, setting.features(part.pictures, squashed(setting.size)), "dense")
    found = {}
    for number, pair in enumerate(shown_pairs(part)):
        source, target = dense[torch.tensor([pair.source, pair.target])]
        sizes = [part.pictures.read(each).shape[1:] for each in (pair.source, pair.target)]
        (height, width), (tall, wide) = sizes
        points = pair.source_points.float()
        found[str(number)] = matched_points(source, target, points, (height, width), (tall, wide))
    return found


def shown_pairs(part: Correspondence) -> list[KeypointPair]:
    """Pairs with a keypoint, evenly spaced over all of them."""
    pairs = [pair for pair in part.pairs if len(pair.source_points)]
    return [pairs[row] for row in _spaced(len(pairs))]


def neighbours(setting: Setting) -> dict[str, Tensor]:
    """Numbers (BEST,) of the pictures that are nearest to some queries, the nearest first."""
    part = setting.data.parts["classification"]
    assert isinstance(part, Classification)
    stored = setting.features(part.test.pictures, centre_crop(setting.size))
    summary = F.normalize(kept(setting, stored, "summary")[:], dim=1)
    found = {}
    for number, query in enumerate(shown_queries(part)):
        cosine = summary @ summary[query]
        cosine[query] = -torch.inf
        found[str(number)] = cosine.topk(min(BEST, len(summary) - 1)).indices
    return found


def shown_queries(part: Classification) -> list[int]:
    """The queries of `neighbours`."""
    return _spaced(len(part.test.pictures), QUERIES)


def masks(setting: Setting) -> dict[str, Tensor]:
    """Masks (S, S) bool of one point in each of the first pictures that have an object."""
    part = setting.data.parts["instances"]
    assert isinstance(part, Instances)
    prompts = shown_prompts(part, setting.size)
    view, itself = squashed(setting.size), setting.teachers.get(setting.model.name)
    if setting.model.role == "teacher" and itself is not None and segments_alone(itself):
        shown = [view.show(part.test.pictures.read(int(i))) for i in prompts.image]
        pixels = torch.stack(shown).numpy()
        found = segmented_masks(pixels, itself, prompts, setting.size, setting.device)
    else:
        name, teacher = owner(setting, "mask_decoder")
        stored = setting.features(part.test.pictures, view)
        dense = mapped(setting, name, stored, "dense")[prompts.image]
        found = decoded_masks(dense, teacher, prompts, setting.device)
    return {str(number): torch.from_numpy(mask) for number, mask in enumerate(found)}


def shown_prompts(part: Instances, size: int) -> Prompts:
    """The point in the largest object of each of the first pictures, squashed to size."""
    first = range(min(4 * SHOWN, len(part.test.pictures)))
    maps = [squashed_instances(part.test.truth(number), size) for number in first]
    return largest_prompts(object_prompts(torch.stack(maps)), SHOWN)


def _spaced(count: int, most: int = SHOWN) -> list[int]:
    some = min(most, count)
    return [row * count // some for row in range(some)]


ANSWERS = {
    "features": features,
    "correspondence": correspondences,
    "image_retrieval": neighbours,
    "masks": masks,
}
