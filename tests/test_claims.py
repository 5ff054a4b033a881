"""docs/claims.md quotes the reports in results/ word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "](../results/" in line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_a_row_quotes_the_report_it_links(row: str) -> None:
    reports = [(ROOT / "docs" / link).read_text(encoding="utf-8") for link in re.findall(r"\]\(([^)]+\.md)\)", row)]
    quotes = re.findall(r"(?<!\*)\*([^*|]+)\*", row)
    assert quotes
    assert all(any(quote in report for report in reports) for quote in quotes)


def test_every_figure_of_a_row_is_a_quote() -> None:
    """Apart from sizes of the data, which stand in the column before."""
    for row in ROWS:
        result = row.split(" | ")[2]
        unquoted = re.sub(r"(?<!\*)\*[^*|]+\*", "", result)
        assert not re.search(r"\d\.\d", unquoted), unquoted


def test_the_commands_name_configurations_that_are_packaged() -> None:
    named = set(re.findall(r"\b((?:sweep/|adapter/)?\w+\.yaml)", PAGE))
    assert len(named) > 6
    assert all((ROOT / "configs" / name).is_file() for name in named)
