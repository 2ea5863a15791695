"""What tests of data sets share: opening, reading, and the one line of an error."""

from __future__ import annotations

import pytest
import torch

from distill.datasets import open_evaluation
from students.errors import UserError


def refused(spec: str) -> str:
    """The line that opening ends with."""
    with pytest.raises(UserError) as error:
        open_evaluation(spec)
    return one_line(error)


def wrong(function, *arguments) -> str:
    """The line that a call ends with."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    return one_line(error)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def assert_picture(pixels, size, colour) -> None:
    """(3, H, W) uint8 of a size and, to JPEG's precision, of one colour."""
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (3, *size)
    off = (pixels.int() - torch.tensor(colour)[:, None, None]).abs()
    assert int(off.max()) <= 6
