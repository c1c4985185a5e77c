"""The file format of the embedded data sets: 4-bit gray images, compressed, with a checksum.

Layout: ``MAGIC`` (8 bytes), the SHA-256 of everything after it (32 bytes), then one xz stream of, in order:

- the length of the description (uint32, little-endian); the description (JSON: class names, sources, shape);
- the source ids (uint8, one per image);
- the images, 4 bits per pixel: a byte holds a pixel (high half) and the one below it, row pair by row pair,
  which compresses 6 % better than pairs along the row.

Nothing in it is ever executed, and a file that is cut or changed anywhere fails the checksum.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAGIC = b"CCPIMG1\n"
_DIGEST_BYTES = 32


class DataFileError(OSError):
    """An embedded data file is missing, cut or damaged. The message names the file and what to do."""


@dataclass(frozen=True)
class PackedImages:
    """Decoded contents of a file: as many images for every class, class after class."""

    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    source_ids: npt.NDArray[np.uint8]  # [C, per_class]
    images: npt.NDArray[np.uint8]  # [C, per_class, height, width], 0..15, height even


def write_packed(path: Path, data: PackedImages) -> None:
    """Write ``data`` to ``path``. The same data and the same liblzma give the same bytes."""
    description = json.dumps(
        {"class_names": data.class_names, "sources": data.sources, "shape": data.images.shape},
        ensure_ascii=False,
    ).encode()
    pairs = (data.images[..., 0::2, :] << 4) | data.images[..., 1::2, :]
    plain = len(description).to_bytes(4, "little") + description + data.source_ids.tobytes() + pairs.tobytes()
    body = lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)


def read_packed(path: Path) -> PackedImages:
    """Read what ``write_packed`` wrote; ``DataFileError`` if the file is missing, cut or damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataFileError(_message(path, f"cannot be read ({error.strerror})")) from error
    start = len(MAGIC) + _DIGEST_BYTES
    magic, digest, body = raw[: len(MAGIC)], raw[len(MAGIC) : start], raw[start:]
    if magic != MAGIC:
        raise DataFileError(_message(path, f"does not begin with {MAGIC!r}"))
    if hashlib.sha256(body).digest() != digest:
        raise DataFileError(
            _message(path, f"is cut or damaged: the checksum of its {len(raw)} bytes differs")
        )

    plain = lzma.decompress(body)
    images_at = 4 + int.from_bytes(plain[:4], "little")
    description = json.loads(plain[4:images_at])
    classes, per_class, height, width = description["shape"]
    source_ids = np.frombuffer(plain, np.uint8, classes * per_class, images_at)
    pairs = np.frombuffer(plain, np.uint8, offset=images_at + source_ids.size)
    pairs = pairs.reshape(classes, per_class, height // 2, 1, width)
    images = np.concatenate([pairs >> 4, pairs & 15], axis=-2)
    return PackedImages(
        class_names=tuple(description["class_names"]),
        sources=tuple(description["sources"]),
        source_ids=source_ids.reshape(classes, per_class),
        images=images.reshape(classes, per_class, height, width),
    )


def _message(path: Path, what: str) -> str:
    return f"data file {path} {what}; reinstall ccp_fast, or restore the file from the repository"
