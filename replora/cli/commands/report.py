"""`replora-cli report`: tables and pictures of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from replora.io import check_output


def report(
    runs: list[str] | str,
    out: Path = Path("report"),
    overwrite: bool = False,
    format: Literal["page", "latex"] = "page",
    all_tasks: bool = False,
    reference: str | None = None,
) -> None:
    """Make tables and pictures of finished runs: Markdown, CSV, PNG and one HTML page with everything in it.

        replora-cli report runs/quickstart_low_data --out report
        replora-cli report runs/a runs/b results/digits --out report
        replora-cli report runs/quickstart_low_data --reference "linear probe" --out report_probe

    The report is made from results.json files alone. It begins with the outcome of each comparison. It has benchmark
    tables, accuracy against the amount of data, the amount of data with which one method reaches another, paired
    differences, learning rates, learning curves, and separate tables of published results. Runs under different
    conditions are in different sections, and runs on the two tracks of VTAB-1K cannot be in one report.

    Args:
        runs: Directories of runs (searched recursively), results.json files, or .jsonl files of earlier reports,
            also compressed by gzip (.jsonl.gz).
        out: Directory of the report. It replaces the files of an earlier report there.
        overwrite: Whether to write into a directory that holds anything else; files of the same names are replaced.
        format: latex also writes each table as LaTeX (.tex, package booktabs) and each picture as PDF and SVG.
        all_tasks: Whether means over tasks include those that are trained on at most one example per ten classes.
        reference: The method that all others are compared with, by its name in the tables, such as DoRA. Default, and
            in tables that do not have it: LoRA.
    """
    from replora.reports.report import is_report, write_report

    sources = [Path(run) for run in ([runs] if isinstance(runs, str) else runs)]
    # A report can be made again from its own runs.jsonl, which then holds the same runs.
    inside = [run for run in sources if (run if run.is_dir() else run.parent).resolve() == out.resolve()]
    read = [] if is_report(out) else inside
    check_output(out, overwrite, read, folder=True, is_own=is_report)
    files = write_report(sources, out, format=format, all_tasks=all_tasks, reference=reference)
    print(f"report: {files[1]}")
