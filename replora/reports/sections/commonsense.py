"""The table of the commonsense benchmark: one row per run, one column per task, an interval beside each accuracy.

If the results record which questions were answered correctly, a second table compares each run with the untuned model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError, nearest
from replora.evaluation.paired import paired
from replora.reports.render.document import Block, Heading, Table
from replora.reports.runs import UNTUNED, Group, ordered
from replora.results import UNTRAINED, read_results, status_of, weights_source

# Short names of the tasks, in the order of the published tables.
COLUMNS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HellaS.",
    "winogrande": "WinoG.",
    "ARC-Easy": "ARC-e",
    "ARC-Challenge": "ARC-c",
    "openbookqa": "OBQA",
}


class CommonsenseTableError(RepLoRAError):
    """Results that cannot be in one table, or that have no test."""


def commonsense_table(runs: Sequence[Path], metric: str | None = None) -> str:
    """The tests of runs as a Markdown table in the form of the papers: eight columns and their mean.

    Accuracies are in percent, each with its 95 % interval (Wilson) over the test questions. The mean is the unweighted
    mean over the tasks that were run. `trained` and `deployed` count the parameters of the adapter.

    If the untuned model is among the runs and their results hold `right` (see `right_answers`), a second table compares
    the other runs with it. Both models answered the same questions, so the paired test can find a difference even if
    the intervals overlap.

    Args:
        runs: Run directories or `results.json` files, in the order of the rows.
        metric: `accuracy`, `acc` or `acc_norm`. Default: `acc_norm` where it was measured (the preset `cloze`).

    Raises:
        CommonsenseTableError: Presets, evaluations, backbones or numbers of questions differ, a run has no test, or the
            metric was not measured.
    """
    contents = {str(run): read_results(Path(run)) for run in runs}
    _check_one_kind(contents)
    first = next(iter(contents.values()))["test"]
    known = list(first["mean"])
    chosen = metric or ("acc_norm" if "acc_norm" in known else known[0])
    if chosen not in known:
        raise CommonsenseTableError(f"metric: {chosen!r} was not measured. {nearest(chosen, known)}")
    lines = [
        f"| {chosen} | trained | deployed | {' | '.join(COLUMNS.values())} | mean |",
        "|---|" + "---|" * (len(COLUMNS) + 3),
        *(_row(content, chosen) for content in contents.values()),
    ]
    items = ", ".join(f"{COLUMNS[task]} {found['items']:,}" for task, found in _in_order(first["tasks"]).items())
    return "\n".join(lines) + f"\n\nTest questions: {items}.\n" + _paired(list(contents.values()), chosen)


def commonsense_section(group: Group, prefix: str) -> list[Block]:
    """Each run beside the untuned model on the same questions; empty without an untuned one or without the answers."""
    told = [run for run in group.final if "right" in run.results.get("test", {})]
    untuned = next((run for run in told if run.results["method"] == UNTUNED), None)
    if untuned is None:
        return []
    rows = [
        [run.method, str(run.size), str(run.seed), *cells]
        for run in sorted(told, key=lambda run: (ordered(group.methods).index(run.method), run.size, run.seed))
        if run.results["method"] != UNTUNED and run.status == "complete"
        for cells in _paired_rows(untuned.results["test"], run.results["test"], run.metric)
    ]
    if not rows:
        return []
    columns = ["method", "size", "seed", *PAIRED_COLUMNS]
    caption = f"Test {untuned.metric} of single runs against the untuned model, on the same questions"
    return [Heading(3, "Against the untuned model"), Table(f"{prefix}untuned", caption, columns, rows, PAIRED_NOTE)]


PAIRED_COLUMNS = ["task", "intervals", "gained", "lost", "p"]
PAIRED_NOTE = (
    "Gained and lost: questions answered rightly by the tuned model alone, and by the untuned one alone; p of the "
    "exact sign test."
)


def _paired_rows(untuned: dict[str, Any], tuned: dict[str, Any], metric: str) -> list[list[str]]:
    """A row per task: whether the intervals are apart, questions gained and lost, and p."""
    rows = []
    for task, found in _in_order(tuned["tasks"]).items():
        if task not in untuned["tasks"]:
            continue
        before, after = (test["right"][task][metric] for test in (untuned, tuned))
        if len(before) != len(after):
            continue
        counts = paired([answer == "1" for answer in before], [answer == "1" for answer in after])
        gained, lost, p = counts.second, counts.first, counts.p_value
        ends = f"{metric}_interval"
        apart = _apart(untuned["tasks"][task][ends], found[ends])
        shown = f"{p:.3f}" if p >= 0.001 else "< 0.001"
        rows.append([COLUMNS[task], "apart" if apart else "overlap", str(gained), str(lost), shown])
    return rows


def _paired(contents: list[dict[str, Any]], metric: str) -> str:
    """Compare each run with the untuned model, task by task; empty if the results do not record the answers."""
    told = [content for content in contents if "right" in content["test"]]
    untuned = next((content["test"] for content in told if weights_source(content["test"]) == UNTRAINED), None)
    tuned = [content for content in told if weights_source(content["test"]) != UNTRAINED]
    if untuned is None or not tuned:
        return ""
    lines = [f"\n| {' | '.join([f'{metric} against untuned', *PAIRED_COLUMNS])} |", "|---|---|---|---|---|---|"]
    for content in tuned:
        rows = _paired_rows(untuned, content["test"], metric)
        lines += [f"| {' | '.join([content['method'], *cells])} |" for cells in rows]
    return "\n".join(lines) + f"\n\n{PAIRED_NOTE}\n"


def _apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two intervals do not overlap."""
    return one[1] < other[0] or other[1] < one[0]


def _row(content: dict[str, Any], metric: str) -> str:
    test = content["test"]
    name, counts = content["method"], content["parameters"]
    numbers = [f"{counts['adapter_trained']:,}", f"{counts['adapter_deployed']:,}"]
    if weights_source(test) == UNTRAINED:
        name, numbers = "untuned", ["0", "0"]
    status = status_of(content, test.get("partial", []))
    name += "" if status == "complete" else f", {status}"
    cells = [_cell(test["tasks"].get(task), metric) for task in COLUMNS]
    return f"| {' | '.join([name, *numbers, *cells])} | {100 * test['mean'][metric]:.1f} |"


def _cell(found: dict[str, Any] | None, metric: str) -> str:
    if found is None:
        return ""
    low, high = found[f"{metric}_interval"]
    text = f"{100 * found[metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    if found.get("unparsed"):
        text += f", {100 * found['unparsed']:.1f} unparsed"
    return text


def _in_order(tasks: dict[str, Any]) -> dict[str, Any]:
    return {task: tasks[task] for task in COLUMNS if task in tasks}


def _check_one_kind(contents: dict[str, dict[str, Any]]) -> None:
    """Check that the runs have the same prompts, evaluation, backbone and questions."""
    if not contents:
        raise CommonsenseTableError("There is no run to make a table of.")
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for run, content in contents.items():
        test = content.get("test", {})
        if "tasks" not in test:
            raise CommonsenseTableError(
                f"{run} has no test of commonsense tasks. First: replora-cli test --config {run}/fit.yaml"
            )
        items = tuple((task, found["items"]) for task, found in _in_order(test["tasks"]).items())
        backbone = (content["backbone"]["name"], content["backbone"]["fingerprint"])
        kinds.setdefault((content["data"].get("preset"), test["evaluation"], *backbone, items), []).append(run)
    if len(kinds) > 1:
        listed = "\n".join(
            f"  preset {kind[0]}, by {kind[1]}, {kind[2]} ({kind[3]}), {dict(kind[4])}: {', '.join(names)}"
            for kind, names in kinds.items()
        )
        raise CommonsenseTableError(
            f"These runs cannot be in one table: their prompts, evaluation, backbone or questions differ.\n{listed}\n"
            "Make a table for each kind."
        )
