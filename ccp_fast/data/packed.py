"""The file format of the glyph sets: 4-bit gray images, compressed, with a checksum.

Layout: ``MAGIC`` (8 bytes), the SHA-256 of everything after it (32 bytes), then one xz stream of, in order:

- the length of the description (uint32, little-endian); the description (JSON: class names, sources, shape, and the
  sizes of the classes where they differ);
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
    """A data set on the disk is missing, incomplete or damaged. The message names the file and what to do."""


@dataclass(frozen=True)
class PackedImages:
    """Decoded contents of a file, class after class."""

    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    sizes: npt.NDArray[np.int64]  # [C] images of each class
    source_ids: npt.NDArray[np.uint8]  # [n]
    images: npt.NDArray[np.uint8]  # [n, height, width], 0..15, height even


def packed(data: PackedImages, preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """The content of a file, with a preset of xz. The same data and the same liblzma give the same bytes."""
    about: dict[str, object] = {"class_names": data.class_names, "sources": data.sources}
    if len(set(data.sizes.tolist())) == 1:
        about |= {"shape": (len(data.sizes), int(data.sizes[0]), *data.images.shape[1:])}
    else:
        about |= {"shape": data.images.shape, "sizes": data.sizes.tolist()}
    description = json.dumps(about, ensure_ascii=False).encode()
    pairs = (data.images[..., 0::2, :] << 4) | data.images[..., 1::2, :]
    plain = len(description).to_bytes(4, "little") + description + data.source_ids.tobytes() + pairs.tobytes()
    body = lzma.compress(plain, preset=preset)
    return MAGIC + hashlib.sha256(body).digest() + body


def read_packed(path: Path, remedy: str) -> PackedImages:
    """Read what ``packed`` made; ``DataFileError``, with the remedy, if it is missing, cut or damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataFileError(f"data file {path} cannot be read ({error.strerror}); {remedy}") from error
    start = len(MAGIC) + _DIGEST_BYTES
    magic, digest, body = raw[: len(MAGIC)], raw[len(MAGIC) : start], raw[start:]
    if magic != MAGIC:
        raise DataFileError(f"data file {path} does not begin with {MAGIC!r}; {remedy}")
    if hashlib.sha256(body).digest() != digest:
        raise DataFileError(
            f"data file {path} is cut or damaged: the checksum of its {len(raw)} bytes differs; {remedy}"
        )

    plain = lzma.decompress(body)
    images_at = 4 + int.from_bytes(plain[:4], "little")
    description = json.loads(plain[4:images_at])
    *counts, height, width = description["shape"]
    sizes = description["sizes"] if "sizes" in description else [counts[1]] * counts[0]
    source_ids = np.frombuffer(plain, np.uint8, sum(sizes), images_at)
    pairs = np.frombuffer(plain, np.uint8, offset=images_at + source_ids.size)
    pairs = pairs.reshape(-1, height // 2, 1, width)
    images = np.concatenate([pairs >> 4, pairs & 15], axis=-2)
    return PackedImages(
        class_names=tuple(description["class_names"]),
        sources=tuple(description["sources"]),
        sizes=np.array(sizes, dtype=np.int64),
        source_ids=source_ids,
        images=images.reshape(-1, height, width),
    )
