"""A cache of teachers' features on disk: each belongs to one exact view of one sample.

key (what a store's rows have in common) -> store (get and put) -> catalogue (which row lies where)
-> shard (files) ; codec (features as bytes). docs/cache.md describes the files.
"""

from distill.cache.account import StoreInfo, estimate_bytes, info, print_info
from distill.cache.codec import FORMATS, ChannelStatistics, RowLayout
from distill.cache.feature_cache import FeatureCache
from distill.cache.key import StoreKey, teacher_identity, view_prints, views_identity
from distill.cache.store import Store

__all__ = [
    "FORMATS",
    "ChannelStatistics",
    "FeatureCache",
    "RowLayout",
    "Store",
    "StoreInfo",
    "StoreKey",
    "estimate_bytes",
    "info",
    "print_info",
    "teacher_identity",
    "view_prints",
    "views_identity",
]
