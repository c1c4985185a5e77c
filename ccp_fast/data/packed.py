"""The file format of the embedded data sets: 4-bit gray images, compressed, with a checksum.

Layout: ``MAGIC`` (8 bytes), SHA-256 of everything after it (32 bytes), then one xz stream holding, in order, the
length of the description (uint32, little-endian), the description (JSON: class names, sources, shape), the
source ids (uint8, one per image) and the images (4 bits per pixel, two to a byte, the left pixel in the high half).
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
# Literal position bits of 9 tell LZMA nothing here; two bytes of context do: both ends of a stroke are likely there.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


class DataFileError(OSError):
    """An embedded data file is missing, cut or damaged. The message names the file and what to do."""


@dataclass(frozen=True)
class PackedImages:
    """Decoded contents of a file: as many images for every class, class after class."""

    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    source_ids: npt.NDArray[np.uint8]  # [C, per_class]
    images: npt.NDArray[np.uint8]  # [C, per_class, height, width], 0..15


def write_packed(path: Path, data: PackedImages) -> None:
    """Write ``data`` to ``path``. The same data gives the same bytes."""
    description = json.dumps(
        {"class_names": data.class_names, "sources": data.sources, "shape": data.images.shape}, ensure_ascii=False
    ).encode()
    pixels = data.images.reshape(-1, 2)
    nibbles = (pixels[:, 0] << 4) | pixels[:, 1]
    plain = len(description).to_bytes(4, "little") + description + data.source_ids.tobytes() + nibbles.tobytes()
    body = lzma.compress(plain, format=lzma.FORMAT_XZ, filters=_FILTERS)
    path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)


def read_packed(path: Path) -> PackedImages:
    """Read what ``write_packed`` wrote; ``DataFileError`` if the file is missing, cut or damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataFileError(_message(path, f"cannot be read ({error.strerror})")) from error
    start = len(MAGIC) + _DIGEST_BYTES
    if raw[: len(MAGIC)] != MAGIC:
        raise DataFileError(_message(path, "is not a data file of this version of ccp_fast"))
    digest, body = raw[len(MAGIC) : start], raw[start:]
    if hashlib.sha256(body).digest() != digest:
        raise DataFileError(_message(path, f"is cut or damaged (checksum of its {len(raw)} bytes differs)"))

    plain = lzma.decompress(body, format=lzma.FORMAT_XZ)
    images_at = 4 + int.from_bytes(plain[:4], "little")
    description = json.loads(plain[4:images_at])
    classes, per_class, height, width = description["shape"]
    source_ids = np.frombuffer(plain, np.uint8, classes * per_class, images_at)
    nibbles = np.frombuffer(plain, np.uint8, classes * per_class * height * width // 2, images_at + source_ids.size)
    images = np.stack([nibbles >> 4, nibbles & 15], axis=-1)
    return PackedImages(
        class_names=tuple(description["class_names"]),
        sources=tuple(description["sources"]),
        source_ids=source_ids.reshape(classes, per_class),
        images=images.reshape(classes, per_class, height, width),
    )


def _message(path: Path, what: str) -> str:
    return f"data file {path} {what}; reinstall ccp_fast, or restore the file from the repository"
