"""Pack a folder of golden vectors, `source/case.npz`, into `golden.tar.xz`.

    python pack_golden.py FOLDER [golden.tar.xz]

The arrays are stored raw inside the archive, so that xz finds what cases share. Same input, same bytes.
"""

from __future__ import annotations

import argparse
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np


def raw_npz(path: Path) -> bytes:
    """The file's arrays without their own compression."""
    out = io.BytesIO()
    with np.load(path, allow_pickle=False) as stored:
        np.savez(out, **{key: stored[key] for key in stored.files})
    return out.getvalue()


def pack(folder: Path, target: Path) -> int:
    """Write every `source/case.npz` below the folder to the target; returns their number."""
    cases = sorted(folder.glob("*/*.npz"))
    if not cases:
        raise SystemExit(f"{folder}: expected golden vectors source/case.npz, found none")
    with tarfile.open(target, "w:xz", preset=9 | lzma.PRESET_EXTREME) as archive:
        for case in cases:
            content = raw_npz(case)
            member = tarfile.TarInfo(case.relative_to(folder).as_posix())
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return len(cases)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).with_name("golden.tar.xz"))
    arguments = parser.parse_args()
    count = pack(arguments.folder, arguments.target)
    print(f"{arguments.target}: {count} cases, {arguments.target.stat().st_size / 1e6:.2f} MB")
