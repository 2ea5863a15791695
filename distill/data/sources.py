"""Where training images come from: one line, `scheme:rest`; EXAMPLES lists what is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill.data import hub_dataset, hub_library, webdataset
from distill.data.decode import MAX_PIXELS
from distill.data.folder import FolderSource
from distill.data.scenes import ScenesSource
from distill.data.shard_cache import CACHE_GB, ShardCache
from distill.data.source import Source
from students.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from distill.recipe.schema import DataConfig

EXAMPLES: Mapping[str, str] = {
    "folder": FolderSource.example,
    "scenes": ScenesSource.example,
    "webdataset": webdataset.EXAMPLE,
    "hf": hub_library.EXAMPLE,
}
"""By scheme, how a source of it is written."""


def open_source(
    spec: str,
    *,
    allow_pipe: bool = False,
    max_pixels: int = MAX_PIXELS,
    cache_gb: float = CACHE_GB,
) -> Source:
    """The source that `spec` names.

    Args:
        spec: `folder:PATH`, `scenes:count=8192,size=96,seed=0`,
            `webdataset:/data/{00000..00123}.tar` (a path, a URL or `pipe:COMMAND`) or
            `hf:NAME,split=train,column=image,config=NAME,streaming=true`.
        allow_pipe: whether a `webdataset:pipe:` source may run its commands.
        max_pixels: width times height of the largest image that is decoded.
        cache_gb: room for fetched shards in 10^9 bytes.

    Raises:
        UserError: if the scheme is unknown, the rest is wrong, or there are no images.
    """
    scheme, rest = _split(spec)
    if scheme == "folder":
        return FolderSource(rest, max_pixels)
    if scheme == "scenes":
        return ScenesSource(rest)
    cache = ShardCache(cache_gb)
    if scheme == "webdataset":
        return webdataset.open_webdataset(
            rest, allow_pipe=allow_pipe, max_pixels=max_pixels, cache=cache
        )
    return hub_dataset.open_hub_dataset(rest, max_pixels=max_pixels, cache=cache)


def open_sources(data: DataConfig) -> dict[str, tuple[Source, float]]:
    """The training sources of a recipe, opened, and their shares, by name.

    Raises:
        UserError: as `open_source`.
    """
    return {
        name: (
            open_source(
                config.source,
                allow_pipe=config.allow_pipe,
                max_pixels=data.max_pixels,
                cache_gb=data.shard_cache_gb,
            ),
            config.share,
        )
        for name, config in data.train.items()
    }


def check_source(spec: str, *, allow_pipe: bool = False) -> str | None:
    """What is wrong with `spec`, in one line, or None.

    Decodes no image, draws no scene, asks no server and runs no command.
    """
    try:
        scheme, rest = _split(spec)
    except UserError as error:
        return str(error)
    if scheme == "folder":
        return FolderSource.check(rest)
    if scheme == "scenes":
        return ScenesSource.check(rest)
    if scheme == "webdataset":
        return webdataset.check_webdataset(rest, allow_pipe)
    return hub_dataset.check_hub_dataset(rest)


def count_samples(spec: str) -> int | None:
    """How many images a source has, without making them; None if only reading it would tell.

    Raises:
        UserError: as `open_source`.
    """
    scheme, rest = _split(spec)
    if scheme == "folder":
        return FolderSource.count(rest)
    if scheme == "scenes":
        return ScenesSource.count(rest)
    return hub_dataset.count_hub_dataset(rest) if scheme == "hf" else None


def _split(spec: str) -> tuple[str, str]:
    scheme, colon, rest = spec.partition(":")
    examples = " or ".join(EXAMPLES.values())
    if not colon:
        raise UserError(f"the source {spec!r} does not say of what kind it is: write {examples}")
    if scheme not in EXAMPLES:
        hint = did_you_mean(scheme, EXAMPLES)
        raise UserError(f"unknown kind of source {scheme!r} in {spec!r}{hint}: write {examples}")
    return scheme, rest.strip()
