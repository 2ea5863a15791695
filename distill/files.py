"""Files of a run: whole or not there, and one line where the disk will not take them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from students.errors import UserError

_REFUSALS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG")
    if hasattr(errno, name)
)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_whole(path: Path, text: str) -> None:
    """Write a file beside, sync it and rename it: a reader finds the old one or the new one, also
    after the machine has lost its power.

    Raises:
        UserError: if there is no room, or no right to.
    """
    beside = path.with_name(f".{path.name}.new")
    with writing(path):
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to `path`, a file or all that lies in a folder.

    Raises:
        UserError: one line, for an error of `refusal`; others pass.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = refusal(error)
        if reason is None:
            raise
        # A write that fails does not say of which file, an open does.
        where = getattr(error, "filename", None) or path
        raise UserError(
            f"{where} cannot be written: {reason}. Make room or set the rights, then give the same "
            "command again"
        ) from None


def refusal(error: Exception) -> str | None:
    """Why the disk refused, if it did: full, over quota, read-only, no right to, file too large."""
    if isinstance(error, SafetensorError):
        found = _OS_ERROR.search(str(error))
        number = int(found[1]) if found else None
    else:
        number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number in _REFUSALS and number is not None else None
