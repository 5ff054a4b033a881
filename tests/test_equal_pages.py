"""The tables "Equal to, different from": each row says how it was checked, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What stands where no test can: a difference that is said, or a row that rests on descriptions.
UNCHECKED = ("not run side by side", "same file", "differs", "not comparable")
PAGES = ["images.md", "video.md", "vision_language.md", "commonsense.md"]


@pytest.mark.parametrize("page", PAGES)
def test_each_row_says_how_it_was_checked(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    tables = re.findall(r"^\| property \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert tables
    checks = [row.strip("|").split("|")[-1].strip() for table in tables for row in table.strip().splitlines()]
    assert len(checks) >= 12
    for check in checks:
        named = re.findall(r"`([\w/.]+\.(?:py|md|csv))`", check)
        assert named or any(words in check for words in UNCHECKED), check
        for name in named:
            assert (ROOT / "tests" / name).is_file() or (ROOT / name).is_file(), name
