"""In-shop clothes retrieval of DeepFashion (Liu et al., CVPR 2016): 7,982 pieces, 52,712 photographs.

    Eval/list_eval_partition.txt   image_name item_id evaluation_status, after two lines: the count and titles
    Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg ...

Also with the list in the root or with the folder `img` there. Test images are queries or gallery.
"""

from __future__ import annotations

from pathlib import Path

from ccp_fast.data.layout import Layout, Listed
from ccp_fast.data.splits import EvaluationSet, Parts

SOURCE = "http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
PUBLISHED = {
    "training classes": 3_997,
    "training images": 25_882,
    "test classes": 3_985,
    "query images": 14_218,
    "gallery images": 12_612,
}


def inshop(root: Path | str, *, any_counts: bool = False) -> Parts:
    """The published division: queries are searched in the gallery. DataFileError where it is not complete."""
    layout = Layout("In-shop", Path(root), SOURCE)
    path = layout.find("Eval/list_eval_partition.txt", "list_eval_partition.txt")
    images = layout.find("Img/img", "img").parent.relative_to(layout.root)
    listed: dict[str, list[Listed]] = {"train": [], "query": [], "gallery": []}
    for image, item, status in layout.rows(path, 3, skip=2):
        if status not in listed:
            raise layout.error(
                f"{path}: expected the status train, query or gallery, got {status!r} for {image}"
            )
        listed[status].append(Listed(str(images / image), item))
    # Both number the items alike, also one that has no query or is not in the gallery.
    items = tuple(dict.fromkeys(entry.class_name for entry in listed["query"] + listed["gallery"]))
    query, gallery = (layout.images(listed[status], items) for status in ("query", "gallery"))
    train = layout.images(listed["train"])
    return layout.parts(train, EvaluationSet(query, gallery), None if any_counts else PUBLISHED)
