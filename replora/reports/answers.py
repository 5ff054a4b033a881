"""The answers of language models to single questions: which of them were right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RIGHT = {"acc": "right", "acc_norm": "right_norm", "accuracy": "right"}  # metric -> field of an answer


def right_answers(predictions: Path, metrics: Sequence[str]) -> dict[str, dict[str, str]]:
    """Which questions were answered correctly, in few bytes: task -> metric -> one digit per question, 1 if correct.

    Args:
        predictions: The `predictions.jsonl` of a test. The digits are in the order of the questions in the task's file.
        metrics: Names of metrics. Those other than `accuracy`, `acc` and `acc_norm` are left out.
    """
    digits: dict[str, dict[str, str]] = {}
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    for answer in sorted(lines, key=lambda answer: answer["index"]):
        found = digits.setdefault(answer["task"], {name: "" for name in metrics if name in RIGHT})
        for name in found:
            found[name] += str(int(answer[RIGHT[name]]))
    return digits


def with_right_answers(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The results of a run, with the right answers of its test from the `predictions.jsonl` beside them.

    Its list of evaluations has them too, so that `stored` keeps them. A file of another test, or one that cannot be
    read, adds nothing.
    """
    test = content.get("test", {})
    if "tasks" not in test or "right" in test:
        return content
    try:
        found = right_answers(folder / "predictions.jsonl", list(test["mean"]))
        for task, measured in test["tasks"].items():
            for metric, digits in found[task].items():
                if len(digits) != measured["items"] or digits.count("1") != round(measured[metric] * measured["items"]):
                    return content
    except (OSError, ValueError, KeyError, TypeError):
        return content
    told = {**test, "right": found}
    evaluations = [told if evaluation is test else evaluation for evaluation in content.get("evaluations", [])]
    return {**content, "test": told} | ({"evaluations": evaluations} if evaluations else {})
