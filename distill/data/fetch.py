"""Shards from elsewhere into a file: a web server's, or what a command writes.

What stands in a URL before the `@` and after the `?` may be a secret and is never shown.
"""

from __future__ import annotations

import base64
import http.client
import re
import shutil
import subprocess
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

_PATIENCE = 60.0
"""Seconds without a byte after which a server is given up."""

_CHUNK = 1 << 20
_WORTH_ANOTHER_TRY = (408, 425, 429)


class FetchError(Exception):
    """A shard could not be fetched, in one line without secrets; `again`: may it work later?"""

    def __init__(self, reason: str, again: bool = True):
        super().__init__(reason)
        self.again = again


def fetch_url(url: str, file: BinaryIO) -> None:
    """Writes what an http or https URL gives to `file`; `user:password@` in it is honoured.

    Raises:
        FetchError: the server cannot be reached, answers with an error, or breaks off.
        OSError: `file` cannot be written.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host, fragment="")))
    if at:
        secret = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    with _opened(request) as response:
        expected = response.headers.get("Content-Length")
        length = 0
        while chunk := _read(response):
            file.write(chunk)
            length += len(chunk)
    if expected is not None and length != int(expected):
        raise FetchError(f"the server broke off after {length} of {expected} bytes")


def _opened(request: Request) -> http.client.HTTPResponse:
    try:
        return urlopen(request, timeout=_PATIENCE)
    except HTTPError as error:
        again = error.code >= 500 or error.code in _WORTH_ANOTHER_TRY
        phrase = http.client.responses.get(error.code, "")
        raise FetchError(f"the server answers {error.code} {phrase}".rstrip(), again) from None
    except URLError as error:
        raise FetchError(f"the server cannot be reached: {_why(error.reason)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(f"the server cannot be reached: {_why(error)}") from None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"the server broke off: {_why(error)}") from None


def _why(error: object) -> str:
    # The text of other errors than the system's may hold the URL.
    return str(getattr(error, "strerror", None) or type(error).__name__)


def fetch_command(command: str, file: BinaryIO) -> None:
    """Writes what a shell command prints to `file`. A failing part of a pipeline is a failure.

    Raises:
        FetchError: the command fails or prints nothing.
    """
    bash = shutil.which("bash")
    shell = [bash, "-o", "pipefail", "-c"] if bash else ["sh", "-c"]
    # What it says on its standard error may hold a secret of the command's.
    done = subprocess.run(
        [*shell, command],
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise FetchError(f"the command ends with status {done.returncode}")
    if not file.seek(0, 2):
        raise FetchError("the command prints nothing")


def without_secrets(text: str) -> str:
    """`text` with every URL in it cut to scheme, host and path."""
    return re.sub(r"\w[\w+.-]*://[^\s'\"|;]+", lambda match: _bare(match[0]), text)


def _bare(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    path = re.split(r"[?#]", path, maxsplit=1)[0]
    return f"{scheme}://{re.split('[?#]', authority.rpartition('@')[2])[0]}{slash}{path}"
