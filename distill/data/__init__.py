"""Images for training: sources, deterministic views of them, and the loader of batches.

sources -> order, lanes (which sample stands at a position) -> views (what is cut out of it) ->
loader (batches of uint8 pixels) -> photometrics (colours, on the device). Sources that stream:
webdataset, hub_dataset -> shards -> shard_cache (fetched once, kept for a while) -> tar_index.
"""

from distill.data.loader import Batch, batches
from distill.data.photometrics import photometrics
from distill.data.source import BadSample, Source
from distill.data.sources import check_source, open_source
from distill.data.views import View, ViewPolicy, cut, draw_view

__all__ = [
    "BadSample",
    "Batch",
    "Source",
    "View",
    "ViewPolicy",
    "batches",
    "check_source",
    "cut",
    "draw_view",
    "open_source",
    "photometrics",
]
