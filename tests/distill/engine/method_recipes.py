"""The tiny recipe in the ways in which published methods differ from it."""

import copy


def _teachers(tiny, **changes):
    for teacher in tiny["teachers"].values():
        teacher |= changes


def _stages(tiny, **changes):
    for stage in tiny["stages"].values():
        stage |= copy.deepcopy(changes)


def dropping(tiny):
    """UNIC: statistics that run along, a ladder of heads, teachers dropped image by image."""
    _teachers(tiny, normaliser="ema", momentum=0.2)
    _stages(tiny, balance={"kind": "dropping", "drop": 0.5})
    proxy = tiny["stages"]["proxy"]
    proxy["adapter"] = {"kind": "ladder", "hidden": 8}
    proxy["students"]["proxy"]["model"] |= {"depth": 2}


def partitions(tiny):
    """AM-RADIO: a quarter of a batch at a higher resolution for one of the teachers."""
    _teachers(tiny, normaliser="phi_s")
    for teacher in tiny["teachers"].values():
        teacher.pop("batch_share", None)
    for stage in tiny["stages"].values():
        names = {name for student in stage["students"].values() for name in student["teachers"]}
        low = sorted(names - {"sam"})
        stage["partitions"] = {
            "low": {"share": 3, "teachers": low, "image_sizes": [32]},
            "high": {"share": 1, "teachers": ["sam"], "image_sizes": [48]},
        }
    _stages(tiny, balance={"kind": "magnitude", "momentum": 0.3, "conflicts_every": 2})


def own_images(tiny):
    """DUNE: images of its own for a teacher, beside those that all see; attention as a head."""
    for teacher in tiny["teachers"].values():
        teacher.pop("batch_share", None)
    tiny["data"]["train"] = {
        "all": {"source": "scenes:count=16,size=32"},
        "own": {"source": "scenes:count=12,size=32,seed=1", "teachers": ["sam"]},
    }
    vit, convnext = ({"kind": kind, "hidden": 8} for kind in ("attention", "conv"))
    _stages(tiny, adapter=vit)
    tiny["stages"]["multires"]["students"]["convnext"]["adapter"] = convnext


def pairs(tiny):
    """Losses that compare images across the batch, and a teacher with terms of its own."""
    terms = {"cosine": 1.0, "relational": 0.5, "similarity_kl": 0.3}
    dense = {"mse": 0.5, "gram": 0.5, "relational": 0.2}
    own = {"sam": {"dense": {"cosine": 0.5, "similarity_kl": 0.1}}}
    _stages(tiny, loss={"summary": terms, "dense": dense, "temperature": 1.0, "teachers": own})


def masked(tiny):
    """SAMI: three quarters of the patches are hidden from the student."""
    _stages(tiny, objective="masked", masked={"visible": 0.25, "depth": 1})
    _stages(tiny, loss={"summary": {}, "dense": {"mse": 1.0}})
    del tiny["stages"]["multires"]["students"]["convnext"]


METHODS = {
    "dropping": dropping,
    "partitions": partitions,
    "own images": own_images,
    "pairs": pairs,
    "masked": masked,
}
