"""What the experiments share: finished runs, one JSON line each, and the tables of a page of docs."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replora.io import replace_text
from replora.results import write_json

ROOT = Path(__file__).parents[1]


def read_runs(file: Path) -> list[dict[str, Any]]:
    """All finished runs. The file is rewritten without a line that an interruption cut off."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, "".join(f"{line}\n" for line in lines))
    return [json.loads(line) for line in lines]


def add_run(file: Path, run: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(run, allow_nan=False) + "\n")


def made_by(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Commits, versions and platform of runs that have `environment_info()` under `made_by`."""
    made = [run["made_by"] for run in runs]
    commits = sorted({str(one["git"]) for one in made})
    return {"git": commits, "versions": made[0]["versions"], "platform": made[0]["platform"]}


def origin(content: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """What made a page, as a sentence."""
    versions, commits = content["versions"], ", ".join(str(commit)[:8] for commit in content["git"])
    return (
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), made by `{content['command']}` at commit {commits} "
        f"with Python {versions['python']} and torch {versions['torch']}."
    )


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between `<!-- table NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: The page has no place of such a name.
    """
    for name, text in parts.items():
        marks = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, count = marks.subn(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"The page has {count} places <!-- table {name} -->, and one is expected.")
    return page


def options(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs", name, "runs.jsonl"))
    parser.add_argument("--report", action="store_true", help="write results and page from what has been run")
    parser.add_argument("--quick", action="store_true", help="the least that runs, to try the script")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / name)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / f"{name}.md")
    return parser


def write_page(given: argparse.Namespace, name: str, content: Mapping[str, Any], parts: Mapping[str, str]) -> None:
    """Write the results, and their tables into the page."""
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / f"{name}.json", dict(content))
    replace_text(given.page, filled(given.page.read_text(encoding="utf-8"), parts))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose first column holds words, the others numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def short(value: float) -> float | None:
    """Four digits; None for what is not finite."""
    return float(f"{value:.4g}") if abs(value) < float("inf") else None
