"""PNG with 16 bits a sample and several channels, which Pillow reads as 8: the parts of the standard that this takes.

ISO/IEC 15948:2004, clauses 9 (filters) and 11 (chunks).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from gem.errors import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {2: 3, 4: 2, 6: 4}  # by colour type: RGB, grey and opacity, RGB and opacity
TYPES = {count: kind for kind, count in CHANNELS.items()}
PIXELS = 1 << 28  # more are refused


def is_deep(head: bytes) -> bool:
    """Whether a file that begins with these (≥ 26) bytes is a PNG of 16 bits and several channels."""
    return head.startswith(SIGNATURE) and len(head) >= 26 and head[24] == 16 and head[25] in CHANNELS


def read(path: Path) -> np.ndarray:
    """Read a file of which `is_deep` holds.

    Returns
    -------
    (height, width, channels) uint16 array

    Raises
    ------
    DataError
        If it is interlaced, damaged or too large.
    """
    data = path.read_bytes()
    width, height, _, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if interlaced:
        raise DataError(f"{path} is an interlaced PNG of 16 bits: save it without interlacing")
    channels = CHANNELS[kind]
    if not 0 < width * height <= PIXELS:
        raise DataError(f"{path} claims {width} x {height} pixels: that is more than is read, or none")
    size = height * (1 + width * channels * 2)
    try:
        raw = zlib.decompressobj().decompress(b"".join(_pieces(data)), size)
    except (zlib.error, struct.error) as error:
        raise DataError(f"{path} is a damaged PNG: {error}") from error
    if len(raw) != size:
        raise DataError(f"{path} is a damaged PNG: {len(raw)} of {size} bytes of pixels are there")
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    if rows[:, 0].max() > 4:
        raise DataError(f"{path} is a damaged PNG: there are no filters beyond 4")
    plain = _unfiltered(rows[:, 0].astype(int), rows[:, 1:].reshape(height, width, channels * 2))
    return plain.reshape(height, width, channels, 2).view(">u2")[..., 0].astype(np.uint16)


def _pieces(data: bytes) -> list[bytes]:
    """The contents of all IDAT chunks."""
    found, at = [], len(SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"IDAT":
            found.append(data[at + 8 : at + 8 + length])
        if name == b"IEND":
            break
        at += length + 12
    return found


def _unfiltered(kinds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Bytes (height, width, bytes a pixel) of which each row was filtered in its own way.

    A byte needs those left, above, and left of above. All rows go at once, each one pixel behind the row above.
    """
    height, width, _ = rows.shape
    out = np.zeros((height + 1, width + 1, rows.shape[2]), np.int16)  # a row and a column of zeros before all others
    for moment in range(height + width - 1):
        row = np.arange(max(0, moment - width + 1), min(height, moment + 1))
        column = moment - row
        left, above, corner = out[row + 1, column], out[row, column + 1], out[row, column]
        guess = left + above - corner
        to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
        paeth = np.where(
            (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
        )
        base = np.choose(kinds[row][:, None], [np.zeros_like(left), left, above, (left + above) // 2, paeth])
        out[row + 1, column + 1] = (rows[row, column] + base) & 255
    return out[1:, 1:].astype(np.uint8)


def write(path: Path, samples: np.ndarray) -> None:
    """Write (height, width, 2, 3 or 4 channels) uint16 samples, every row as its difference to the one above.

    Raises
    ------
    ValueError
        For another number of channels.
    """
    height, width, channels = samples.shape
    if channels not in TYPES:
        raise ValueError(f"a PNG has 1 to 4 channels, not {channels}")
    rows = np.ascontiguousarray(samples.astype(">u2")).view(np.uint8).reshape(height, -1)
    coded = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    coded[:, 1:] = rows
    coded[1:, 1:] -= rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 16, TYPES[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(coded.tobytes())), (b"IEND", b""))
    path.write_bytes(SIGNATURE + b"".join(_chunk(name, content) for name, content in parts))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
