"""What the first bytes of an image file say, read before any memory is taken for its pixels."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

_SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
)

_PNG_CHECKED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

_NO_FRAME = frozenset((0xC4, 0xC8, 0xCC))  # tables and an extension among JPEG's frame markers
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # JPEG markers that have no length


def image_format(data: bytes) -> str:
    """`JPEG`, `PNG`, `WEBP`, `GIF`, `BMP` or `TIFF`, by content: a file's ending may be wrong.

    Raises:
        ValueError: if it is none of them.
    """
    for name, signature in _SIGNATURES:
        if signature.match(data):
            return name
    if not data:
        raise ValueError("the file is empty")
    raise ValueError(f"no JPEG, PNG, WebP, GIF, BMP or TIFF: it begins with {data[:12]!r}")


@dataclass(frozen=True)
class JpegHeader:
    """Width and height in pixels as stored, before any turn; `exif` is the APP1 segment that
    begins with `Exif`, or empty; `restarts`, whether the scans hold restart markers; `end`, the
    offset of what follows the frame header."""

    width: int
    height: int
    components: int
    exif: bytes
    restarts: bool
    end: int


def jpeg_header(data: bytes) -> JpegHeader:
    """The frame header of a JPEG and what stands before it (ITU-T T.81, annex B).

    Raises:
        ValueError: if there is none.
    """
    exif, restarts, at = b"", False, 2
    while (segment := _jpeg_segment(data, at)) is not None:
        marker, body, at = segment
        if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", body):
            exif = data[body:at]
        elif marker == 0xDD:
            restarts = any(data[body:at])
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            if at - body < 6 or at > len(data):
                break
            height = int.from_bytes(data[body + 1 : body + 3], "big")
            width = int.from_bytes(data[body + 3 : body + 5], "big")
            return JpegHeader(width, height, data[body + 5], exif, restarts, at)
        elif marker == 0xDA:
            break
    raise ValueError("a damaged JPEG: it has no frame header")


def first_scan(data: bytes, header: JpegHeader) -> tuple[int, int]:
    """Where the coded pixels of a JPEG's first scan begin and where a decoder stops reading them.

    That is the first marker that may not stand in them, else the file's end.

    Raises:
        ValueError: if there is no scan.
    """
    at, restarts = header.end, header.restarts
    while (segment := _jpeg_segment(data, at)) is not None:
        marker, body, at = segment
        if marker == 0xDD:
            restarts = any(data[body:at])
        elif marker == 0xDA:
            stop = re.search(rb"\xff[^\0\xd0-\xd7]" if restarts else rb"\xff[^\0]", data[at:])
            return at, at + stop.start() if stop else len(data)
    raise ValueError("a damaged JPEG: it has no scan")


def _jpeg_segment(data: bytes, at: int) -> tuple[int, int, int] | None:
    """The next segment from `at` on: its marker, where its body begins and where it ends."""
    while (at := data.find(b"\xff", at)) >= 0:
        while data[at : at + 1] == b"\xff":  # any number of fill bytes
            at += 1
        if at + 3 > len(data):
            return None
        if (marker := data[at]) == 0 or marker in _ALONE:
            continue
        if marker == 0xD9:
            return None
        return marker, at + 3, at + 1 + int.from_bytes(data[at + 1 : at + 3], "big")
    return None


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG in pixels.

    Raises:
        ValueError: if the header is not the first chunk.
    """
    if data[12:16] != b"IHDR" or len(data) < 24:
        raise ValueError("a damaged PNG: it does not begin with its header")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def png_picture(data: bytes) -> bytes:
    """The PNG without what is not the first picture: text, colour profiles, later frames.

    Those may be compressed and of any size once opened. The checksums of the rest are compared,
    since a decoder may pass over a damaged one.

    Raises:
        ValueError: if a chunk is damaged or the file ends too early.
    """
    view = memoryview(data)
    kept, at = [view[:8]], 8
    while True:
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(data):
            raise ValueError("truncated: the PNG ends within its data")
        name = bytes(view[at + 4 : at + 8])
        if name in _PNG_CHECKED or name == b"eXIf":
            whole = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")
            if whole:
                kept.append(view[at:end])
            elif name != b"eXIf":
                raise ValueError(f"a damaged PNG: the checksum of a chunk {name.decode()} is wrong")
        if name == b"IEND":
            return b"".join(kept)
        at = end


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a WebP's canvas in pixels (RFC 9649).

    Raises:
        ValueError: if the first chunk is none that a picture begins with.
    """
    chunk = data[12:16]
    if len(data) >= 30 and chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if len(data) >= 30 and chunk == b"VP8 ":
        width, height = (int.from_bytes(data[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        return width, height
    if len(data) >= 25 and chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ValueError("a damaged WebP: it does not begin with a picture's header")
