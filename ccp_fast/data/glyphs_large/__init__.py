"""``glyphs-large``: Chinese characters in text and brush faces, a real data set of the shape of SOP.

A class is a character, its 5 to 8 samples are typefaces, 32x32 in 16 grays. It is not in the package, because the
faces have licences of their own: ``ccp-data build glyphs-large`` draws it from Debian's font packages.

`faces`  which typefaces, and whose
`fonts`  fetching and unpacking the packages
`build`  drawing, choosing, and writing the set
`load`   reading it
"""

from __future__ import annotations

from ccp_fast.data.glyphs_large.load import FILE_NAME, glyphs_large

__all__ = ["FILE_NAME", "glyphs_large"]
