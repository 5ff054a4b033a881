"""What limits the conclusions from a group of runs, beside its figure."""

from __future__ import annotations

from collections.abc import Iterable

from replora.reports.render.document import Block, Bullets, Paragraph
from replora.reports.runs import Group, ordered
from replora.reports.scores import Scores
from replora.reports.sections.comparisons import RULE
from replora.reports.sections.learning_rates import selections, tuned_alone
from replora.reports.sections.provenance import origins


def limits_section(group: Group) -> list[Block]:
    """A list of limits; empty without a test."""
    if not any(run.score is not None for run in group.final):
        return []
    texts = [*_of_intervals(group), *_of_selection(group), *_of_given_rates(group), *_of_origin(group)]
    return [Paragraph("What limits this:"), Bullets(list(dict.fromkeys(texts)))]  # sizes in parts and in shots agree


def _of_intervals(group: Group) -> Iterable[str]:
    for shots in (False, True):
        scores = Scores(group, shots)
        if not scores.by_cell or not scores.tasks:
            continue
        several = len(scores.averaged) > 1
        if len(scores.seeds) > 1:
            unit = "tasks as units" if several else "seeds as units"
            scope = f"these {len(scores.tasks)} tasks" if len(scores.tasks) > 1 else f"{scores.tasks[0]} alone"
            yield (
                f"{RULE} (with {unit}). Intervals contain the draw of the training data and the seed; those of single "
                f"methods speak about {scope}, and leave out the choice of the test examples{_test_part(scores)}. No "
                "interval contains the selection of options, and none is corrected for the number of comparisons."
            )
        else:
            yield "There is one seed, so nothing is known about other training data and seeds."
        if len(scores.averaged) < len(scores.tasks):
            left = ", ".join(task for task in scores.tasks if task not in scores.averaged)
            yield (
                f"Means leave out {left}: at some size these are trained on at most one example per ten classes. Their "
                "own scores are shown; `replora-cli report --all_tasks true` includes them in means."
            )


def _test_part(scores: Scores) -> str:
    """How much the choice of test examples adds, where it is known."""
    size = scores.sizes[-1]
    errors = [scores.sampling_error([method], [size], scores.panels[0]) for method in scores.methods]
    known = [196 * error for error in errors if error is not None]
    return f" (at {scores.name(size)} up to ± {max(known):.1f} points, see the table of intervals)" if known else ""


def _of_selection(group: Group) -> Iterable[str]:
    tested = {run.task for run in group.final}
    found = [choice for (_, task, _), choice in selections(group).items() if choice is not None and task in tested]
    if not found:
        return
    noise, ties = sum(bool(c.noise or c.tied) for c in found), sum(c.tied > 0 for c in found)
    labels = _range({choice.examples for choice in found})
    seeds = _range({choice.seeds for choice in found})
    elsewhere = _range({choice.elsewhere for choice in found})
    # Without the runs of the first stage the number of labels of other tasks is not known, and is 0 here.
    of_others = f" and {elsewhere} of other tasks" if elsewhere != "0" else ", but by other tasks"
    of_task = f" of the task itself{of_others}" if elsewhere else ""
    on = f" on {labels} validation labels{of_task}" if labels else ""
    by = f" with {seeds} seed{'' if seeds == '1' else 's'}" if seeds else ""
    data = "; these labels are data too, beside the training examples" if labels and not elsewhere else ""
    tied = f", {ties} of them {'an exact tie' if ties == 1 else 'exact ties'}" if ties else ""
    noisy = f"{noise} of {len(found)} selections are noise: the next best point lies within one standard error{tied}"
    sure = "In no selection does the next best point lie within one standard error"
    yield f"Options were selected{on}{by}{data}. {noisy if noise else sure}.{tuned_alone(group)}"


def _of_given_rates(group: Group) -> Iterable[str]:
    """Names the methods whose learning rates no run of the group selected."""
    selected = {run.method for run in group.selection} | {run.method for run in group.final if run.chosen_by}
    given: dict[str, set[float]] = {}
    for run in group.final:
        if run.method not in selected and run.rate is not None:
            given.setdefault(run.method, set()).add(run.rate)
    if given:
        named = "; ".join(
            f"{method}: {', '.join(f'{rate:g}' for rate in sorted(given[method]))}" for method in ordered(given)
        )
        yield (
            f"No runs here selected these learning rates ({named}). At one rate for all, any method can be made to "
            f"look better.{'' if selected else tuned_alone(group)}"
        )


def _of_origin(group: Group) -> Iterable[str]:
    """Says which methods were run with other code, versions or devices than others."""
    together: dict[str, list[str]] = {}
    for method, origin in origins(group.runs).items():
        together.setdefault(origin, []).append(method)
    if len(together) > 1:
        most = max(together, key=lambda origin: len(together[origin]))
        named = [f"{', '.join(map(repr, methods))}: {of}" for of, methods in together.items() if of != most]
        yield f"Methods come from different code, versions or devices. {'; '.join(named)}; all others: {most}."


def _range(numbers: Iterable[int | None]) -> str:
    """`200`, or `20 to 200`; empty where no number is known."""
    known = sorted(number for number in numbers if number is not None)
    return " to ".join(map(str, dict.fromkeys((known[0], known[-1])))) if known else ""
