"""Tiny data sets on the disk, in the exact layout of those that are given away, with real image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(label: int, sample: int, size: tuple[int, int] = (48, 36)) -> Image.Image:
    """Four coloured squares of the class under noise of the sample."""
    squares = np.random.default_rng(label).integers(0, 256, (2, 2, 3))
    noise = np.random.default_rng([label, sample]).integers(-40, 40, (size[1], size[0], 3))
    rows, columns = np.arange(size[1]) * 2 // size[1], np.arange(size[0]) * 2 // size[0]
    return Image.fromarray((squares[rows][:, columns] + noise).clip(0, 255).astype(np.uint8))


def save(path: Path, label: int, sample: int, size: tuple[int, int] = (48, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(label, sample, size).save(path)


def sop(root: Path, classes: int = 6, samples: int = 3) -> Path:
    """Half of the classes in each list, whose lines end in a blank here and there, as in all lists below."""
    number = 0
    for part, labels in (("train", range(classes // 2)), ("test", range(classes // 2, classes))):
        lines = ["image_id class_id super_class_id path"]
        for label in labels:
            for sample in range(samples):
                number += 1
                kind = "bicycle" if label % 2 else "coffee_maker"
                path = f"{kind}_final/{111085122871 + label}_{sample}.JPG"
                save(root / path, label, sample)
                lines.append(f"{number} {label + 1} {1 + label % 2} {path}{' ' * (sample % 2)}")
        (root / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def cub(root: Path, classes: int = 4, samples: int = 2) -> Path:
    images, labels, names, number = [], [], [], 0
    for label in range(classes):
        name = f"{label + 1:03d}.Bird_{label}"
        names.append(f"{label + 1} {name}")
        for sample in range(samples):
            number += 1
            save(root / "images" / name / f"Bird_{label}_{sample:04d}_{number}.jpg", label, sample)
            images.append(f"{number} {name}/Bird_{label}_{sample:04d}_{number}.jpg{' ' * (sample % 2)}")
            labels.append(f"{number} {label + 1}")
    for file, lines in (("images", images), ("image_class_labels", labels), ("classes", names)):
        (root / f"{file}.txt").write_text("\n".join(lines) + "\n")
    (root / "train_test_split.txt").write_text("1 1\n")  # of another task, and not read
    return root


def _structs(rows: list[dict[str, object]]) -> np.ndarray:
    """As MATLAB keeps a struct array: 1 x N, every field an object."""
    table = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        for name, value in row.items():
            table[name][0, i] = value
    return table


def _cells(names: list[str]) -> np.ndarray:
    table = np.empty((1, len(names)), dtype=object)
    table[0, :] = names
    return table


BOX = {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 30, "bbox_y2": 31}


def cars(root: Path, classes: int = 4, samples: int = 2) -> Path:
    """With one list of all images."""
    from scipy.io import savemat

    rows: list[dict[str, object]] = []
    for label in range(classes):
        for sample in range(samples):
            path = f"car_ims/{len(rows) + 1:06d}.jpg"
            save(root / path, label, sample)
            rows.append({"relative_im_path": path, **BOX, "class": label + 1, "test": sample % 2})
    names = _cells([f"Car {label // 2}" for label in range(classes)])  # two of each name, as in the real one
    savemat(root / "cars_annos.mat", {"annotations": _structs(rows), "class_names": names})
    return root


def cars_devkit(root: Path, classes: int = 4, samples: int = 2, folder: str = "devkit") -> Path:
    """With a list of each half, both of which have all classes."""
    from scipy.io import savemat

    (root / folder).mkdir(parents=True, exist_ok=True)
    savemat(root / folder / "cars_meta.mat", {"class_names": _cells([f"Car {i}" for i in range(classes)])})
    for part, file in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        rows: list[dict[str, object]] = []
        for label in range(classes):
            for sample in range(samples):
                rows.append({**BOX, "class": label + 1, "fname": f"{len(rows) + 1:05d}.jpg"})
                save(root / f"cars_{part}" / str(rows[-1]["fname"]), label, sample)
        savemat(root / folder / f"{file}.mat", {"annotations": _structs(rows)})
    return root


def inshop(root: Path, items: int = 6, samples: int = 3, *, flat: bool = False) -> Path:
    """Half of the items to train on; of the others the first image is a query. `flat`: without Eval and Img."""
    lines = []
    for label in range(items):
        for sample in range(samples):
            path = f"img/WOMEN/Dresses/id_{label:08d}/{sample:02d}_1_front.jpg"
            save(root / ("" if flat else "Img") / path, label, sample)
            status = "train" if label < items // 2 else "gallery" if sample else "query"
            lines.append(f"{path}            id_{label:08d}          {status}{' ' * (12 - len(status))}")
    lists = root / ("" if flat else "Eval")
    lists.mkdir(exist_ok=True)
    text = "\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines])
    (lists / "list_eval_partition.txt").write_text(text + "\n")
    return root


def folders(root: Path, classes: int = 12, samples: int = 4) -> Path:
    for label in range(classes):
        for sample in range(samples):
            save(root / f"class {label:02d}" / f"{sample}.png", label, sample)
    return root
