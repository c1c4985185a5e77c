"""CUB-200-2011 (Wah et al., 2011): 200 kinds of birds, 11,788 photographs; the first 100 are trained on.

images.txt               image_id path
image_class_labels.txt   image_id class_id
classes.txt              class_id name
images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg ...
"""

from __future__ import annotations

from pathlib import Path

from ccp_fast.data.layout import Layout, Listed
from ccp_fast.data.splits import EvaluationSet, Parts

SOURCE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
PUBLISHED = {
    "training classes": 100,
    "training images": 5_864,
    "test classes": 100,
    "test images": 5_924,
}


def cub(root: Path | str, *, any_counts: bool = False) -> Parts:
    """The customary division of the folder `CUB_200_2011`. DataFileError where it is not complete."""
    layout = Layout("CUB-200-2011", Path(root), SOURCE)
    names = dict(layout.rows(layout.find("classes.txt"), 2))
    classes = dict(layout.rows(layout.find("image_class_labels.txt"), 2))
    half = len(names) // 2
    first = set(list(names)[:half])
    train: list[Listed] = []
    test: list[Listed] = []
    for image, path in layout.rows(layout.find("images.txt"), 2):
        number = classes.get(image)
        if number not in names:
            raise layout.error(
                f"image {image} of images.txt has no class in image_class_labels.txt and classes.txt"
            )
        (train if number in first else test).append(Listed(f"images/{path}", names[number]))
    found = EvaluationSet(layout.images(test))
    return layout.parts(layout.images(train), found, None if any_counts else PUBLISHED)
