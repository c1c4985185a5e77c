"""`ccp-train embed`: images in, vectors out."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from ccp_fast._system.files import check_writable, write_atomically
from ccp_fast.cli.errors import one_sentence
from ccp_fast.data.folders import SUFFIXES, image_files
from ccp_fast.data.image_files import ImageFiles
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import load_model
from ccp_fast.training.inputs.broken import without_broken
from ccp_fast.training.workers import worker_count

log = logging.getLogger(__name__)


def embed(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a best.safetensors.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option(help="File for the vectors, in NumPy's format.")] = Path("vectors.npy"),
    device: Annotated[str, typer.Option(help="Device to compute on: cpu, cuda or cuda:1.")] = "cpu",
    skip_broken: Annotated[
        bool,
        typer.Option(
            "--skip-broken", help="Try all files before, and leave out those that cannot be decoded."
        ),
    ] = False,
) -> None:
    """Write the vectors of images. They are float32 [n, dim], to be compared by Euclidean distance.

    The path of each row stands in a .txt beside them.
    """
    with one_sentence():
        names = _list_beside(out)
        paths = tuple(str(path) for path in _files(images))
        model = load_model(run, device)
        files = ImageFiles(Path(), paths, torch.zeros(len(paths), dtype=torch.int64), ("",))
        if skip_broken:
            files = without_broken(files, worker_count(None), log.warning)
            if not len(files):
                raise UserError(f"images: expected some that can be decoded, got none of {len(paths)}")
        vectors = model.embed(files)
        file = io.BytesIO()
        np.save(file, vectors.cpu().numpy())
        write_atomically(out, file.getvalue())
        listed = "".join(f"{path}\n" for path in files.paths)
        write_atomically(names, listed.encode("utf-8", "surrogateescape"))
        print(f"{out}: {vectors.shape[0]} vectors of {vectors.shape[1]} dimensions")


def _list_beside(out: Path) -> Path:
    """The file for the paths. UserError where it would be the vectors' own, CannotWrite where one cannot be written."""
    if out.suffix.lower() == ".txt":
        raise UserError(
            f"--out: expected a file such as vectors.npy, got {out}, where the paths of the rows go"
        )
    check_writable(out)
    names = out.with_suffix(".txt")
    check_writable(names)
    return names


def _files(given: list[Path]) -> list[Path]:
    """Files as they are given, and those in folders by name. UserError for a path that is neither, or no image."""
    found = []
    for path in given:
        if os.path.isdir(path):
            try:
                found += sorted(image_files(path))
            except OSError as error:
                raise UserError(
                    f"images: {error.filename or path} cannot be read: {error.strerror}"
                ) from None
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise UserError(f"images: {path} is neither a file nor a folder")
    if not found:
        raise UserError(f"images: expected {', '.join(SUFFIXES)} in {', '.join(map(str, given))}, got none")
    return found
