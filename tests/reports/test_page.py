"""The page of a report: its order, links, alignment, what it says beside rows, and its forms for papers."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from replora.cli.main import main
from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.reports.grouping import ReportError, group_runs
from replora.reports.render.document import Contents, Heading, Picture, Table, anchors, as_markdown
from replora.reports.render.latex import latex
from replora.reports.render.page import FIGURE_SPACE, POINT_SPACE, page
from replora.reports.report import write_report
from replora.reports.scores import Scores
from replora.reports.sections.benchmarks import benchmark_section
from tests.reports.fake_results import SIZES, result, row, write

OPTIONS = {"rank": 8, "factors": "mlp", "hidden": 16, "activation": "tanh"}


def contents() -> list[dict[str, Any]]:
    """Two methods, two sizes and three draws, selected by one seed on 200 labels; RepLoRA with another commit."""
    found = []
    for method, git in (("LoRA", "a" * 40), ("RepLoRA", "b" * 40)):
        for size in SIZES:
            runs = [result(method, 0.5 + seed / 100, size=size, seed=seed) for seed in range(3)]
            runs += [result(method, stage="select", rate=rate, validation=v, size=size) for rate, v in RATES.items()]
            for run in runs:
                run["fit"]["git"] = git
                run["options"] = OPTIONS if method == "RepLoRA" else {"rank": 8, "factors": "none"}
                run["data"]["split_sizes"] = {"val": 200, "test": 797}
                run["sweep"]["chosen_by"] = {"metric": "val/accuracy", "mode": "max"}
                if run["sweep"]["stage"] == "final":
                    run["sweep"]["chosen_by"]["means"] = {f"lr={rate:g}": v for rate, v in RATES.items()}
            found += runs
    return found


RATES = {0.01: 0.60, 0.02: 0.59, 0.04: 0.40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    write_report([write(place / "runs", contents())], place / "out", format="latex")
    return place / "out"


class Reader(HTMLParser):
    """The tags of a page; fails if they are not nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.order: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.order.append(str(found.get("class") or tag).split(" ")[0])
        self.links += [found["href"] or ""] if "href" in found else []
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_begins_with_the_answer_then_the_figure_then_its_limits(folder: Path) -> None:
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    first = [reader.order.index(name) for name in ("h1", "answer", "nav", "h2", "figure", "table")]
    assert first == sorted(first)
    assert reader.order.index("answer") == reader.order.index("h1") + 1
    words = (folder / "report.md").read_text(encoding="utf-8")
    assert (
        0 < words.index("> RepLoRA and LoRA: no significant") < words.index("(size.png)") < words.index("limits this")
    )
    assert words.index("limits this") < words.index("| method |")
    assert "**" not in words, "no bold captions"


def test_the_contents_and_the_runs_are_linked(folder: Path) -> None:
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    inside = [link.removeprefix("#") for link in reader.links if link.startswith("#")]
    assert inside
    assert set(inside) <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    runs = [link for link in reader.links if not link.startswith("#")]
    assert len(runs) == len(contents())
    assert all((folder / link / "results.json").is_file() for link in runs)
    assert "links.csv" not in {file.name for file in folder.iterdir()}


def test_headings_of_one_name_have_links_of_their_own() -> None:
    blocks = [Contents(), Heading(2, "Data, all"), Heading(3, "Needed"), Heading(2, "More"), Heading(3, "Needed")]
    assert [name for _, name in anchors(blocks)] == ["data-all", "needed", "more", "needed-1"]
    assert "  - [Needed](#needed-1)" in as_markdown(blocks)


def test_text_is_left_numbers_are_aligned_at_the_point() -> None:
    table = Table("t", "Caption", ["method", "size", "mean", "needs"], ROWS, note="A long note.")
    assert table.numeric == [False, False, True, True]
    html = page([table], "t")
    cells = re.findall(r'<td class="number">(.*?)</td>', html)[::2]
    assert cells == [f"{FIGURE_SPACE}7.5 ± 12.1", f"12.0 ± {FIGURE_SPACE}2.2", ""]
    assert "<th>size</th>" in html
    assert "<details><summary>How to read it</summary><p>A long note.</p></details>" in html
    assert "position: sticky; left: 0" in html, "the first column stays on narrow screens"
    whole = page([Table("t", "Caption", ["a", "b"], [["x", "7"], ["y", "7.25"]])], "t")
    assert re.findall(r'<td class="number">(.*?)</td>', whole) == [f"7{POINT_SPACE}{FIGURE_SPACE * 2}", "7.25"]
    assert "|---|---|---:|---:|" in as_markdown([table])


ROWS = [
    ["A", "1 % (8)", "7.5 ± 12.1", "at most 8"],
    ["B", "2 % (16)", "12.0 ± 2.2", "9.5 (1.2 x)"],
    ["C", "all", "", ""],
]


def test_a_table_in_latex() -> None:
    text = latex(Table("size", "Accuracy in %", ["a_b", "mean"], [["x & y", "-1.5 ± 2"]]))
    assert r"\begin{tabular}{lr}" in text
    assert r"a\_b & mean \\" in text
    assert r"x \& y & $-$1.5 $\pm$ 2 \\" in text
    assert r"\caption{Accuracy in \%.}" in text
    assert r"\label{tab:size}" in text


def test_a_report_for_a_paper(folder: Path, tmp_path: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    assert {"size.tex", "size_paired.tex", "size.pdf", "size.svg", "learning_rate.pdf"} <= names
    assert (folder / "size.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (folder / "size.svg").read_text(encoding="utf-8")
    main(["report", str(folder), f"--out={tmp_path / 'page'}"])
    assert not {file.suffix for file in (tmp_path / "page").iterdir()} & {".tex", ".pdf", ".svg"}
    main(["report", str(folder), f"--out={tmp_path / 'again'}", "--format=latex"])
    for name in ("size.pdf", "size.svg", "size.tex"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_what_limits_the_answer(folder: Path) -> None:
    words = (folder / "report.md").read_text(encoding="utf-8")
    assert "Options were selected on 200 validation labels with 1 seed; these labels are data too" in words
    assert "4 of 4 selections are noise: the next best point lies within one standard error." in words
    assert words.count("RepLoRA alone was tuned further: its default width and activation were selected on these") == 2
    assert "Methods come from different code, versions or devices." in words
    assert "The two were made with different code, versions or devices." in words
    lora, ours = row(folder, "size", method="LoRA"), row(folder, "size", method="RepLoRA")
    assert (lora["made with"], ours["made with"]) == ("commit aaaaaaaa", "commit bbbbbbbb")
    assert {"10 % (80 + 200)", "100 % (800 + 200)"} <= lora.keys(), "training labels + validation labels"
    choice = row(folder, "choices", method="LoRA", size="10 %")
    assert (choice["learning rate"], choice["remark"], choice["seeds"]) == ("0.01", "noise, lowest", "1")


def test_rates_that_no_run_selected_are_named(tmp_path: Path) -> None:
    """Two runs at one rate look like a comparison; that nothing chose the rate is what limits it most."""
    given = [result("LoRA", rate=0.02), result("LoRA", rate=0.005, seed=1), result("DoRA"), result("linear probe")]
    unknown = given[3]
    unknown["fit"]["optimizer"] = unknown["sweep"]["grid"] = {}  # so nothing is said of its rate
    write_report([write(tmp_path / "runs", given)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "- No runs here selected these learning rates (LoRA: 0.005, 0.02; DoRA: 0.01). At one rate for all" in words
    selecting = [result("LoRA", stage="select", rate=rate) for rate in (0.005, 0.02)]
    write_report([write(tmp_path / "more", [*given[1:], *selecting])], tmp_path / "again")
    assert "rates (DoRA: 0.01)." in (tmp_path / "again" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["fashion_mnist"], "these validation images"),
        (
            ["letters", "sprites_location", "fashion_mnist"],
            "validation images of 2 of these tasks, fashion_mnist, sprites_location",
        ),
        (["letters"], "validation images of other data (Digits, SmallImages)"),
    ],
)
def test_the_tasks_on_which_replora_alone_was_tuned(tmp_path: Path, tasks: list[str], said: str) -> None:
    ours = {"options": {"rank": 8, "factors": "mlp", "activation": "tanh", "hidden": 16}}
    runs = [
        result(method, data={"dataset": "SmallImages", "task": task}, stage=stage) | (ours if method != "LoRA" else {})
        for task in tasks
        for method in ("LoRA", "RepLoRA")
        for stage in ("select", "final")
    ]
    write_report([write(tmp_path / "runs", runs)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"width and activation were selected on (.*?) \(sweep/", words)) == {said}


def test_sizes_in_parts_and_in_shots_do_not_say_the_same_twice(tmp_path: Path) -> None:
    write_report([Path(__file__).parents[2] / "results" / "quickstart"], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert words.count("There is one seed") == 1
    assert words.count("> RepLoRA and LoRA: no comparison, digits") == 1


def test_methods_of_one_origin_have_no_such_column(tmp_path: Path) -> None:
    write_report([write(tmp_path / "runs", [result("LoRA"), result("DoRA")])], tmp_path / "out")
    assert "made with" not in row(tmp_path / "out", "size", method="LoRA")
    assert "different code" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sharing", "shown"), [("tied", "rank 8, factors none, sharing tied"), ("group", "rank 8, factors none")]
)
def test_plain_lora_names_its_sharing_where_it_has_an_effect(sharing: str, shown: str, tmp_path: Path) -> None:
    options = {"rank": 8, "factors": "none", "hidden": None, "activation": "tanh", "sharing": sharing}
    write_report([write(tmp_path / "runs", [result("LoRA") | {"options": options}])], tmp_path / "out")
    assert row(tmp_path / "out", "methods", method="LoRA")["options"] == shown


def vtab_run(task: str, score: float, part: float, seed: int = 0, method: str = "LoRA") -> dict[str, Any]:
    data = {"dataset": "VTAB", "task": task, "track": "archive", "protocol": "final"}
    data |= {"num_classes": VTAB_TASKS[task].num_classes, "train_size": round(1000 * part)}
    return result(method, score, size=part, seed=seed, data=data)


def test_tasks_with_ten_classes_per_example_are_shown_and_in_no_mean(tmp_path: Path) -> None:
    """10 images: CIFAR, Caltech101, Flowers and SUN397 have 100 classes and more; the others count."""
    scarce = {"cifar", "caltech101", "oxford_flowers102", "sun397"}
    runs = [
        vtab_run(task, 0.9 if task in scarce else 0.5, part, seed, method)
        for task in VTAB_TASKS
        for part in (0.01, 0.1)
        for seed in (0, 1)
        for method in ("LoRA", "RepLoRA")
    ]
    (group,) = group_runs(runs)
    scores = Scores(group, shots=False)
    assert {task for task in scores.tasks if task not in scores.averaged} == scarce
    assert scores.average == "mean of 15 of 19 tasks"
    compared = scores.compare("RepLoRA", "LoRA", scores.sizes)
    assert compared
    assert compared.units == 15
    tables = {block.name: block for block in benchmark_section(group, "") if isinstance(block, Table)}
    few, more = tables["vtab_part_0.01"], tables["vtab_part_0.1"]
    assert (few.rows[0][1], few.rows[0][-1]) == ("90.0", "50.00")
    assert "Averages leave out cifar, caltech101, oxford_flowers102, sun397" in few.note
    assert more.rows[0][-1] == f"{100 * (4 * 0.9 + 15 * 0.5) / 19:.2f}"
    write_report([write(tmp_path / "runs", runs)], tmp_path / "out")
    words = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Means leave out cifar, caltech101, oxford_flowers102, sun397" in words
    assert "15 tasks of 2 draws, all sizes" in words
    main(["report", str(tmp_path / "runs"), f"--out={tmp_path / 'all'}", "--all_tasks=true"])
    words = (tmp_path / "all" / "report.md").read_text(encoding="utf-8")
    assert "19 tasks of 2 draws, all sizes" in words
    assert "leave out cifar" not in words


def test_sizes_may_select_on_parts_of_one_validation_list() -> None:
    """They stand in the section of their final runs, with the labels of each size; another list is another section."""
    runs = []
    for size, labels in ((0.1, 20), (1.0, 200)):
        for stage in ("final", "select"):
            run = result(stage=stage, size=size)
            run["sweep"]["size"]["data.select_fraction"] = size
            run["data"]["splits"] = {"train": {"size": SIZES[size], "sha256": "a" * 64}}
            if stage == "select":
                run["data"]["splits"]["val"] = {"size": labels, "sha256": "b" * 64}
                run["data"] |= {"select_fraction": size} if size < 1 else {}
            runs.append(run)
    (group,) = group_runs(runs)
    scores = Scores(group, shots=False)
    assert [scores.name(size) for size in scores.sizes] == ["10 % (80 + 20)", "100 % (800 + 200)"]
    assert scores.axis == "training examples"
    runs[1]["data"]["splits"]["val"]["sha256"] = "c" * 64
    assert len(group_runs(runs)) > 1


def test_all_of_the_data_has_no_rule_of_the_subset(tmp_path: Path) -> None:
    """A sweep over 10 and 100 % records the rule where there is a subset, and two rules still are two sweeps."""
    runs = [result(stage=stage, size=size) for size in (1.0, 0.1) for stage in ("final", "select")]
    runs[3]["data"]["subset_rule"] = "within_final"
    write_report([write(tmp_path / "runs", runs)], tmp_path / "out")
    assert "100 %" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    runs.append(result(stage="select", size=0.1, seed=1))
    with pytest.raises(ReportError, match=r"data.subset_rule is within_final in one and None in"):
        group_runs(runs)


def test_many_methods_have_one_answer(tmp_path: Path) -> None:
    names = ["LoRA", "RepLoRA", *(f"variant {n}" for n in range(6))]
    runs = [result(name, 0.5 + seed / 100, seed=seed) for name in names for seed in range(2)]
    write_report([write(tmp_path / "runs", runs)], tmp_path / "out")
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8").count("> RepLoRA and LoRA") == 1
    assert "> variant" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    with (tmp_path / "out" / "size_paired.csv").open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 7


def test_a_picture_without_a_note_has_none(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"x")
    assert "details" not in as_markdown([Picture(tmp_path / "p.png", "Caption")])
