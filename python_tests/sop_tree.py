"""Stanford Online Products in small: its files and folders, with pictures of coloured patches."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def make_sop(root: Path, *, train: int = 6, test: int = 5, images: int = 5) -> Path:
    """A class is a pattern of 3×3 colours; its images are that under noise, in other sizes and one of them gray."""
    generator = torch.Generator().manual_seed(0)
    number, category = 0, "bicycle"
    (root / f"{category}_final").mkdir(parents=True)
    for file, first, count in (("Ebay_train.txt", 1, train), ("Ebay_test.txt", train + 1, test)):
        lines = ["image_id class_id super_class_id path"]
        for label in range(first, first + count):
            pattern = torch.rand(3, 3, 3, generator=generator)
            for i in range(images):
                number += 1
                width, height = 60 + 8 * i, 90 - 5 * label
                big = torch.nn.functional.interpolate(pattern[None], (height, width))[0]
                noisy = (0.7 * big + 0.3 * torch.rand(big.shape, generator=generator)) * 255
                picture = Image.fromarray(noisy.byte().permute(1, 2, 0).numpy())
                if i == 4:
                    picture = picture.convert("L")
                path = f"{category}_final/{label}_{i}.JPG"
                picture.save(root / path, "JPEG")
                lines.append(f"{number} {label} 1 {path}")
        (root / file).write_text("\n".join(lines) + "\n")
    return root
