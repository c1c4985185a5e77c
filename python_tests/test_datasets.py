"""Data sets as distributed: what is read of each, and what is said where something is missing or wrong."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import image_trees
import numpy as np
import pytest
import tiny_training
import torch
from image_trees import picture

pytest.importorskip("safetensors")

from ccp_fast.data import DataFileError, ImageFiles, Parts
from ccp_fast.data.cars import PUBLISHED as CARS
from ccp_fast.data.cars import cars
from ccp_fast.data.cub import PUBLISHED as CUB
from ccp_fast.data.cub import cub
from ccp_fast.data.folders import folders
from ccp_fast.data.inshop import PUBLISHED as INSHOP
from ccp_fast.data.inshop import inshop
from ccp_fast.data.sop import PUBLISHED as SOP
from ccp_fast.data.sop import sop
from ccp_fast.training import datasets
from ccp_fast.training.errors import UserError


def summary(images: object) -> list[tuple[str, str]]:
    assert isinstance(images, ImageFiles)
    return [
        (images.class_names[label], path) for label, path in zip(images.labels, images.paths, strict=True)
    ]


def assert_shows(images: object, index: int, label: int, sample: int) -> None:
    """The image at an index is that of `image_trees`, as far as JPEG keeps it."""
    assert isinstance(images, ImageFiles)
    shown = images.image(index).permute(1, 2, 0).float()
    expected = torch.tensor(np.array(picture(label, sample))).float()
    assert (shown - expected).abs().mean() < 20
    assert (shown - torch.flip(expected, (0,))).abs().mean() > 40


# What is read


def test_sop(tmp_path: Path) -> None:
    parts = sop(image_trees.sop(tmp_path), any_counts=True)
    assert parts.val is None
    assert parts.test.gallery is None
    assert summary(parts.train) == [
        (f"{kind} {c + 1}", f"{kind}_final/{111085122871 + c}_{i}.JPG")
        for c, kind in enumerate(["coffee_maker", "bicycle", "coffee_maker"])
        for i in range(3)
    ]
    assert parts.train.labels.tolist() == parts.test.query.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert set(parts.train.class_names).isdisjoint(parts.test.query.class_names)
    assert_shows(parts.test.query, 4, 4, 1)
    assert parts.test.query.caption(4) == "coffee_maker 5: coffee_maker_final/111085122875_1.JPG"


def test_cub(tmp_path: Path) -> None:
    parts = cub(image_trees.cub(tmp_path), any_counts=True)
    assert parts.train.class_names == ("001.Bird_0", "002.Bird_1")
    assert parts.test.query.class_names == ("003.Bird_2", "004.Bird_3")
    assert summary(parts.test.query)[3] == ("004.Bird_3", "images/004.Bird_3/Bird_3_0001_8.jpg")
    assert_shows(parts.test.query, 3, 3, 1)


@pytest.mark.parametrize("kind", ["one list", "devkit", "devkit in the root"])
def test_cars(tmp_path: Path, kind: str) -> None:
    if kind == "one list":
        parts = cars(image_trees.cars(tmp_path), any_counts=True)
        assert parts.train.class_names == ("001 Car 0", "002 Car 0")
        assert summary(parts.test.query)[0] == ("003 Car 1", "car_ims/000005.jpg")
        assert_shows(parts.test.query, 3, 3, 1)
        assert (len(parts.train), len(parts.test.query)) == (4, 4)
    else:
        tree = image_trees.cars_devkit(tmp_path, folder="devkit" if kind == "devkit" else ".")
        parts = cars(tree, any_counts=True)
        assert parts.train.class_names == ("001 Car 0", "002 Car 1")
        assert summary(parts.test.query)[4] == ("003 Car 2", "cars_test/00005.jpg")
        assert_shows(parts.test.query, 3, 3, 1)
        assert (len(parts.train), len(parts.test.query)) == (8, 8)


@pytest.mark.parametrize("folder", ["devkit", "."])
def test_cars_with_the_list_of_the_other_form_beside_it(tmp_path: Path, folder: str) -> None:
    image_trees.cars(tmp_path)
    (tmp_path / "car_ims").rename(tmp_path / "elsewhere")
    with pytest.raises(DataFileError, match=r"/car_ims/000005.jpg is missing \(4 of 4 images are\)"):
        cars(tmp_path, any_counts=True)  # alone it says which form was meant
    image_trees.cars_devkit(tmp_path, folder=folder)
    assert summary(cars(tmp_path, any_counts=True).test.query)[4] == ("003 Car 2", "cars_test/00005.jpg")
    (tmp_path / "elsewhere").rename(tmp_path / "car_ims")
    assert summary(cars(tmp_path, any_counts=True).test.query)[0] == ("003 Car 1", "car_ims/000005.jpg")


@pytest.mark.parametrize("flat", [False, True])
def test_inshop(tmp_path: Path, flat: bool) -> None:
    parts = inshop(image_trees.inshop(tmp_path, flat=flat), any_counts=True)
    query, gallery = parts.test.query, parts.test.gallery
    assert gallery is not None
    assert parts.train.class_names == ("id_00000000", "id_00000001", "id_00000002")
    assert query.class_names == gallery.class_names == ("id_00000003", "id_00000004", "id_00000005")
    assert query.labels.tolist() == [0, 1, 2]
    assert gallery.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert_shows(query, 2, 5, 0)
    assert_shows(gallery, 5, 5, 2)
    assert parts.counts() == {
        "training classes": 3,
        "training images": 9,
        "test classes": 3,
        "query images": 3,
        "gallery images": 6,
    }


def test_folders_of_classes(tmp_path: Path) -> None:
    image_trees.folders(tmp_path / "flat", classes=3, samples=2)
    (tmp_path / "flat" / "class 00" / "notes.txt").write_text("not an image")
    (tmp_path / "flat" / ".thumbnails").mkdir()
    image_trees.save(tmp_path / "flat" / "class 02" / "deeper" / "a.JPEG", 2, 5)
    parts = folders(tmp_path / "flat")
    assert parts.train.class_names == ("class 00", "class 01")
    assert summary(parts.test.query) == [
        ("class 02", f"class 02/{name}") for name in ("0.png", "1.png", "deeper/a.JPEG")
    ]
    image_trees.folders(tmp_path / "two" / "train", classes=2, samples=1)
    image_trees.save(tmp_path / "two" / "test" / "other" / "0.png", 7, 0)
    parts = folders(tmp_path / "two")
    assert summary(parts.train) == [
        ("class 00", "train/class 00/0.png"),
        ("class 01", "train/class 01/0.png"),
    ]
    assert parts.test.query.class_names == ("other",)
    image_trees.save(tmp_path / "two" / "test" / "class 01" / "0.png", 7, 0)
    with pytest.raises(
        DataFileError, match="expected other classes to test than to train on, got 'class 01' in both"
    ):
        folders(tmp_path / "two")
    (tmp_path / "flat" / "empty").mkdir()
    with pytest.raises(DataFileError, match=r"expected images \(\.bmp, .*\) in .*/empty, got none"):
        folders(tmp_path / "flat")
    with pytest.raises(DataFileError, match="nowhere is not a folder"):
        folders(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataFileError, match="expected folders of classes to train on and to test"):
        folders(tmp_path / "none")


def test_folders_with_classes_to_validate_on(tmp_path: Path) -> None:
    for label, part in enumerate(("train", "train", "val", "val", "test")):
        for sample in range(2):
            image_trees.save(tmp_path / part / f"class {label}" / f"{sample}.png", label, sample)
    parts = folders(tmp_path)
    assert parts.train.class_names == ("class 0", "class 1")
    assert parts.test.query.class_names == ("class 4",)
    assert summary(parts.val) == [(f"class {c}", f"val/class {c}/{i}.png") for c in (2, 3) for i in range(2)]
    assert list(parts.counts().values()) == [2, 4, 2, 4, 1, 2]
    settings = ("data.name=folders", f"data.root={tmp_path}", "data.workers=0")
    splits = datasets.load_splits(tiny_training.config(*settings))
    assert splits.val is not None
    assert splits.val.query.class_names == ("class 2", "class 3")
    for broken in (tmp_path / "val" / "class 2").iterdir():
        broken.write_text("no image")
    config = tiny_training.config(*settings, "data.on_broken=skip").data
    assert summary(datasets.load_parts(config).val) == [("class 3", f"val/class 3/{i}.png") for i in range(2)]
    image_trees.save(tmp_path / "val" / "class 1" / "0.png", 1, 5)
    with pytest.raises(
        DataFileError, match="other classes to validate on than to train on, got 'class 1' in both"
    ):
        folders(tmp_path)
    (tmp_path / "val" / "class 1").rename(tmp_path / "val" / "class 4")
    with pytest.raises(
        DataFileError, match="other classes to validate on than to test, got 'class 4' in both"
    ):
        folders(tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataFileError, match=r"expected folders of classes in .*/val, got none"):
        folders(tmp_path)
    for missing in ("test", "train"):
        (tmp_path / missing).rename(tmp_path / "elsewhere")
        there = "train and val" if missing == "test" else "val and test"
        with pytest.raises(
            DataFileError, match=f"expected train and test in .*, and val beside them or not, got {there}$"
        ):
            folders(tmp_path)
        (tmp_path / "elsewhere").rename(tmp_path / missing)


def test_folders_within_a_class_that_are_links(tmp_path: Path) -> None:
    root = image_trees.folders(tmp_path / "set", classes=2, samples=1)
    image_trees.save(root / "class 01" / "z" / "deep" / "a.png", 1, 1)
    image_trees.save(tmp_path / "more" / "b.png", 1, 2)
    for link, to in {
        "another": tmp_path / "more",
        "again": tmp_path / "more",  # the same images
        "a": root / "class 01" / "z",  # images that are there already
        "z/circle": root / "class 01",
        "z/deep/all": root,  # with the other class
        "gone": tmp_path / "nowhere",
    }.items():
        (root / "class 01" / link).symlink_to(to)
    assert summary(folders(root).test.query) == [
        ("class 01", f"class 01/{path}") for path in ("0.png", "again/b.png", "z/deep/a.png")
    ]


# What is missing or wrong


class Published(NamedTuple):
    """A set that its authors give away."""

    title: str
    reader: Callable[..., Parts]
    tree: Callable[[Path], Path]
    counts: dict[str, int]
    file: str  # one that it needs
    host: str  # where it is to be had


EVERY = pytest.mark.parametrize(
    "one",
    [
        Published("SOP", sop, image_trees.sop, SOP, "Ebay_test.txt", "cvgl.stanford.edu"),
        Published("CUB-200-2011", cub, image_trees.cub, CUB, "image_class_labels.txt", "vision.caltech.edu"),
        Published(
            "Cars196", cars, image_trees.cars_devkit, CARS,
            "devkit/cars_test_annos_withlabels.mat", "github.com/pytorch/vision",
        ),
        Published(
            "In-shop", inshop, image_trees.inshop, INSHOP,
            "Eval/list_eval_partition.txt", "mmlab.ie.cuhk.edu.hk",
        ),
    ],
    ids=lambda one: one.title,
)  # fmt: skip


@EVERY
def test_counts_are_those_that_were_published(tmp_path: Path, one: Published) -> None:
    first, count = next(iter(one.counts.items()))
    counts = f"expected {count:,} {first}, got . in {re.escape(str(tmp_path))}; data.counts=any accepts that"
    with pytest.raises(DataFileError, match=f"^{one.title}: {counts}$"):
        one.reader(one.tree(tmp_path))
    assert one.reader(tmp_path, any_counts=True).counts().keys() == one.counts.keys()


@EVERY
def test_what_is_missing_is_named_with_where_to_get_the_set(tmp_path: Path, one: Published) -> None:
    with pytest.raises(
        DataFileError, match=rf"^{one.title}: .* is missing; the set is to be had from .*http.*{one.host}\S+$"
    ):
        one.reader(tmp_path)
    image = next(iter(sorted(one.tree(tmp_path).rglob("*.[jJ][pP][gG]"))))
    image.unlink()
    with pytest.raises(
        DataFileError, match=rf"^{one.title}: {re.escape(str(image))} is missing \(1 of .* images are\)"
    ):
        one.reader(tmp_path, any_counts=True)
    (tmp_path / one.file).unlink()
    name = Path(one.file).name
    with pytest.raises(DataFileError, match=rf"{name} is missing; the set is to be had from"):
        one.reader(tmp_path, any_counts=True)


@EVERY
def test_the_folder_that_was_meant_is_named(tmp_path: Path, one: Published) -> None:
    """An archive is often unpacked into a folder of its own, and that one given."""
    inside = one.tree(tmp_path / "as distributed")
    (tmp_path / "another").mkdir()
    with pytest.raises(
        DataFileError,
        match=rf"^{one.title}: .* is missing; did you mean the folder {re.escape(str(inside))}\?$",
    ):
        one.reader(tmp_path, any_counts=True)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that nobody may look into, root neither."""

    def close(folder: Path) -> None:
        for name in ("stat", "listdir", "scandir"):
            real = getattr(os, name)

            def guarded(path: Any, *rest: Any, real: Any = real, name: str = name, **named: Any) -> Any:
                if folder in Path(path).parents or (name != "stat" and folder == Path(path)):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return real(path, *rest, **named)

            monkeypatch.setattr(os, name, guarded)

    return close


def test_a_folder_that_nobody_may_look_into_is_passed_over(
    tmp_path: Path, closed: Callable[[Path], None]
) -> None:
    (tmp_path / "lost+found").mkdir()
    inside = image_trees.sop(tmp_path / "set")
    closed(tmp_path / "lost+found")
    with pytest.raises(
        DataFileError, match=rf"^SOP: .* is missing; did you mean the folder {re.escape(str(inside))}\?$"
    ):
        sop(tmp_path)


def test_a_root_that_nobody_may_look_into_is_told(tmp_path: Path, closed: Callable[[Path], None]) -> None:
    root = image_trees.folders(tmp_path / "set")
    closed(root)
    deeper = image_trees.folders(tmp_path / "deeper") / "class 03" / "inside"
    deeper.mkdir()
    closed(deeper)
    with pytest.raises(DataFileError, match=rf"{re.escape(str(deeper))} cannot be read: Permission denied$"):
        folders(tmp_path / "deeper")
    for reader in (sop, folders):
        with pytest.raises(
            DataFileError, match=rf"{re.escape(str(root))} cannot be read: Permission denied$"
        ):
            reader(root)


def test_the_published_counts() -> None:
    assert (SOP["training images"], SOP["test images"], sum(SOP.values())) == (59_551, 60_502, 142_687)
    assert CUB["training images"] + CUB["test images"] == 11_788
    assert CARS["training images"] + CARS["test images"] == 16_185
    assert INSHOP["training images"] + INSHOP["query images"] + INSHOP["gallery images"] == 52_712


def test_a_class_is_in_one_part_alone(tmp_path: Path) -> None:
    image_trees.sop(tmp_path)
    with (tmp_path / "Ebay_test.txt").open("a") as file:
        file.write("99 2 1 bicycle_final/111085122872_0.JPG\n")
    with pytest.raises(
        DataFileError, match=r"SOP: expected other classes to test than .*, got 'bicycle 2' in both"
    ):
        sop(tmp_path, any_counts=True)


@pytest.mark.parametrize("path", ["../outside.jpg", "/etc/passwd", "a/../../b.jpg", "a/../b.jpg"])
def test_no_list_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    image_trees.sop(tmp_path / "set")
    image_trees.save(tmp_path / "outside.jpg", 0, 0)
    with (tmp_path / "set" / "Ebay_train.txt").open("a") as file:
        file.write(f"99 99 1 {path}\n")
    with pytest.raises(DataFileError, match=f"SOP: expected paths below .* in its lists, got '{path}'"):
        sop(tmp_path / "set", any_counts=True)


def test_damaged_lists_are_told_with_the_line(tmp_path: Path) -> None:
    image_trees.sop(tmp_path / "sop")
    with (tmp_path / "sop" / "Ebay_train.txt").open("a") as file:
        file.write("\n17 4\n")
    with pytest.raises(DataFileError, match=r"Ebay_train.txt, line 12: expected 4 columns, got '17 4'"):
        sop(tmp_path / "sop", any_counts=True)
    (tmp_path / "sop" / "Ebay_train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match=r"Ebay_train.txt cannot be read"):
        sop(tmp_path / "sop", any_counts=True)
    image_trees.cub(tmp_path / "cub")
    (tmp_path / "cub" / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(DataFileError, match=r"image 2 of images.txt has no class"):
        cub(tmp_path / "cub", any_counts=True)
    image_trees.inshop(tmp_path / "inshop")
    with (tmp_path / "inshop" / "Eval" / "list_eval_partition.txt").open("a") as file:
        file.write("img/x.jpg id_1 valid\n")
    with pytest.raises(
        DataFileError, match=r"expected the status train, query or gallery, got 'valid' for img/x.jpg"
    ):
        inshop(tmp_path / "inshop", any_counts=True)


def test_damaged_matlab_files_are_told(tmp_path: Path) -> None:
    from scipy.io import savemat

    annotations = image_trees.cars(tmp_path) / "cars_annos.mat"
    whole = annotations.read_bytes()
    annotations.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataFileError, match=r"Cars196: .*cars_annos.mat cannot be read"):
        cars(tmp_path, any_counts=True)
    savemat(annotations, {"annotations": 1})
    with pytest.raises(DataFileError, match="expected the variable 'class_names', got none of that name"):
        cars(tmp_path, any_counts=True)
    savemat(annotations, {"annotations": 1, "class_names": 1})
    with pytest.raises(
        DataFileError, match="annotations with the field 'relative_im_path', got none of that name"
    ):
        cars(tmp_path, any_counts=True)
    image_trees.cars(tmp_path, classes=3)
    savemat(
        annotations,
        {
            "annotations": image_trees._structs([{"relative_im_path": "a.jpg", "class": 4}]),
            "class_names": image_trees._cells(["a", "b", "c"]),
        },
    )
    with pytest.raises(DataFileError, match=r"expected classes 1 to 3, got 4 for a.jpg"):
        cars(tmp_path, any_counts=True)


# By name


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("sop", image_trees.sop),
        ("cub", image_trees.cub),
        ("cars", image_trees.cars),
        ("inshop", image_trees.inshop),
        ("folders", image_trees.folders),
    ],
)
def test_every_name_of_the_settings_is_a_data_set(
    tmp_path: Path, name: str, tree: Callable[[Path], Path]
) -> None:
    tree(tmp_path)
    config = tiny_training.config(
        f"data.name={name}", f"data.root={tmp_path}", "data.counts=any", "data.val_share=0.4"
    )
    splits = datasets.load_splits(config)
    names = [set(s.class_names) for s in (splits.train, splits.val.query, splits.test.query)]
    assert all(names)
    assert len(set.union(*names)) == sum(map(len, names))  # disjoint
    if name != "folders":
        with pytest.raises(DataFileError, match=r"data.counts=any accepts that"):
            datasets.load_splits(tiny_training.config(f"data.name={name}", f"data.root={tmp_path}"))
    with pytest.raises(
        UserError, match=f"data.root: expected the folder of {name}: give it with --data-root"
    ):
        datasets.load_splits(tiny_training.config(f"data.name={name}"))
