"""The order of tasks in published tables."""

from __future__ import annotations

from collections.abc import Iterable

from replora.datasets.image.fgvc import FGVC_TASKS
from replora.datasets.vtab.dataset import VTAB_TASKS

# Commonsense tasks in the order of published tables -> their short names.
COMMONSENSE_COLUMNS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HellaS.",
    "winogrande": "WinoG.",
    "ARC-Easy": "ARC-e",
    "ARC-Challenge": "ARC-c",
    "openbookqa": "OBQA",
}


def benchmark_tasks() -> dict[str, list[str]]:
    """The tasks of each benchmark in the order of published tables."""
    return {"vtab": list(VTAB_TASKS), "fgvc": list(FGVC_TASKS), "commonsense": list(COMMONSENSE_COLUMNS)}


def ordered_tasks(tasks: Iterable[str]) -> list[str]:
    """Tasks as published tables have them, others by name."""
    known = [task for tasks_there in benchmark_tasks().values() for task in tasks_there]
    places = {task: place for place, task in enumerate(known)}
    return sorted(tasks, key=lambda task: (places.get(task, len(places)), task))
