"""`replora-cli report`: tables and pictures of finished runs."""

from __future__ import annotations

from pathlib import Path


def report(runs: list[str] | str, out: Path = Path("report")) -> None:
    """Make tables and pictures of finished runs: Markdown, CSV, PNG and one HTML page with everything in it.

        replora-cli report runs/quickstart_low_data --out report
        replora-cli report runs/a runs/b results/digits --out report

    Reads results.json files alone: benchmark tables, accuracy against the amount of data, the data that one method
    needs to reach another, paired differences, learning rates, learning curves, published rows apart. Runs under
    different conditions stand in different sections, and the two tracks of VTAB-1K are refused together.

    Args:
        runs: Directories of runs, searched with those inside; results.json files; .jsonl files of earlier reports.
        out: Directory of the report. Files of an earlier report in it are replaced.
    """
    from replora.reports.report import write_report

    sources = [Path(run) for run in ([runs] if isinstance(runs, str) else runs)]
    files = write_report(sources, out)
    print(f"report: {files[1]}")
