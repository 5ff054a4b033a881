"""Where the runs of each method come from: commit, versions, device and days."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from replora.reports.render.document import Block, Heading, Table
from replora.reports.runs import Group, Run, ordered

COMMIT_SHOWN = 8  # digits of a commit


def provenance_section(groups: Sequence[Group]) -> list[Block]:
    """Code, versions, machines and dates of each method."""
    rows = []
    for number, group in enumerate(groups, start=1):
        for method in group.methods:
            entries = _entries(run for run in group.runs if run.method == method)
            values = [distinct(e.get("git") for e in entries), *_versions(entries)]
            days = distinct(str(e.get("date", ""))[:10] for e in entries)
            rows.append([*([str(number)] if len(groups) > 1 else []), method, *values, days])
    columns = [*(["section"] if len(groups) > 1 else []), "method", "commit", "torch", "lightning", "device", "days"]
    return [Heading(2, "Where the numbers come from"), Table("provenance", "Code and machines", columns, rows)]


def origins(runs: Sequence[Run]) -> dict[str, str]:
    """Method -> those of commit, versions and device in which the methods differ; empty texts if in none.

    Runs that diverged do not record them, and do not count.
    """
    found: dict[str, dict[str, str]] = {}
    for method in ordered({run.method for run in runs}):
        entries = _entries(run for run in runs if run.method == method and not run.diverged)
        if entries:
            code = distinct(str(e.get("git") or "not recorded")[:COMMIT_SHOWN] for e in entries)
            torch, lightning, device = _versions(entries)
            found[method] = {"commit": code, "torch": torch, "lightning": lightning, "on": device}
    parts = ("commit", "torch", "lightning", "on")
    differing = [part for part in parts if len({of[part] for of in found.values()}) > 1]
    return {method: ", ".join(f"{part} {of[part]}" for part in differing) for method, of in found.items()}


def _entries(runs: Iterable[Run]) -> list[dict[str, Any]]:
    return [entry for run in runs if (entry := run.results.get("fit") or run.results.get("test"))]


def _versions(entries: Sequence[dict[str, Any]]) -> list[str]:
    versions = [distinct(e.get("versions", {}).get(name) for e in entries) for name in ("torch", "lightning")]
    device = distinct(f"{e['accelerator']} {e.get('precision')}" for e in entries if "accelerator" in e)
    return [value or "not recorded" for value in (*versions, device)]


def distinct(values: Iterable[Any]) -> str:
    """The values without duplicates, sorted and joined by commas."""
    return ", ".join(sorted({str(value) for value in values if value}))
