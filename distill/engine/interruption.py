"""Being asked to stop: SIGTERM and Ctrl-C let the step in hand end and be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run: its number, and what became of the work, one line."""

    def __init__(self, signum: int, what: str = "interrupted"):
        super().__init__(what)
        self.signum = signum


class StopRequest:
    """Catches SIGINT and SIGTERM while a `with` block runs.

    Inside `finishing` the first one is remembered and `asked` is true, on all ranks from the same
    step on. Anywhere else, and when it comes a second time, it raises Interrupted at once; but a
    launcher passes on what its workers have already had, so under torchrun (which kills those who
    take too long) the second one changes nothing.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.signum: int | None = None
        self._finishing = False
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._catch) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _catch(self, signum: int, _: FrameType | None) -> None:
        first, self.signum = self.signum is None, self.signum or signum
        if not self._finishing or not (first or "TORCHELASTIC_RUN_ID" in os.environ):
            raise Interrupted(signum)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Around work that comes to a good end by itself once `asked` is seen."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False
        if self.signum is not None:  # after the last time that anyone looked
            raise Interrupted(self.signum)

    def asked(self) -> bool:
        """Whether any rank was asked to stop; every rank calls this at the same steps. The hosts
        agree among themselves: no device is waited for."""
        if self.accelerator.num_processes == 1:
            return self.signum is not None
        import torch  # not above: the command line has Interrupted before there is any need of it

        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        highest = torch.tensor(self.signum or 0)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=self._group)
        self.signum = int(highest) or None
        return self.signum is not None
