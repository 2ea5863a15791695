"""Where training images come from: one line, `scheme:rest`; SCHEMES lists what is known."""

from __future__ import annotations

from distill.data.folder import FolderSource
from distill.data.scenes import ScenesSource
from distill.data.source import Source
from students.errors import UserError, did_you_mean

SCHEMES: dict[str, type[FolderSource] | type[ScenesSource]] = {
    "folder": FolderSource,
    "scenes": ScenesSource,
}


def count_samples(spec: str) -> int:
    """How many images a source has, without making them.

    Raises:
        UserError: as `open_source`.
    """
    scheme, rest = _split(spec)
    return SCHEMES[scheme].count(rest)


def open_source(spec: str) -> Source:
    """The source that `spec` names: `folder:PATH` or `scenes:count=8192,size=96,seed=0`.

    Raises:
        UserError: if the scheme is unknown or the rest is wrong.
    """
    scheme, rest = _split(spec)
    return SCHEMES[scheme](rest)


def check_source(spec: str) -> str | None:
    """What is wrong with `spec`, in one line, or None. Decodes no image and draws no scene."""
    try:
        scheme, rest = _split(spec)
    except UserError as error:
        return str(error)
    return SCHEMES[scheme].check(rest)


def _split(spec: str) -> tuple[str, str]:
    scheme, colon, rest = spec.partition(":")
    examples = " or ".join(kind.example for kind in SCHEMES.values())
    if not colon:
        raise UserError(f"the source {spec!r} does not say of what kind it is: write {examples}")
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES)
        raise UserError(f"unknown kind of source {scheme!r} in {spec!r}{hint}: write {examples}")
    return scheme, rest.strip()
