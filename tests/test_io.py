"""Text that strangers chose, in the files that people open: no cell of a CSV file and no name in a page acts."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from replora.adapters.peft_format.model_card import model_card
from replora.cli.main import main
from replora.io import csv_text, markdown, read_csv, replace_text
from replora.reports.report import write_report
from tests.cli.test_own_data import TINY
from tests.fuzz import fuzz
from tests.reports.fake_results import result, write

FORMULAS = ["=1+1", "+cmd|'a'!A1", "-1+cmd|'a'!A1", "@SUM(A1)", "\tx", "\rx", '=HYPERLINK("http://x")', "'=1", "''=1"]
NUMBERS = ["-0.5", "+0.9", "-1e-05", "-3.4%", "-0.4 to +0.9", "-inf", "-", "0.25", "-0.4 (-1.1 to +0.2)", "-1,234"]
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "`code`",
    "[x](javascript:alert(1))",
    "![x](http://x)",
    "*a* _b_ ~~c~~",
    "a\n# b",
    "&lt;b&gt;",
    "$\\frac$",
    *FORMULAS,
]


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_is_marked_as_text(cell: str) -> None:
    ((shown, number),) = csv.reader(io.StringIO(csv_text([[cell, -0.5]])))
    assert shown == f"'{cell}"
    assert number == "-0.5"


@pytest.mark.parametrize("cell", [*NUMBERS, "cat", "a=b", "'quoted'", "x-y", ""])
def test_numbers_and_other_text_stay_as_they_are(cell: str) -> None:
    assert csv_text([["first", cell]]) == csv_text([["first", cell]]).replace("'-", "-").replace("'+", "+")
    assert next(csv.reader(io.StringIO(csv_text([["first", cell]]))))[1] == cell


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1))
@fuzz(200)
def test_cells_are_read_back(tmp_path: Path, rows: list[list[str]]) -> None:
    file = tmp_path / "a.csv"
    file.write_text(csv_text([["a", "=b"], *rows]), encoding="utf-8", newline="")
    assert [list(line.values()) for line in read_csv(file)] == rows
    assert all(list(line) == ["a", "=b"] for line in read_csv(file))


@given(st.text(alphabet="0123456789.,+-e%() to"))
@fuzz(200)
def test_what_is_only_numbers_is_told_at_once(cell: str) -> None:
    csv_text([[f"-{cell * 50}x"]])


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_names_as_they_are(name: str) -> None:
    text = markdown(name)
    assert "\n" not in text
    assert "<" not in text
    for mark in "|`[]*":
        assert text.count(mark) == text.count(f"\\{mark}")


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_report_of_hostile_names(name: str, tmp_path: Path) -> None:
    contents = []
    for method, score in (("LoRA", 0.5), (name, 0.6)):
        content = result(method, score, data={"task": name, "dataset": name}, sweep=None)
        contents.append(content | {"method": method, "backbone": {"name": name, "fingerprint": "f"}})
    write_report([write(tmp_path / "runs", contents)], tmp_path / "out")
    plain = [result("LoRA", 0.5, sweep=None), result("other", 0.6, sweep=None)]
    write_report([write(tmp_path / "plain" / "runs", plain)], tmp_path / "plain" / "out")
    pages = []
    for folder in (tmp_path / "out", tmp_path / "plain" / "out"):
        pages.append(Page())
        pages[-1].feed((folder / "report.html").read_text("utf-8"))
    assert pages[0].tags == pages[1].tags
    assert pages[0].attributes == pages[1].attributes
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "<" not in re.sub(r"</?(details|summary)>", "", text)  # the report's own
    for file in (tmp_path / "out").glob("*.csv"):
        with file.open(newline="", encoding="utf-8") as stream:
            cells = {cell for line in csv.reader(stream) for cell in line}
        assert not [cell for cell in cells if cell.strip() and cell[0] in "=@\t\r"], file


def test_a_model_card_of_hostile_names() -> None:
    counts = {"adapter_trained": 1, "adapter_deployed": 1, "head": 1, "backbone": 1}
    for name in HOSTILE:
        description = {"method": name, "options": {name: name}, "parameters": counts, "targets": []}
        card = model_card(
            description, name, name, name, name, {name: 0.5}, base_class="A", library="timm", usage="import timm"
        )
        _, head, body = card.split("---\n", 2)
        assert "<" not in body
        assert len(head.splitlines()) == 4


def test_predictions_of_hostile_classes_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["=1+1", "<script>", "-x|y", "$\\frac{$", "@a,b"]
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(names):
        for number in range(10):
            file = tmp_path / "=photos" / name / f"+{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (50 * place, 20 * number, 0)).save(file)
    main(["fit", "--config=image_folder.yaml", *TINY, "--data.root==photos", "--run_dir=run"])
    main(["predict", "--config=run/fit.yaml"])
    main(["plot", "run"])
    main(["predict-files", "run", "=photos", "--top_k=0", "--contact_sheet=sheet.png", "--progress=false"])
    for file in ("run/predictions.csv", "predictions.csv"):
        assert not [line for line in Path(file).read_text().splitlines() if line[0] in "=+-@" or ",=" in line]
    found = read_csv(Path("predictions.csv"))
    assert {Path(line["path"]).parent.name for line in found} == set(names)
    assert {line["predicted"] for line in found} <= set(names)
    assert {line["label_name"] for line in read_csv(Path("run/predictions.csv"))} == set(names)


def test_content_is_on_the_disk_before_a_file_gets_its_name(tmp_path, monkeypatch):
    """After a loss of power a file is the former one or the new one, never empty."""
    events = []
    monkeypatch.setattr(os, "fsync", lambda number: events.append(Path(f"/proc/self/fd/{number}").readlink()))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, file: (events.append("named"), rename(self, file))[1])
    replace_text(tmp_path / "a.txt", "text")
    content, named, folder = events
    assert content.name.startswith("a.txt.")
    assert named == "named"
    assert folder == tmp_path


def test_a_full_disk_that_is_found_at_the_end_is_named(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.txt").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt"):
        replace_text(tmp_path / "a.txt", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"
