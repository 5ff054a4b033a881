"""The tasks of the benchmarks, in the order of their published tables."""

from __future__ import annotations

from collections.abc import Iterable

from replora.datasets.image.fgvc import FGVC_TASKS
from replora.datasets.text.commonsense import COMMONSENSE_TASKS
from replora.datasets.vtab.dataset import VTAB_TASKS

BENCHMARKS = {"vtab": list(VTAB_TASKS), "fgvc": list(FGVC_TASKS), "commonsense": list(COMMONSENSE_TASKS)}


def ordered_tasks(tasks: Iterable[str]) -> list[str]:
    """Tasks in the order of published tables; other tasks follow by name."""
    places = {task: place for place, task in enumerate(task for tasks in BENCHMARKS.values() for task in tasks)}
    return sorted(tasks, key=lambda task: (places.get(task, len(places)), task))
