from __future__ import annotations

import pytest

from replora.evaluation.choice_counts import ChoiceCounts, accuracies


def test_the_mean_weighs_tasks_alike_and_leaves_out_those_without_questions():
    counts = ChoiceCounts(["boolq", "piqa", "ARC-Easy"])
    for right in (True, False, False, False):
        counts.update("ARC-Easy", {"items": 1, "right": right, "unparsed": not right})
    counts.update("boolq", {"items": 1, "right": True})
    found = accuracies(counts.compute(), {"accuracy": "right", "unparsed": "unparsed"})
    assert list(found["tasks"]) == ["boolq", "ARC-Easy"]
    assert found["tasks"]["ARC-Easy"]["items"] == 4
    assert found["mean"] == {"accuracy": pytest.approx((1 + 0.25) / 2), "unparsed": pytest.approx(0.75 / 2)}
