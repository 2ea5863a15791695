"""A student goes to the Hub: one commit with everything, or none.

Passing trouble (429, 5xx, a broken connection) is waited for, at most ATTEMPTS times for each
step; what was sent before is not sent twice, and a commit whose answer was lost is found again.
The token is the one that huggingface_hub finds (`hf auth login`, HF_TOKEN); it is in no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distill.export.contents import Files
from students import UserError

ATTEMPTS = 5
FIRST_WAIT = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
LONGEST_WAIT = 300.0
"""Seconds that are waited at most, whatever a server's Retry-After asks for."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

LOG_IN = "log in with `hf auth login` or set HF_TOKEN, with a token that may write"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pushed:
    """A published student: the address of its repository, and the commit's id."""

    url: str
    commit: str


def check_name(repository: str, revision: str | None = None) -> None:
    """See that USER/NAME and a revision are names that the Hub takes.

    Raises:
        UserError: if one is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        legal = repository.count("/") == 1
    except HFValidationError:
        legal = False
    if not legal:
        raise UserError(
            f"--push {repository}: expected USER/NAME, of letters, digits, '-', '_' and '.'"
        )
    if revision is not None and not re.fullmatch(r"[\w][\w./-]*", revision):
        raise UserError(f"--revision {revision!r}: expected the name of a branch, such as v1")


def push(
    files: Files,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "A distilled encoder",
    api: Any = None,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = print,
) -> Pushed:
    """Publish the files in one commit to the model repository USER/NAME, which is made if it is
    not there, as is the branch `revision`. Other files of the repository stay.

    Args:
        api: the huggingface_hub.HfApi to go through (default: the one of HF_ENDPOINT).
        sleep: what waits for a number of seconds.
        say: where a line goes for each wait.

    Raises:
        UserError: in one line, before anything is sent if there is no token, or one that the Hub
            does not accept or that may not write; if the repository is another's; if `private` is
            asked of one that is public; if the Hub cannot be reached or goes on failing.
    """
    import huggingface_hub

    check_name(repository, revision)
    api = api or huggingface_hub.HfApi()
    calls = _Calls(repository, sleep, say)
    calls.token = api.token or calls.once("look for a token", huggingface_hub.get_token)
    if not calls.token:
        raise UserError(f"--push {repository}: this machine has no token of the Hub; {LOG_IN}")
    who = calls("ask who the token is of", lambda: api.whoami(token=calls.token))
    calls.user = str(who.get("name", "the owner of this token"))
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(f"--push {repository}: the token of {calls.user} only reads; {LOG_IN}")
    options = {"repo_id": repository, "token": calls.token}
    url = calls(
        "make the repository",
        lambda: api.create_repo(**options, private=private or None, exist_ok=True),
    )
    if private:
        about = calls("ask whether it is private", lambda: api.model_info(**options))
        if not about.private:
            raise UserError(
                f"--push {repository}: the repository is there and is public, and --private was "
                "asked for; nothing was sent. Name another, or make it private on its page"
            )
    if revision is not None:
        calls(
            "make the branch",
            lambda: api.create_branch(**options, branch=revision, exist_ok=True),
        )

    def commit() -> Any:
        # New for each attempt: they remember what was sent where.
        operations = [
            huggingface_hub.CommitOperationAdd(
                name, content if isinstance(content, bytes) else str(Path(content))
            )
            for name, content in files.items()
        ]
        return api.create_commit(
            **options, operations=operations, commit_message=message, revision=revision
        )

    made = calls("publish", commit)
    return Pushed(str(url), str(made.oid))


class _Calls:
    """Calls of the Hub, again after passing trouble; what fails for good is one line."""

    def __init__(
        self, repository: str, sleep: Callable[[float], None], say: Callable[[str], None]
    ) -> None:
        self.repository, self.sleep, self.say = repository, sleep, say
        self.token: str | None = None
        self.user = ""

    def __call__(self, what: str, call: Callable[[], Result]) -> Result:
        wait = FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:
                trouble = _Trouble.of(error)
                if not trouble.passing or attempt == ATTEMPTS:
                    refusal = self._refusal(what, trouble, attempt)
            # Outside of the except: what is raised then has no error behind it, whose request
            # would hold the token.
            if not trouble.passing or attempt == ATTEMPTS:
                raise refusal
            asked = wait if trouble.retry_after is None else trouble.retry_after
            seconds = min(asked, LONGEST_WAIT)
            self.say(f"{trouble.name} (could not {what}); again in {seconds:g} s")
            self.sleep(seconds)
            wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def once(self, what: str, call: Callable[[], Result]) -> Result:
        """A call of this machine alone."""
        try:
            return call()
        except Exception as error:
            refusal = self._refusal(what, _Trouble.of(error), 1)
        raise refusal

    def _refusal(self, what: str, trouble: _Trouble, attempts: int) -> UserError:
        status = trouble.status
        if trouble.offline:
            reason = "HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it"
        elif status == 401:
            reason = f"the Hub does not accept this machine's token; {LOG_IN}"
        elif status in (402, 403):
            reason = (
                f"{self.user or 'this token'} may not write there: it is another's, or the token "
                f"has no right to; name {self.user or 'USER'}/NAME, or {LOG_IN}"
            )
        elif status == 404:
            reason = f"the Hub has no such user or organisation, or none that {self.user} may see"
        elif status is not None and not trouble.passing:
            reason = f"the Hub refused to {what}: {trouble.name}"
        else:
            tried = f" after {attempts} attempts" if attempts > 1 else ""
            reason = (
                f"could not {what}{tried}: {trouble.name}. Nothing was published; give the same "
                "command again later"
            )
        text = f"--push {self.repository}: {reason}"
        return UserError(text.replace(self.token, "(removed)") if self.token else text)


@dataclass(frozen=True)
class _Trouble:
    """What went wrong: `name` in a few words without anything that a request held; `status` of the
    server's answer, if there was one; the seconds that it asked to wait."""

    name: str
    status: int | None
    retry_after: float | None
    passing: bool
    offline: bool

    @classmethod
    def of(cls, error: BaseException) -> _Trouble:
        from huggingface_hub.errors import OfflineModeIsEnabled

        chain = list(_chain(error))
        offline = any(isinstance(one, OfflineModeIsEnabled) for one in chain)
        for one in chain:
            response = getattr(one, "response", None)
            if response is not None:
                status = int(response.status_code)
                detail = response.headers.get("X-Error-Message") or response.reason_phrase
                wait = _seconds(response.headers.get("Retry-After"))
                name = " ".join(f"{status} {detail}".split())[:200]
                return cls(name, status, wait, status in PASSING, offline)
        # Of the network: httpx's and httpx2's own classes, requests', and the sockets'.
        broken = any(
            "TransportError" in {kind.__name__ for kind in type(one).__mro__}
            or isinstance(one, ConnectionError | TimeoutError)
            for one in chain
        )
        name = f"no connection ({type(chain[-1]).__name__})" if broken else _told(error)
        return cls(name, None, None, broken and not offline, offline)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or while handling."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; None where there is none, or a date."""
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text.strip()) else None
