"""Packing golden vectors and reading them back."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import numpy as np
import pytest
from golden.pack_golden import pack


def write(folder: Path, name: str, **arrays: np.ndarray) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    meta = np.array(json.dumps({"flags": {"K": 2}}))
    np.savez_compressed(folder / name, meta=meta, **arrays)


def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    write(tmp_path, "peer/b.npz", x=x)
    write(tmp_path, "peer/a.npz", x=x, x_f64=x.astype(np.float64))
    first, second = tmp_path / "first.tar.xz", tmp_path / "second.tar.xz"
    assert pack(tmp_path, first) == pack(tmp_path, second) == 2
    assert first.read_bytes() == second.read_bytes()

    monkeypatch.setattr(golden, "FILE", first)
    golden._files.cache_clear()
    try:
        assert golden.names() == ["peer/a", "peer/b"]
        assert golden.names("*/b", "*/c") == ["peer/b"]
        case = golden.load("peer/a")
        assert case.flags == {"K": 2}
        assert case.best("x").dtype == np.float64
        assert golden.load("peer/b").best("x").dtype == np.float32
        np.testing.assert_array_equal(case["x"], x)
    finally:
        golden._files.cache_clear()


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected golden vectors"):
        pack(tmp_path, tmp_path / "out.tar.xz")
