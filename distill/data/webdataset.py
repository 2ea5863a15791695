"""Source `webdataset:`: tar shards by path, by URL, or printed by a command."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from distill.data.braces import expand_braces
from distill.data.decode import MAX_PIXELS
from distill.data.fetch import fetch_command, fetch_url, without_secrets
from distill.data.shard_cache import Shard, ShardCache
from distill.data.shards import ShardedSource
from distill.data.tar_index import index_tar
from students.errors import UserError

EXAMPLE = "webdataset:/data/{00000..00123}.tar"

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A tar file on this machine."""

    label: str

    def path(self) -> Path:
        """See Shard.path."""
        return Path(self.label).expanduser()

    def key(self) -> str:
        """Of path, size and time of change."""
        try:
            path = self.path().resolve()
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot open the shard {self.label}: {error.strerror}") from None
        return _hashed(f"{path}|{status.st_size}|{status.st_mtime_ns}")

    def fetch(self, file: BinaryIO) -> None:
        """A copy, though it can be read in place."""
        with self.path().open("rb") as shard:
            shutil.copyfileobj(shard, file)


@dataclass(frozen=True, slots=True)
class UrlShard:
    """A tar file on a web server."""

    url: str

    @property
    def label(self) -> str:
        """See Shard.label."""
        return without_secrets(self.url)

    def path(self) -> None:
        """See Shard.path."""

    def key(self) -> str:
        """Of the URL."""
        return _hashed(self.url)

    def fetch(self, file: BinaryIO) -> None:
        """See Shard.fetch."""
        fetch_url(self.url, file)


@dataclass(frozen=True, slots=True)
class PipeShard:
    """A tar file that a shell command prints; `number` of the shard in its source."""

    command: str
    number: int

    @property
    def label(self) -> str:
        """The tar that the command's last word names, if it does; else the shard's number."""
        last = without_secrets(self.command.split()[-1].strip("'\""))
        return f"pipe:{last}" if last.endswith(".tar") else f"pipe:{self.number:06d}"

    def path(self) -> None:
        """See Shard.path."""

    def key(self) -> str:
        """Of the command."""
        return _hashed(f"pipe|{self.command}")

    def fetch(self, file: BinaryIO) -> None:
        """See Shard.fetch."""
        fetch_command(self.command, file)


def open_webdataset(
    rest: str,
    *,
    allow_pipe: bool = False,
    max_pixels: int = MAX_PIXELS,
    cache: ShardCache | None = None,
) -> ShardedSource:
    """The source that `webdataset:rest` names; of shards on this machine all must be there.

    Args:
        rest: a path, an http or https URL, or `pipe:COMMAND`, in which braces are expanded.
        allow_pipe: whether commands may be run.
        max_pixels: of the largest image that is decoded.
        cache: default: the user's, with its default room.

    Raises:
        UserError: see check_webdataset.
    """
    if problem := check_webdataset(rest, allow_pipe):
        raise UserError(problem)
    return ShardedSource(_shards(rest), cache or ShardCache(), max_pixels)


def check_webdataset(rest: str, allow_pipe: bool = False) -> str | None:
    """What is wrong with `webdataset:rest`, one line, or None. Fetches nothing, runs nothing.

    Of shards on this machine the first is looked into for an image.
    """
    if not rest.removeprefix("pipe:").strip():
        return f"webdataset: needs tar files, as in {EXAMPLE}"
    if rest.startswith("pipe:") and not allow_pipe:
        return (
            "a pipe: source runs a command of the recipe's in a shell: say allow_pipe: true "
            "beside this source if you trust it"
        )
    shown = "pipe:..." if rest.startswith("pipe:") else without_secrets(rest)
    scheme = re.match(r"(\w[\w+.-]*)://", rest)
    if scheme and scheme[1] not in ("http", "https"):
        return (
            f"webdataset: cannot read {scheme[1]}:// ({shown}): take a path, http:// or https://, "
            f"or a command that prints the tar, as in webdataset:pipe:COMMAND (allow_pipe: true)"
        )
    try:
        shards = _shards(rest)
    except ValueError as error:
        return f"webdataset: the brace pattern in {shown} is wrong: {error}"
    if scheme and not urlsplit(rest).hostname:
        return f"webdataset: {shown} names no server"
    compressed = rest.partition("?")[0].endswith(_COMPRESSED)
    if compressed and not rest.startswith("pipe:"):
        return (
            f"webdataset: {shown} is compressed, and images are read from anywhere in a shard: "
            "unpack it to .tar"
        )
    return None if scheme or rest.startswith("pipe:") else _check_files(shards)


def _check_files(shards: list[Shard]) -> str | None:
    for shard in shards:
        path = shard.path()
        if path is None or not path.is_file():
            what = "is a folder" if path and path.is_dir() else "does not exist"
            missing = sum(not Path(one.label).expanduser().is_file() for one in shards)
            return (
                f"webdataset: the shard {shard.label} {what} ({missing} of {len(shards)} are not "
                "there): correct the pattern or bring the files"
            )
    try:
        first = index_tar(Path(shards[0].label).expanduser())[0]
    except OSError as error:
        return f"webdataset: cannot read the shard {shards[0].label}: {error.strerror}"
    if first["size"] < 0:
        return f"webdataset: the shard {shards[0].label}: {first['name'].decode()}"
    return None


def _shards(rest: str) -> list[Shard]:
    """One for each name that `rest` stands for.

    Raises:
        ValueError: if its braces are wrong.
    """
    if rest.startswith("pipe:"):
        commands = expand_braces(rest.removeprefix("pipe:"))
        return [PipeShard(command, number) for number, command in enumerate(commands)]
    remote = re.match(r"https?://", rest)
    return [UrlShard(name) if remote else LocalShard(name) for name in expand_braces(rest)]


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
