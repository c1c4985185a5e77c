"""Draws ``glyphs-large``: step by step in a draft folder, so that an interrupted build goes on where it stopped.

    OUT/.draft/fonts/PACKAGE/   unpacked packages
    OUT/.draft/faces/NAME.npz   what a face draws, for all characters
    OUT/licenses/               notices of the packages, and a table of the faces
    OUT/glyphs_large.bin        written last, in one go: where it is, the set is whole

1. Every character is drawn in every face. What a face's cmap claims is not believed: a blank image means "not drawn",
   and so does an image that occurs three times or more within the face (a placeholder).
2. A character that is drawn differently by at least 5 faces is a class. Equal images count once.
3. Its samples are the first 5, 6, 7 or 8 faces, or as many as there are, by the hash of (character, face).
4. The classes lie in the file in the order of the hash of their character.

The same fonts, Pillow and FreeType give the same file, however often the build was interrupted.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ImageFont

from ccp_fast._system.files import sync_tree, write_atomically
from ccp_fast._system.lock import only_process
from ccp_fast.data.drawing import PLACEHOLDER_COUNT, SIZE, Face, draw, drawn_with, rank, write_notices
from ccp_fast.data.glyphs_large.faces import CHARACTERS, FACES
from ccp_fast.data.glyphs_large.fonts import VERSION, unpack
from ccp_fast.data.glyphs_large.load import FILE_NAME, read
from ccp_fast.data.packed import DataFileError, PackedImages, packed

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Drawn = npt.NDArray[np.uint8]  # [characters, SIZE, SIZE], 0..15; blank where the face has no image

CHUNK = 500  # characters that a process draws at a time


@dataclass(frozen=True)
class Recipe:
    """What a set is made of."""

    faces: tuple[Face, ...] = FACES
    characters: tuple[str, ...] = CHARACTERS
    smallest: int = 5  # images of a class
    largest: int = 8


RECIPE = Recipe()


def build(
    out: Path, recipe: Recipe, *, packages: Path | None = None, jobs: int = 1, say: Progress
) -> PackedImages:
    """Build the set in the folder `out`, or read it if it is there already.

    Raises DataFileError for packages that cannot be had and for a folder in which another process builds; CannotWrite
    or OSError where the disk is full or not to be written. What was done by then is kept and used by the next attempt.
    """
    draft = out / ".draft"
    if (out / FILE_NAME).exists():
        shutil.rmtree(draft, ignore_errors=True)  # a build may have been stopped right before its end
        return read(out)
    draft.mkdir(parents=True, exist_ok=True)
    with only_process(draft, DataFileError(f"{out} is being built by another process")):
        fonts = _unpack_all(recipe.faces, draft / "fonts", packages, say)
        files = _draw_all(recipe, fonts, draft / "faces", jobs, say)
        say("choosing", 0, 1)
        data = _choose(recipe, files)
        _write_notices(out / "licenses", recipe.faces, fonts)
        say("compressing", 0, 1)
        write_atomically(
            out / FILE_NAME, packed(data, preset=1)
        )  # 9 takes ten times as long for a tenth of the size
    shutil.rmtree(draft)
    return data


def _unpack_all(faces: Sequence[Face], folder: Path, packages: Path | None, say: Progress) -> dict[str, Path]:
    """Where each package lies."""
    names = sorted({face.package for face in faces})
    found = {}
    for count, name in enumerate(names):
        say("fetching fonts", count, len(names))
        found[name] = unpack(name, folder, packages)
    return found


def _draw_all(recipe: Recipe, fonts: dict[str, Path], folder: Path, jobs: int, say: Progress) -> list[Path]:
    """A file for each face. A file that is there, and was drawn from the same font in the same way, is kept."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{face.name}.npz" for face in recipe.faces]
    total = len(files) * len(recipe.characters)
    with _processes(jobs) as pool:
        for count, (face, file) in enumerate(zip(recipe.faces, files, strict=True)):
            done = count * len(recipe.characters)
            say("drawing", done, total)
            root = fonts[face.package] / "usr/share/fonts"
            key = _key(recipe, root / face.file, face)
            if _key_of(file) == key:
                continue
            parts = []
            for part in _draw_in(pool, face, root, recipe.characters):
                parts.append(part)
                say("drawing", done + sum(map(len, parts)), total)
            _save(file, key, np.concatenate(parts))
    return files


@contextmanager
def _processes(jobs: int) -> Iterator[Executor | None]:
    """None where one job is wanted, which needs no other process."""
    if jobs == 1:
        yield None
        return
    # Started afresh: a fork of a process that has run torch may hang. Ctrl-C is for the parent, which stops them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield pool


def _draw_in(pool: Executor | None, face: Face, root: Path, characters: Sequence[str]) -> Iterator[Drawn]:
    chunks = [characters[i : i + CHUNK] for i in range(0, len(characters), CHUNK)]
    if pool is None:
        yield from (_draw_chunk(face, root, chunk) for chunk in chunks)
        return
    drawn = [pool.submit(_draw_chunk, face, root, chunk) for chunk in chunks]
    try:
        for part in drawn:
            yield part.result()
    finally:
        for part in drawn:
            part.cancel()


def _draw_chunk(face: Face, root: Path, characters: Sequence[str]) -> Drawn:
    font = _open(face, root)
    drawn = np.zeros((len(characters), SIZE, SIZE), dtype=np.uint8)
    for i, character in enumerate(characters):
        glyph = draw(font, character)
        if glyph is not None:
            drawn[i] = glyph
    return drawn


@lru_cache(maxsize=1)
def _open(face: Face, root: Path) -> ImageFont.FreeTypeFont:
    try:
        return face.open(root)
    except OSError as error:
        raise DataFileError(
            f"{face.package}: {face.file} cannot be used ({error}); these packages differ from those of Debian 12"
        ) from None


def _key(recipe: Recipe, font: Path, face: Face) -> str:
    """Of all that what a face draws depends on."""
    content = hashlib.sha256(font.read_bytes()).hexdigest() if font.exists() else "missing"
    parts = [content, str(face.index), drawn_with(), "".join(recipe.characters)]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _key_of(file: Path) -> str | None:
    """None if there is no such file or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as content:
            content["drawn"]  # the archive checks what it reads
            return str(content["key"])
    except Exception:  # what a damaged archive raises depends on where the damage is
        return None


def _save(file: Path, key: str, drawn: Drawn) -> None:
    archive = io.BytesIO()
    np.savez_compressed(archive, key=np.array(key), drawn=drawn)
    write_atomically(file, archive.getvalue())


def _load(file: Path) -> Drawn:
    with np.load(file, allow_pickle=False) as content:
        drawn: Drawn = content["drawn"]
        return drawn


def _choose(recipe: Recipe, files: Sequence[Path]) -> PackedImages:
    """Classes and samples. Of the faces one is in memory at a time, of the others only what tells images apart."""
    digests = [_digests(_load(file)) for file in files]
    classes: list[tuple[str, list[int]]] = []  # character, positions of its faces
    place = {character: i for i, character in enumerate(recipe.characters)}
    for character in sorted(recipe.characters, key=rank):
        samples = _samples(recipe, character, [d[place[character]] for d in digests])
        if len(samples) >= recipe.smallest:
            classes.append((character, samples))
    if not classes:
        raise DataFileError(
            f"expected characters that {recipe.smallest} faces draw, got none: the fonts are not those of Debian 12"
        )
    sizes = np.array([len(samples) for _, samples in classes])
    source_ids = np.concatenate([samples for _, samples in classes]).astype(np.uint8)
    rows = np.repeat([place[character] for character, _ in classes], sizes)
    images = np.empty((len(rows), SIZE, SIZE), dtype=np.uint8)
    for face, file in enumerate(files):
        chosen = source_ids == face
        images[chosen] = _load(file)[rows[chosen]]
    return PackedImages(
        class_names=tuple(character for character, _ in classes),
        sources=tuple(face.name for face in recipe.faces),
        sizes=sizes,
        source_ids=source_ids,
        images=images,
    )


def _digests(drawn: Drawn) -> list[bytes | None]:
    """What tells images apart, None for a blank and for a placeholder."""
    found = [hashlib.sha256(glyph.tobytes()).digest() if glyph.any() else None for glyph in drawn]
    seen = Counter(found)
    return [None if seen[digest] >= PLACEHOLDER_COUNT else digest for digest in found]


def _samples(recipe: Recipe, character: str, digests: Sequence[bytes | None]) -> list[int]:
    """Positions of the faces of a character, none if fewer than the smallest class has."""
    faces = recipe.faces
    chosen: dict[bytes, int] = {}
    for i in sorted(range(len(faces)), key=lambda i: rank(character, faces[i].name)):
        digest = digests[i]
        if digest is not None:
            chosen.setdefault(digest, i)
    if len(chosen) < recipe.smallest:
        return []
    wanted = recipe.smallest + rank(character)[-1] % (recipe.largest - recipe.smallest + 1)
    return list(chosen.values())[:wanted]


def _write_notices(folder: Path, faces: Sequence[Face], fonts: dict[str, Path]) -> None:
    docs = folder.with_name(".draft") / "doc"
    shutil.rmtree(docs, ignore_errors=True)
    versions = {}
    for package, content in fonts.items():
        (docs / package).mkdir(parents=True)
        shutil.copyfile(content / "usr/share/doc" / package / "copyright", docs / package / "copyright")
        versions[package] = (content / VERSION).read_text(encoding="utf-8")
    write_notices(folder, faces, docs, versions, README.format(file=FILE_NAME, drawn_with=drawn_with()))
    sync_tree(folder)


README = """\
# Typefaces of glyphs-large

`{file}` holds images of characters drawn with the typefaces below, taken from Debian's packages, with
{drawn_with}. No font file is kept here.
Each notice is the copyright file of its Debian package, unchanged. Some of these faces are under licences that ask
something of those who pass on works made from them (GPL, Arphic Public License): read the notices before you
distribute the set. Thanks to those who drew these faces and gave them away.

Written by `ccp-data build glyphs-large`; do not edit by hand.
"""
