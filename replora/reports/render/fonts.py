"""Names in pictures: drawn in a font of this machine that has their characters, or else written with escapes.

A picture names what its user named: classes, tasks, files. matplotlib's own font has no Chinese, Japanese or Korean
characters and few emoji; it would warn and draw boxes that all look alike.
"""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

INVISIBLE = "\u200b\u200c\u200d\u2060\ufe0e\ufe0f\ufeff"  # joiners and selectors within emoji
LONGEST = 24
PLACEHOLDERS = "Last Resort"  # name of fonts that have a box for each character


def pyplot(texts: Iterable[str] = ()) -> Any:
    """matplotlib's pyplot for pictures in files.

    Args:
        texts: What the picture names. Call it before a figure is created: its texts take the fonts of that moment.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    use_fonts_for(texts)
    from matplotlib import pyplot as plt

    return plt


def use_fonts_for(texts: Iterable[str]) -> None:
    """Let new figures use fonts of this machine for characters that matplotlib's font does not have.

    Characters that no font has are named in the log.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    wanted = {ord(c) for text in texts for c in text if c.isprintable() and c not in INVISIBLE and c != " "}
    missing = wanted - _covered()
    for entry in fontManager.ttflist if missing else ():
        if entry.name not in mpl.rcParams["font.family"] and missing & _characters(entry.fname):
            mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], entry.name]
            missing -= _covered()
    if missing:
        listed = ", ".join(f"{chr(code)} ({_escaped(chr(code))})" for code in sorted(missing)[:5])
        log.warning(
            "No font of this machine has %s%s: pictures show what is in brackets. A font such as Noto Sans CJK or Noto "
            "Emoji draws them.",
            listed,
            f" and {len(missing) - 5} more characters" if len(missing) > 5 else "",
        )


def drawable(text: str) -> str:
    """A text whose characters the fonts in use have; others are escaped: `猫` -> `\\u732b`, `🐈` -> `:cat:`.

    A dollar sign starts no formula. What grows beyond `LONGEST` characters by escapes is cut.
    """
    text = text.replace("$", r"\$")
    if text.isascii() and text.isprintable():
        return text
    covered = _covered()
    kept = (c for c in text if c not in INVISIBLE)
    shown = "".join(c if c == " " or (c.isprintable() and ord(c) in covered) else _escaped(c) for c in kept)
    most = max(LONGEST, len(text))
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _escaped(character: str) -> str:
    """A readable name of a symbol, or the number of any other character."""
    name = unicodedata.name(character, "")
    if unicodedata.category(character) == "So" and name:
        return f":{name.lower().replace(' ', '_')}:"
    return character.encode("ascii", "backslashreplace").decode() if character.isprintable() else ascii(character)[1:-1]


def _covered() -> frozenset[int]:
    """Characters of the fonts in use."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont

    fonts = (findfont(FontProperties(family=[family])) for family in rcParams["font.family"])
    return frozenset().union(*(_characters(str(font)) for font in fonts))


@functools.cache
def _characters(file: str) -> frozenset[int]:
    """Characters that a font file can draw: none for color bitmaps, such as most fonts of emoji, and placeholders."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return frozenset()
    usable = font.scalable and PLACEHOLDERS not in font.family_name
    return frozenset(font.get_charmap()) if usable else frozenset()
