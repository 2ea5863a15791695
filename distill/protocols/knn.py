"""Classification by the nearest neighbours of the summary: DINO's and DINOv2's protocol.

Pictures with the short side at 256/224 of the size, central crop (`views.centre_crop`). Summaries
are L2-normalised; the k training images of highest cosine vote with weight exp(cosine / 0.07) for
their class; top-1 accuracy on the test split in percent, for k = 10, 20, 100 and 200 (Wu et al.,
arXiv 1805.01978, temperature 0.07 and k = 200; DINO, arXiv 2104.14294, all four k).
"""

from __future__ import annotations

from distill.datasets.parts import Classification
from distill.probes.knn import TEMPERATURE, accuracies
from distill.probes.models import NothingToScore
from distill.probes.tasks import Outcome
from distill.protocols.spaces import kept
from distill.protocols.task import FieldTask, Setting
from distill.protocols.views import centre_crop

NEIGHBOURS = (10, 20, 100, 200)


def run(setting: Setting) -> Outcome:
    """`accuracy_k10` and so on, in percent; a k above the number of training images is left out.

    Raises:
        CannotProbe: if the model has no summary.
        NothingToScore: if there are fewer training images than the smallest k.
    """
    part = setting.data.parts["classification"]
    assert isinstance(part, Classification)
    ks = [k for k in NEIGHBOURS if k <= len(part.train.labels)]
    if not ks:
        raise NothingToScore(
            f"{len(part.train.labels)} training images: {NEIGHBOURS[0]} neighbours need as many"
        )
    view = centre_crop(setting.size)
    train = kept(setting, setting.features(part.train.pictures, view), "summary")
    test = kept(setting, setting.features(part.test.pictures, view), "summary")
    found = accuracies(
        train,
        part.train.labels,
        test,
        part.test.labels,
        ks,
        TEMPERATURE,
        setting.device,
        setting.progress,
    )
    return Outcome({f"accuracy_k{k}": value for k, value in found.items()}, len(test))


TASK = FieldTask(
    name="knn",
    part="classification",
    kind="summary",
    metrics=tuple(f"accuracy_k{k}" for k in NEIGHBOURS),
    protocol=f"summary, short side 256/224 and centre crop, cosine, temperature {TEMPERATURE:g}, "
    "top-1",
    run=run,
)
