"""Stanford Online Products (Oh Song et al., CVPR 2016): 22,634 products for sale, 120,053 photographs.

Ebay_train.txt  Ebay_test.txt   image_id class_id super_class_id path, after one line of titles
bicycle_final/111085122871_0.JPG ...
"""

from __future__ import annotations

from pathlib import Path

from ccp_fast.data.image_files import ImageFiles
from ccp_fast.data.layout import Layout, Listed
from ccp_fast.data.splits import EvaluationSet, Parts

SOURCE = "https://cvgl.stanford.edu/projects/lifted_struct/"
PUBLISHED = {
    "training classes": 11_318,
    "training images": 59_551,
    "test classes": 11_316,
    "test images": 60_502,
}


def sop(root: Path | str, *, any_counts: bool = False) -> Parts:
    """The published division of the folder `Stanford_Online_Products`. DataFileError where it is not complete."""
    layout = Layout("SOP", Path(root), SOURCE)
    lists = [layout.find(name) for name in ("Ebay_train.txt", "Ebay_test.txt")]
    train, test = (_half(layout, path) for path in lists)
    return layout.parts(train, EvaluationSet(test), None if any_counts else PUBLISHED)


def _half(layout: Layout, path: Path) -> ImageFiles:
    rows = layout.rows(path, 4, skip=1)
    kind = "_final"  # what the names of the folders end in
    return layout.images(
        [
            Listed(image, f"{image.partition('/')[0].removesuffix(kind)} {product}")
            for _, product, _, image in rows
        ]
    )
