"""Every weight accounted for, where a library's own loading passes over what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from teachers.checkpoint import Checkpoint
from teachers.loading import refuse_misfits


@contextmanager
def accounted_for(
    module: nn.Module, checkpoint: Checkpoint, others: tuple[str, ...] = (), lenient: bool = False
) -> Iterator[None]:
    """Weights that are loaded into `module` inside, with strict=False, all fit, or it is an error.

    `others` are prefixes of weights that belong to another part; they are neither read nor missed.
    With `lenient` a weight may be there that `module` has not.

    Raises:
        UserError: if weights are missing, unexpected or of another shape, naming them.
    """
    missing: list[str] = []
    unexpected: list[str] = []
    shapes: list[str] = []

    def before(_: nn.Module, state: dict[str, Tensor], *rest: Any) -> None:
        for name, own in module.state_dict().items():
            if name in state and state[name].shape != own.shape:
                shapes.append(f"{name} (is {list(state[name].shape)}, not {list(own.shape)})")

    def after(_: nn.Module, report: Any) -> None:
        missing.extend(report.missing_keys)
        unexpected.extend(report.unexpected_keys)
        # What is left in it, the library would log.
        report.missing_keys.clear()
        report.unexpected_keys.clear()

    handles = [
        module.register_load_state_dict_pre_hook(before),
        module.register_load_state_dict_post_hook(after),
    ]
    try:
        yield
    except RuntimeError:
        if not shapes:
            raise
    finally:
        for handle in handles:
            handle.remove()
    missing, unexpected, shapes = (
        [name for name in names if not name.startswith(others)]
        for names in (missing, [] if lenient else unexpected, shapes)
    )
    refuse_misfits(checkpoint, type(module).__name__, missing, unexpected, shapes)
