"""Features on their way from the device to the disk, while the device goes on with the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from distill.probes.models import CannotProbe
from distill.protocols.chunks import write_chunk
from students.features import Features, concatenated

_WAITING = 2
"""Chunks that may wait to be written."""


class Outbox:
    """Batches of features are `add`ed and `send`s of them written, by a thread of its own.

    On leaving all have been written. Both `send` and leaving raise what writing raised: UserError
    where the disk refuses, CannotProbe where features are not finite numbers.

    Args:
        device: of the features.
        name: of the model, for messages.
    """

    def __init__(self, device: torch.device, name: str):
        self.name = name
        # Copies on a stream of their own do not stand in the way of the next batch.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1)
        self._parts: list[Callable[[], Features]] = []
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self._collect(0)

    def add(self, features: Features) -> None:
        """A batch more, on the device."""
        if self._stream is None:
            self._parts.append(lambda: features.map(lambda _, tokens: tokens.cpu()))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            copied = features.map(self._copied)
        event = self._stream.record_event()

        def arrived() -> Features:
            event.synchronize()
            return copied

        self._parts.append(arrived)

    def send(self, path: Path) -> None:
        """All that has been added since the last time, as a chunk."""
        self._collect(_WAITING - 1)
        self._waiting.append(self._thread.submit(self._write, path, self._parts))
        self._parts = []

    def _collect(self, leave: int) -> None:
        while len(self._waiting) > leave:
            self._waiting.popleft().result()

    def _copied(self, _: str, tokens: Tensor) -> Tensor:
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        # Its memory is given to nobody else before the copy is done.
        tokens.record_stream(torch.cuda.current_stream(tokens.device))
        return host

    def _write(self, path: Path, parts: list[Callable[[], Features]]) -> None:
        features = concatenated([part() for part in parts])
        for tokens in (features.summary, features.dense):
            # Least and largest are NaN if any is; many times faster than looking at each.
            if tokens is not None and not bool(torch.stack(tokens.aminmax()).isfinite().all()):
                raise CannotProbe(f"{self.name} gives features that are not finite numbers")
        write_chunk(path, features)
