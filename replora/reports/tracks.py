"""Results of the two tracks of VTAB-1K are never put into one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replora.errors import RepLoRAError


class MixedTracksError(RepLoRAError):
    """Results of different tracks were to be compared."""


def common_track(results: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The track that all results have in common; None for results of data without tracks.

    Args:
        results: name of a run -> content of its `results.json`.

    Raises:
        MixedTracksError: they have different tracks, or only some have one.
    """
    runs: dict[str | None, list[str]] = {}
    for name, content in results.items():
        runs.setdefault(content.get("data", {}).get("track"), []).append(name)
    if len(runs) > 1:
        listed = "\n".join(
            f"  {track or 'none recorded'}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for track, names in runs.items()
        )
        raise MixedTracksError(
            f"Results of different tracks do not go into one table: their images, resize filter and normalisation "
            f"differ.\n{listed}\nMake a table for each track, or repeat the runs with one --data.track."
        )
    return next(iter(runs), None)
