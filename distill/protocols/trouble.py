"""What keeps some ranks from their share of the features, made known to all of them by files: so
that all raise the same and none waits for another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.files import write_whole
from distill.probes.models import CannotProbe
from students.errors import UserError


@dataclass
class Trouble:
    """Of one rank: how many pictures cannot be read, number and words of the first; what a user can
    mend; what the model cannot do."""

    unreadable: int = 0
    first: tuple[int, str] = (-1, "")
    mend: str = ""
    cannot: str = ""

    def add(self, bad: list[tuple[int, str]]) -> None:
        """Pictures (number, words), in order, that cannot be read."""
        if bad and not self.unreadable:
            self.first = bad[0]
        self.unreadable += len(bad)


def raise_shared(
    trouble: Trouble,
    folder: Path,
    rank: int,
    ranks: int,
    barrier: Callable[[], object],
    pictures: int,
) -> None:
    """Raise what any rank's `trouble` says, on every rank; all of them have to come here.

    Raises:
        UserError: what is to be mended; else, of `pictures`, how many cannot be read.
        CannotProbe: what the model cannot do.
    """
    own = _file(folder, rank)
    if trouble == Trouble():
        own.unlink(missing_ok=True)  # of an earlier run
    else:
        write_whole(own, json.dumps(asdict(trouble)))
    barrier()
    found = [known for other in range(ranks) if (known := _read(_file(folder, other)))]
    barrier()
    own.unlink(missing_ok=True)
    for mend in filter(None, (known.mend for known in found)):
        raise UserError(mend)
    # Before the pictures: a rank that stopped has not counted all of them.
    for cannot in filter(None, (known.cannot for known in found)):
        raise CannotProbe(cannot)
    if unreadable := sum(known.unreadable for known in found):
        first = min(known.first for known in found if known.unreadable)[1]
        raise UserError(f"{unreadable} of {pictures} pictures cannot be read, the first: {first}")


def _file(folder: Path, rank: int) -> Path:
    return folder / f"trouble-{rank}.json"


def _read(path: Path) -> Trouble | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return Trouble(**content | {"first": tuple(content["first"])})
