"""`replora-cli report`: tables and pictures of finished runs."""

from __future__ import annotations

from pathlib import Path


def report(runs: list[str] | str, out: Path = Path("report")) -> None:
    """Make tables and pictures of finished runs: Markdown, CSV, PNG and one HTML page with everything in it.

        replora-cli report runs/quickstart_low_data --out report
        replora-cli report runs/a runs/b results/digits --out report

    Reads only results.json files. Makes benchmark tables, accuracy against the amount of data, the amount of data with
    which one method reaches another, paired differences, learning rates and learning curves; published rows are apart.
    Runs under different conditions are in different sections. The two tracks of VTAB-1K cannot be in one report.

    Args:
        runs: Directories of runs (searched recursively), results.json files, or .jsonl files of earlier reports.
        out: Directory of the report. It replaces the files of an earlier report.
    """
    from replora.reports.report import write_report

    sources = [Path(run) for run in ([runs] if isinstance(runs, str) else runs)]
    files = write_report(sources, out)
    print(f"report: {files[1]}")
