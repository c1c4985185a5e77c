"""The embedded data set ``glyphs``: what it holds, that it never changes, and what a bad file says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont
from torch import Tensor

from ccp_fast.data import DataFileError, ImageSet, build_glyphs, drawing, glyphs
from ccp_fast.data.packed import MAGIC, PackedImages, packed, read_packed

DATA = Path(build_glyphs.__file__).parent
FILE = DATA / "glyphs.bin"
SPLITS = {"train": 800, "val": 200, "test": 500, "trainval": 1000, "all": 1500}


@pytest.fixture(scope="module")
def everything() -> ImageSet:
    return glyphs("all")


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


# What is in it


@pytest.mark.parametrize("split", SPLITS)
def test_split_has_its_classes_with_eight_typefaces_each(split):
    data = glyphs(split)
    num_classes = SPLITS[split]
    assert data.num_classes == num_classes == len(set(data.class_names))
    assert len(data) == 8 * num_classes
    assert data.images.shape == (8 * num_classes, 1, 32, 32)
    assert (data.images.dtype, data.labels.dtype, data.source_ids.dtype) == (
        torch.uint8,
        torch.int64,
        torch.int64,
    )
    assert torch.equal(data.labels.bincount(), torch.full((num_classes,), 8))
    for label in (0, num_classes // 2, num_classes - 1):
        assert data.source_ids[data.labels == label].unique().numel() == 8


def test_train_val_and_test_share_no_class_and_make_up_all(everything):
    train, val, test = (glyphs(split) for split in ("train", "val", "test"))
    assert train.class_names + val.class_names + test.class_names == everything.class_names
    assert glyphs("trainval").class_names == train.class_names + val.class_names
    assert torch.equal(torch.cat([train.images, val.images, test.images]), everything.images)


def test_images_and_split_never_change(everything):
    """Published figures rest on these bytes: a set that differs in one needs another name."""
    assert sha256(everything.images.numpy().tobytes(), everything.source_ids.numpy().tobytes()) == (
        "15f9ef5b60fa4aac3a5bf0449b3d721dff2d9556dc616dc0a0b3e602bd6a40ba"
    )
    assert sha256("".join(everything.class_names).encode()) == (
        "857b7b3f5d5220cace15d7350f175c89fe0048b35fb842ec016a1b93c1c14ab7"
    )
    assert glyphs("test").class_names[:4] == ("汀", "卑", "候", "学")


def test_classes_and_samples_follow_the_documented_rule(everything):
    assert list(everything.class_names) == sorted(everything.class_names, key=drawing.rank)
    assert everything.sources == tuple(face.name for face in build_glyphs.FACES)
    chosen = [build_glyphs.choose_faces(name) for name in everything.class_names]
    assert everything.source_ids.view(-1, 8).tolist() == chosen


def test_every_face_is_used_about_equally_often(everything):
    counts = everything.source_ids.bincount(minlength=len(everything.sources))
    assert counts.min() > 600
    assert counts.max() < 800


def test_images_are_gray_centred_whole_and_all_different(everything):
    images = everything.images[:, 0]
    assert set(images.unique().tolist()) == {17 * gray for gray in range(16)}
    rows, columns = images.amax(dim=2) > 0, images.amax(dim=1) > 0
    for inked in (rows, columns):
        first = inked.int().argmax(dim=1)
        last = 31 - inked.flip(1).int().argmax(dim=1)
        assert first.min() >= 1, "ink touches the border: clipped"
        assert last.max() <= 30, "ink touches the border: clipped"
        assert ((first + last - 31).abs() <= 2).all(), "not centred"
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == len(everything), "placeholder or copy"


def test_no_class_holds_near_copies(everything):
    """Two faces of one character may look alike, but not as if one were made from the other."""
    pixels = torch.nn.functional.normalize(everything.images.flatten(1).float(), dim=1).view(1500, 8, -1)
    cosine = pixels @ pixels.mT - 2 * torch.eye(8)
    assert cosine.max() < 0.97


def test_raw_pixels_are_a_fair_but_weak_embedding():
    """Nearest neighbours by pixels are right about every second time: neither trivial nor noise."""
    test = glyphs("test")
    recall_at_1, map_at_r = retrieval(test.images.flatten(1).float(), test.labels, 7)
    assert recall_at_1 == pytest.approx(0.541, abs=0.002)
    assert map_at_r == pytest.approx(0.199, abs=0.002)


def retrieval(embeddings: Tensor, labels: Tensor, positives: int) -> tuple[float, float]:
    """Recall@1 and MAP@R where every query has ``positives`` other images of its class."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    neighbours = (unit @ unit.T).fill_diagonal_(-2).topk(positives).indices
    hits = (labels[neighbours] == labels[:, None]).double()
    precision = hits.cumsum(1) / torch.arange(1, positives + 1)
    return hits[:, 0].mean().item(), (hits * precision).mean().item()


# Its use


def test_tensors_are_new_at_every_call(everything):
    changed = glyphs("val")
    changed.images.zero_()
    changed.labels.zero_()
    changed.source_ids.zero_()
    again = glyphs("val")
    assert torch.equal(again.images, everything.images[6400:8000])
    assert again.labels.max() == 199
    assert torch.equal(again.source_ids, everything.source_ids[6400:8000])


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"split: expected one of 'train', 'val', .*, got 'training'"):
        glyphs("training")


# The file


def expect_clear_error(path: Path) -> None:
    with pytest.raises(DataFileError) as caught:
        read_packed(path, "reinstall ccp_fast")
    message = str(caught.value)
    assert str(path) in message
    assert "reinstall ccp_fast" in message
    assert "\n" not in message


@pytest.mark.parametrize("kept", [0, 5, len(MAGIC), 30, 40, 1000, -1])
def test_cut_file_is_refused(tmp_path, kept):
    path = tmp_path / "cut.bin"
    path.write_bytes(FILE.read_bytes()[:kept])
    expect_clear_error(path)


@pytest.mark.parametrize("position", [0, 7, 8, 39, 40, 41, 500_000, -1])
def test_one_flipped_bit_is_refused(tmp_path, position):
    raw = bytearray(FILE.read_bytes())
    raw[position] ^= 1
    path = tmp_path / "damaged.bin"
    path.write_bytes(raw)
    expect_clear_error(path)


def test_missing_file_and_folder_in_its_place_are_refused(tmp_path):
    expect_clear_error(tmp_path / "missing.bin")
    expect_clear_error(tmp_path)


def test_glyphs_reports_its_own_file(tmp_path, monkeypatch):
    # The package exports the function under the module's name, so the module is reached through the function.
    monkeypatch.setitem(glyphs.__globals__, "FILE", tmp_path / "glyphs.bin")
    with pytest.raises(DataFileError, match=r"glyphs\.bin cannot be read \(No such file or directory\)"):
        glyphs("train")


@pytest.mark.parametrize("sizes", [[2, 2, 2], [1, 4, 2]])
def test_what_is_written_is_read_back(tmp_path, sizes):
    random = np.random.default_rng(0)
    written = PackedImages(
        class_names=("一", "two", "3"),
        sources=("a", "b"),
        sizes=np.array(sizes),
        source_ids=random.integers(0, 2, sum(sizes), dtype=np.uint8),
        images=random.integers(0, 16, (sum(sizes), 6, 5), dtype=np.uint8),
    )
    path = tmp_path / "small.bin"
    path.write_bytes(packed(written))
    read = read_packed(path, "")
    assert (read.class_names, read.sources) == (written.class_names, written.sources)
    np.testing.assert_array_equal(read.sizes, written.sizes)
    np.testing.assert_array_equal(read.source_ids, written.source_ids)
    np.testing.assert_array_equal(read.images, written.images)
    assert packed(read) == path.read_bytes()


# How it is made (the fonts themselves are not needed here)


def test_candidates_are_the_kanji_of_the_standard():
    characters = build_glyphs.candidates()
    assert len(characters) == len(set(characters)) == 6355
    assert characters[0] == "亜"
    assert all("\u4e00" <= c <= "\u9fff" for c in characters)


def test_drawing_looks_at_the_ink():
    font = ImageFont.load_default(size=112)
    assert drawing.draw(font, " ") is None
    bar = drawing.draw(font, "|")
    assert bar is not None
    inked = np.flatnonzero(bar.any(axis=1))
    assert (inked[0], inked[-1]) == (2, 29)  # 28 pixels of ink in the middle of 32


def test_placeholders_are_dropped():
    # The default font has none of these three characters: all give the same box.
    drawn = drawing.draw_all(ImageFont.load_default(size=112), ["亜", "唖", "娃", "A", "B", " "])
    assert set(drawn) == {"A", "B"}


def test_every_face_is_credited_with_a_free_licence_and_its_notice():
    licenses = DATA / "glyphs_licenses"
    table = (licenses / "README.md").read_text(encoding="utf-8")
    for face in build_glyphs.FACES:
        assert face.licence in {"public domain", "BSD-3-Clause", "MIT", "OFL-1.1"}
        assert f"| {face.name} | `{Path(face.file).name}` | {face.package} |" in table
        notice = (licenses / face.notice).read_text(encoding="utf-8")
        assert f"License: {face.licence.replace(' ', '-')}" in notice
    notices = {face.notice for face in build_glyphs.FACES}
    assert {path.name for path in licenses.iterdir()} == notices | {"README.md"}
