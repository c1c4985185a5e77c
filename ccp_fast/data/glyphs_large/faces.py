"""The typefaces of ``glyphs-large``: one face of each design.

Left out, because they draw the same ink: Droid Sans Fallback (as WenQuanYi Micro Hei), cwTeX Kai (as AR PL UKai), the
other faces of Ume (as Ume Gothic or Ume Mincho), Unifont JP (as Unifont), and bold or regional faces of Noto CJK.
"""

from __future__ import annotations

from ccp_fast.data.drawing import Face

_NOTO = "opentype/noto/Noto{}CJK-Regular.ttc"
_CWTEX = "truetype/cwtex/cw{}.ttf"
_KOUZAN = "truetype/kouzan-mouhitsu/{}.ttf"
_UME = "truetype/horai-umefont/ume-{}.ttf"

FACES = (
    Face("noto-sans", _NOTO.format("Sans"), "fonts-noto-cjk", "OFL-1.1", index=2),  # Simplified Chinese
    Face("noto-serif", _NOTO.format("Serif"), "fonts-noto-cjk", "OFL-1.1", index=2),
    Face("hanazono-mincho", "truetype/hanazono/HanaMinA.ttf", "fonts-hanazono", "OFL-1.1"),
    Face(
        "wqy-zen-hei",
        "truetype/wqy/wqy-zenhei.ttc",
        "fonts-wqy-zenhei",
        "GPL-2.0-only WITH Font-exception-2.0",
    ),
    Face("wqy-micro-hei", "truetype/wqy/wqy-microhei.ttc", "fonts-wqy-microhei", "Apache-2.0"),
    Face("ar-pl-uming", "truetype/arphic/uming.ttc", "fonts-arphic-uming", "Arphic-1999"),
    Face("ar-pl-ukai", "truetype/arphic/ukai.ttc", "fonts-arphic-ukai", "Arphic-1999"),
    Face("unifont", "opentype/unifont/unifont.otf", "fonts-unifont", "GPL-2.0-or-later"),
    Face("seto", "truetype/seto/setofont.ttf", "fonts-seto", "OFL-1.1"),
    Face("cwtex-fangsong", _CWTEX.format("fs"), "fonts-cwtex-fs", "GPL-2.0-or-later"),
    Face("cwtex-hei-bold", _CWTEX.format("heib"), "fonts-cwtex-heib", "GPL-2.0-or-later"),
    Face("cwtex-ming", _CWTEX.format("ming"), "fonts-cwtex-ming", "GPL-2.0-or-later"),
    Face("cwtex-yen", _CWTEX.format("yen"), "fonts-cwtex-yen", "GPL-2.0-or-later"),
    Face("kouzan-kaisho", _KOUZAN.format("kouzan-mouhitsu"), "fonts-kouzan-mouhitsu", "public domain"),
    Face("kouzan-gyosho", _KOUZAN.format("kouzan-mouhitsu-gyosho"), "fonts-kouzan-mouhitsu", "public domain"),
    Face("kouzan-sosho", _KOUZAN.format("KouzanBrushFontSousyo"), "fonts-kouzan-mouhitsu", "public domain"),
    Face(
        "vl-gothic", "truetype/vlgothic/VL-Gothic-Regular.ttf", "fonts-vlgothic", "M+, Sazanami, BSD-3-Clause"
    ),
    Face("ume-gothic", _UME.format("tgo4"), "fonts-horai-umefont", "UmeFont"),
    Face("ume-mincho", _UME.format("tmo3"), "fonts-horai-umefont", "UmeFont"),
    Face("konatu", "truetype/konatu/Konatu.ttf", "fonts-konatu", "MIT"),
)

# The CJK Unified Ideographs of Unicode 1.1, which the eight largest faces draw nearly all of.
CHARACTERS = tuple(chr(point) for point in range(0x4E00, 0x9FA6))
