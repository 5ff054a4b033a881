"""Paired differences between methods: the answers at the head of a page, and the table behind them."""

from __future__ import annotations

from collections.abc import Sequence

from replora.reports.render.document import Answer, Block, Heading, Table
from replora.reports.runs import REFERENCE, Group, Size, counted
from replora.reports.scores import Scores
from replora.reports.sections.provenance import origins
from replora.reports.statistics import Comparison

# The method that is compared with the reference first.
FIRST = "RepLoRA"
ANSWERS = 6  # largest number of comparisons that all have an answer of their own
WORDS = ("no significant difference", "significantly better", "significantly worse")
RULE = "A difference is called significant if its 95 % interval by Student's t excludes 0"


def answer_section(group: Group, several: bool) -> list[Block]:
    """One answer per comparison with the reference; with many methods, that of RepLoRA alone (else of LoRA).

    Args:
        group: Runs of one table.
        several: Whether the report has other groups, so that an answer must name its own.
    """
    answers: list[Block] = []
    for shots in (False, True):
        scores = Scores(group, shots)
        if not scores.by_cell or not scores.tasks:
            continue
        reference, others = compared(scores)
        complete = {run.method for run in scores.runs if run.status == "complete"}
        others = [method for method in others if {method, reference} <= complete]
        shown = others if len(others) <= ANSWERS else [m for m in others if m in (FIRST, REFERENCE)][:1]
        answers += [_answer(scores, method, reference, group.title if several else "") for method in shown]
    return list(dict.fromkeys(answers))  # sizes in parts and in shots may have the same one


def paired_section(scores: Scores, name: str) -> list[Block]:
    """Each method minus the reference, at each size and over all sizes."""
    reference, others = compared(scores)
    several = len(scores.averaged) > 1
    rows = []
    for method in others:
        sizes = [(scores.name(size), [size]) for size in scores.sizes]
        if len(scores.sizes) > 1:
            common = scores.common_sizes(method, reference, scores.sizes)
            sizes.append((_all(scores, common), common))
        for label, chosen in sizes:
            found = scores.compare(method, reference, chosen)
            rows.append([f"{method} - {reference}", label, *comparison_cells(found, "task" if several else "seed")])
            if several:
                found = scores.compare_on(scores.average, method, reference, chosen)
                rows.append([f"{method} - {reference}", label, *comparison_cells(found, "seed", ", these tasks")])
    if not rows:
        return []
    pairs = "task and seed" if several else "seed"
    note = (
        f"Two runs of the same {pairs} have the same training data. {RULE}; the interval assumes about normal "
        "differences of independent units. "
        + (
            "With tasks as units it speaks about tasks like these, and contains the choice of tasks, training data, "
            "seeds and test examples. With seeds as units (these tasks) it speaks about these tasks alone. "
            if several
            else "It speaks about this task alone. "
        )
        + "With seeds as units it contains the draw of the training data and the seed, not the choice of the test "
        "examples; the column after it contains these too, at most: as if two methods erred on unrelated examples. "
        "p is of the two-sided sign-flip test, which needs no normal differences; it cannot be less than the least p, "
        "so with five units or fewer it cannot fall below 0.05 and decides nothing. Over all sizes a seed counts once, "
        "because its training sets are nested, and only if it has a pair at every size. No correction is made for the "
        "number of comparisons, nor for the selection of options."
    )
    columns = ["difference", "size", "units", "mean", "95 % interval", "with test examples", "wins / ties / losses"]
    caption = "Paired differences in percentage points"
    return [Heading(3, "Paired differences"), Table(f"{name}_paired", caption, [*columns, "p", "least p"], rows, note)]


def compared(scores: Scores) -> tuple[str, list[str]]:
    """The reference, and the other methods in the order of their comparisons with it."""
    reference = scores.reference if scores.reference in scores.methods else scores.methods[0]
    return reference, sorted((m for m in scores.methods if m != reference), key=lambda m: m != FIRST)


def comparison_cells(found: Comparison | None, unit: str, scope: str = "") -> list[str]:
    """Units, mean, interval, interval with test examples, wins / ties / losses, p and least p; blank without a pair."""
    if found is None:
        return [""] * 7
    return [
        f"{counted(found.units, unit)}{scope}",
        f"{100 * found.difference:+.1f}",
        "" if found.low is None or found.high is None else _interval(found.low, found.high),
        _interval(*found.total) if found.total else "",
        f"{found.wins} / {found.ties} / {found.losses}",
        f"{found.p_value:.3g}",
        f"{found.least:.3g}",
    ]


def _all(scores: Scores, common: Sequence[Size]) -> str:
    """Name of a comparison over several sizes."""
    return "all sizes" if len(common) == len(scores.sizes) else f"{len(common)} of {len(scores.sizes)} sizes"


def _answer(scores: Scores, method: str, reference: str, title: str) -> Answer:
    """The answer over all sizes that both methods have."""
    common = scores.common_sizes(method, reference, scores.sizes)
    found = scores.compare(method, reference, common)
    several = len(scores.averaged) > 1
    sizes = _all(scores, common) if len(scores.sizes) > 1 else ""
    where = ", ".join(filter(None, [sizes, "" if several else scores.averaged[0], title]))
    if found is None or found.low is None or found.high is None:
        unit = "task has" if several else "draw of the training data has"
        return Answer(
            f"{method} and {reference}: no comparison{where and ', '}{where}", f"No second {unit} all sizes of both.", 0
        )
    words = WORDS[found.sign]
    pair = f"{method} and {reference}" if found.sign == 0 else f"{method} against {reference}"
    draws = counted(found.units, "task" if several else "draw")
    draws += f" of {counted(len(scores.seeds), 'draw')}" if several else ""
    text = f"{pair}: {words}, {100 * found.difference:+.1f} points, 95 % interval {_interval(found.low, found.high)}"
    details = []
    if several:
        here = scores.compare_on(scores.average, method, reference, common)
        if here and here.low is not None and here.high is not None:
            details.append(
                f"On these tasks alone: {WORDS[here.sign]}, {100 * here.difference:+.1f} points, "
                f"{_interval(here.low, here.high)} over {counted(here.units, 'draw')}{_with_test(here)}."
            )
    elif found.total:
        beyond = found.sign and found.total[0] <= 0 <= found.total[1]
        details.append(
            f"With the choice of the test examples, at most: {_interval(*found.total)}"
            + (", so the difference is significant on these test examples only." if beyond else ".")
        )
    origin = origins([run for run in scores.runs if run.method in (method, reference)])
    if len(set(origin.values())) > 1:
        details.append("The two were made with different code, versions or devices.")
    details.append(f"Sign-flip test: p {found.p_value:.3g}, which can be no less than {found.least:.3g}.")
    if len(common) > 1:
        single = [one.sign for size in common if (one := scores.compare(method, reference, [size]))]
        details.append(
            f"Of {len(single)} single sizes significantly better at {single.count(1)}, worse at {single.count(-1)}."
        )
    return Answer(", ".join(filter(None, [text, draws, where])), " ".join(details), found.sign)


def _with_test(found: Comparison) -> str:
    return f", at most {_interval(*found.total)} with the choice of the test examples" if found.total else ""


def _interval(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"
