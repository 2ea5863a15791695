"""Retrieval of pictures of the same class, training-free.

Protocol (recall at k of metric learning: Oh Song et al., arXiv 1511.06452): each test
picture asks for the others of its class, by the cosine of summaries; itself is left out. map: mean
over queries of average precision over the whole ranking, pictures of exactly equal score retrieved
together; recall at k: the share of queries with a picture of their class among the first k. A
picture that is alone in its class asks for nothing.
"""

from __future__ import annotations

from distill.datasets.parts import Classification
from distill.probes.retrieval import image_retrieval
from distill.probes.tasks import Outcome
from distill.protocols.spaces import kept
from distill.protocols.task import FieldTask, Setting
from distill.protocols.views import centre_crop

RECALLS = (1, 5, 10)


def run(setting: Setting) -> Outcome:
    """`map` and `recall_at_k` in percent, and the queries counted.

    Raises:
        CannotProbe: if the model has no summary.
        NothingToScore: if no two test pictures are of one class.
    """
    part = setting.data.parts["classification"]
    assert isinstance(part, Classification)
    test = part.test
    stored = setting.features(test.pictures, centre_crop(setting.size))
    summary = kept(setting, stored, "summary")[:]
    return Outcome(*image_retrieval(summary, test.labels, RECALLS, setting.device))


TASK = FieldTask(
    name="image_retrieval",
    part="classification",
    kind="summary",
    metrics=("map", *(f"recall_at_{k}" for k in RECALLS)),
    protocol="summary, short side 256/224, centre crop, cosine, relevant = same class, self "
    "excluded, recall at k = hit rate",
    run=run,
)
