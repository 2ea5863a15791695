"""Text that is given away: without what opens an account, and without the name of a home folder."""

from __future__ import annotations

import re
from pathlib import Path

HIDDEN = "(removed)"

_NAMES = (
    # Not `tokens`, which are a recipe's.
    r"[\w.-]*(?:token(?![si])|password|passwd|secret|api[_-]?key|access[_-]?key|signature|credential)"
    r"[\w-]*"
)
_RULES = (
    # scheme://user:password@host, and scheme://token@host.
    (re.compile(r"(?P<kept>[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.I), rf"\g<kept>{HIDDEN}@"),
    # ?X-Amz-Signature=...&token=...; sig and sv are Azure's, AWSAccessKeyId the older S3's.
    (
        re.compile(rf"(?P<kept>[?&](?:{_NAMES}|sig|key|auth)=)[^&\s'\"]+", re.I),
        rf"\g<kept>{HIDDEN}",
    ),
    # Authorization: Bearer ..., in a command that is piped from.
    (
        re.compile(
            r"(?P<kept>authorization\s*[:=]\s*(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+", re.I
        ),
        rf"\g<kept>{HIDDEN}",
    ),
    (re.compile(r"(?P<kept>\bbearer\s+)[\w.~+/=-]{8,}", re.I), rf"\g<kept>{HIDDEN}"),
    # token: ..., HF_TOKEN=..., --password ...: a key and its value, of YAML, shell or Python.
    (
        re.compile(
            rf"(?P<kept>--{_NAMES}[ =]|(?<![\w-]){_NAMES}['\"]?\s*[:=]\s*)"
            r"(?!null\b|true\b|false\b|~|\(removed)(?:\"[^\"\n]+\"|'[^'\n]+'|[^\s'\",&}\]]+)",
            re.I,
        ),
        rf"\g<kept>{HIDDEN}",
    ),
    # What such words look like by themselves: the Hub's, GitHub's, OpenAI's, Amazon's.
    (
        re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|xox[abp]-|AKIA|ASIA)[A-Za-z0-9_-]{12,}"),
        HIDDEN,
    ),
)


def without_secrets(text: str) -> str:
    """The text with `(removed)` for passwords, tokens and signatures, and `~` for the home folder.

    What counts: user and password of an address, query parameters and keys whose name says so
    (token, secret, password, signature, api_key, credential), Authorization headers, and words of
    the shape of well-known tokens.
    """
    for pattern, kept in _RULES:
        text = pattern.sub(kept, text)
    home = str(Path.home())
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?=/|\b)", "~", text)
