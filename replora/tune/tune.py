"""`replora-cli tune`: look at the data, measure the candidates, choose one, fit it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from replora.config_files import packaged_configs
from replora.datasets.errors import SubsetError
from replora.errors import RepLoRAError, nearest
from replora.io import read_json
from replora.memory import usable_cpus
from replora.plots.mistakes import draw_test
from replora.plots.run import datamodule_of
from replora.reports.summary import format_seconds, summarize
from replora.results import TEST_PREDICTIONS, write_json
from replora.sweeps.local_queue import LocalQueue
from replora.sweeps.plan import ONLY
from replora.sweeps.progress import Progress
from replora.sweeps.trial import TrialError, configuration, finished, set_aside
from replora.trainer.run_options import RUN_OPTIONS
from replora.tune.budget import Clock, OutOfTimeError, Signals
from replora.tune.outcome import Outcome, beyond, describe, draw, outcome_of, record, show
from replora.tune.plan import (
    DIVISIONS,
    FEW_EXAMPLES,
    FOLDS,
    RANK,
    RATE,
    REPEATS,
    Candidate,
    Plan,
    around,
    given_values,
    grid_of,
)
from replora.tune.probe import Facts, probe
from replora.tune.race import SAFETY, Race

PLAN = "plan.json"
RECORD = "tune.json"
PROBED_STEPS = 6
EXTENSIONS = 3  # largest number of rates beyond the edge of a grid
OWN = ("run_dir", "ckpt_path", "data.fold")  # options that this verb sets for each trial


class TuneError(RepLoRAError):
    """A tune cannot run as it was asked for."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        arguments: Arguments of `fit`.
        methods: Names of configurations in `adapter/`; empty for the method of the arguments.
        rates: Learning rates; empty for the default grid around that of each method.
        ranks: Ranks; empty for the configured one.
        epochs: Numbers of epochs; empty for the configured one.
        folds: Number of folds, 1 for none; None to decide by the number of examples.
        draws: Number of draws; None to decide.
        repeats: Number of divisions of the examples of each draw; None to decide.
    """

    arguments: list[str]
    methods: Sequence[str]
    rates: Sequence[float]
    ranks: Sequence[int]
    epochs: Sequence[int]
    folds: int | None
    draws: int | None
    repeats: int | None = None


def run_tune(request: Request, home: Path, clock: Clock, dry_run: bool = False) -> None:
    """Choose, and fit the choice in `home/final`. Started again, it continues.

    Args:
        request: What to choose from.
        home: Directory of the trials, locked by the caller unless it is a dry run.
        clock: The budget, which began with the command.
        dry_run: Whether only to say what would be done, and how long it would take.

    Raises:
        RepLoRAError: An option is wrong, the data have changed since the tune began, the budget is too small, or every
            candidate failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM, with its number.
    """
    with Signals() as signals:
        _run(request, home, clock, signals, dry_run)


def _run(request: Request, home: Path, clock: Clock, signals: Signals, dry_run: bool) -> None:
    _check_arguments(request.arguments)
    plan, facts, why = _planned(request, home, clock)
    best_guess = plan.candidates[len(plan.candidates) // 2]
    tests = probe(plan.final(best_guess), 0)  # data without a test, for example, fail now and not at the end
    facts = replace(facts, start=tests.start)  # the first one waited for packages
    tests = replace(tests, step=facts.step)  # of which it made none
    race = Race(home, plan, facts, tests, clock, signals)
    _check_same_plan(home, plan, facts)
    print(_announcement(race, why), flush=True)
    least = _least_seconds(race)
    if clock.left() < least and not dry_run:
        raise TuneError(_too_little_time(race, least))
    if dry_run:
        if clock.left() < least:
            print(_too_little_time(race, least))
        return
    _write_plan(home, plan, facts)
    outcome = _measured(race, 0 if request.rates else EXTENSIONS)
    if outcome is None:
        listed = "\n".join(f"  {name}: {reason.splitlines()[0]}" for name, reason in race.failures.items())
        reasons = listed or f"  {race.stopped}"
        raise TuneError(f"No candidate could be measured.\n{reasons}\nTheir output.log in {home} says more.")
    write_json(home / RECORD, {"format": 1} | record(race, outcome))
    show(race, outcome)
    picture = draw(race, outcome)
    print(f"{describe(race, outcome)}\nThe candidates' curve: {picture}", flush=True)
    _fit(race, outcome)
    over = clock.left()
    took = {"seconds": round(clock.spent, 1), "budget": clock.budget}
    write_json(home / RECORD, {"format": 1} | record(race, outcome) | took)
    kept = f" of the budget of {format_seconds(clock.budget)}" if clock.budget else ""
    print(f"{format_seconds(clock.spent)}{kept}{', which was exceeded' if over < 0 else ''}.")


def _measured(race: Race, extensions: int) -> Outcome | None:
    """The choice after all repeats, or what the budget allows. Divisions are repeated only to compare candidates."""
    outcome = None
    for repeat in range(race.plan.repeats):
        race.run(repeat)
        outcome = outcome_of(race)
        while extensions and outcome and outcome.edge and not race.stopped:
            extensions -= 1
            more = beyond(race, outcome.candidate)
            if more is None or not race.extend(more):
                break
            outcome = outcome_of(race)
        if race.stopped or len(race.alive) < 2:
            break
    return outcome


def _check_arguments(arguments: list[str]) -> None:
    values = given_values(arguments)
    if not values:
        raise TuneError("tune needs the options of a fit, such as: --config image_folder.yaml --data.root photos")
    for name, setting in values.items():
        if name in OWN and setting.file is None:
            instead = " Name its directory with --out." if name == "run_dir" else ""
            raise TuneError(f"--{name} is set for each trial by tune itself. Leave it out.{instead}")
    top = {"model", "data", "trainer", "seed_everything", *RUN_OPTIONS}
    own = ("out", "time_budget", "methods", "rates", "ranks", "epochs", "folds", "draws", "repeats", "dry_run")
    for name, setting in values.items():
        if "." not in name and name not in top and setting.file is None:
            raise TuneError(f"tune --{name}: there is no such option. {nearest(name, [*own, *top])}")


# --- the plan


def _planned(request: Request, home: Path, clock: Clock) -> tuple[Plan, Facts, str]:
    """The plan, what its trials are, and the reason for its measurements."""
    configs = [_config_of(method) for method in request.methods] or [""]
    values = {name: setting.value for name, setting in given_values(request.arguments).items()}
    protocol = values.get("data.protocol") if _on_command_line(request.arguments, "data.protocol") else None
    seed = int(values.get("seed_everything", 0))
    subset_seed = values.get("data.subset_seed")
    plan = Plan(
        request.arguments,
        [],
        1,
        1,
        seed,
        seed if subset_seed is None else int(subset_seed),
        {"trainer.num_sanity_val_steps": 0, "trainer.logger": False},
        "final" if protocol in (None, "tune") else str(protocol),
    )
    bare = [Candidate(name, config, ONLY) for name, config in zip(request.methods or [""], configs, strict=True)]
    options = [configuration(plan.trial(one, 0)) for one in bare]
    if not options[0].get("trainer.callbacks") and not _on_command_line(plan.arguments, "trainer.check_val"):
        plan.extra["trainer.check_val_every_n_epoch"] = 1_000_000  # a fit ends with a validation, whatever the interval
    facts, folds = _probed(plan, bare, request.folds, offered="data.fold" in options[0])
    folds, why = _measurements(request, facts, folds)
    subset = any(options[0].get(name) not in (None, 1.0) for name in ("data.shots", "data.train_fraction"))
    # Other draws of a subset have other training examples: only who asks for them has so many.
    draws = request.draws or (1 if subset else REPEATS if folds == 1 else -(-FOLDS // folds))
    candidates: list[Candidate] = []
    for one, configured in zip(bare, options, strict=True):
        rates = list(request.rates) or around(float(configured[RATE]))
        ranks = request.ranks if RANK in configured else []
        candidates += grid_of(one.method or facts.method, one.config, sorted(rates), ranks, request.epochs)
    of_draw = 1 if subset else draws  # divisions of the same examples in one repeat
    repeats = _repeats(request, home, clock, folds, of_draw)
    repeated = f", {draws} times with other seeds" if draws > 1 else ""
    drawn = f" Each draw has other training examples (subset_seed {plan.subset_seed} and on)." if subset else ""
    limit = " while the budget lasts, at most" if clock.budget else ","
    again = f" The same examples are divided again{limit} {repeats * of_draw} times in all." if repeats > 1 else ""
    full = replace(plan, candidates=candidates, folds=folds, draws=draws, repeats=repeats, subset=subset)
    return full, facts, f"{why}{repeated}.{drawn if draws > 1 else ''}{again}"


def _repeats(request: Request, home: Path, clock: Clock, folds: int, of_draw: int) -> int:
    """How often the examples are divided: while a budget lasts; without one, as often as in former calls.

    Args:
        of_draw: Number of divisions of the same examples in one repeat.
    """
    if folds == 1:
        if (request.repeats or 1) > 1:
            raise TuneError(
                f"--repeats {request.repeats}: there are no folds, so nothing can be divided again. Give --folds, or "
                "--draws, which measures on the same validation data with other seeds."
            )
        return 1
    if request.repeats or clock.budget:
        return request.repeats or max(1, DIVISIONS // of_draw)
    folders = (home / "select").rglob("*repeat=*") if home.is_dir() else ()
    return max((int(folder.name.partition("repeat=")[2].partition(",")[0]) for folder in folders), default=1)


def _config_of(method: str) -> str:
    known = [name.removeprefix("adapter/").removesuffix(".yaml") for name in packaged_configs() if "adapter/" in name]
    if method not in known:
        raise TuneError(f"--methods: there is no method {method!r}. {nearest(method, known)}")
    return f"adapter/{method}.yaml"


def _on_command_line(arguments: list[str], option: str) -> bool:
    return any(argument.removeprefix("--").replace(".init_args", "").startswith(option) for argument in arguments)


def _probed(plan: Plan, bare: list[Candidate], folds: int | None, offered: bool) -> tuple[Facts, int]:
    """The facts of the first method that can be started, measured in two folds or, where these cannot be made, without.

    Returns:
        The facts, and the number of folds of the probe.
    """
    failure: Exception | None = None
    for one in bare:
        for count in (2, 1) if offered and folds != 1 else (1,):
            trial = replace(plan, folds=count).trial(one, 0)
            try:
                return probe(trial, PROBED_STEPS), count
            except SubsetError as error:
                failure = failure or error
            except Exception as error:
                failure = failure or error
                break
    assert failure is not None
    raise failure


def _measurements(request: Request, facts: Facts, probed: int) -> tuple[int, str]:
    """The number of folds, and why."""
    pool, val = facts.sizes["train"] + facts.sizes["val"], facts.sizes["val"]
    if probed == 1 or request.folds == 1:
        return 1, f"Compared on the {val:,} validation examples"
    if request.folds:
        return request.folds, f"Compared by cross-validation with {request.folds} folds of {pool:,} examples, as asked"
    if facts.given_validation:
        return 1, f"Compared on the {val:,} validation examples, because they were chosen by hand"
    if pool >= FEW_EXAMPLES:
        return 1, f"Compared on the validation examples, because there are {pool:,} to train and validate on"
    folds = max(2, min(FOLDS, pool // facts.classes))
    reason = f"because {pool:,} examples, fewer than {FEW_EXAMPLES:,}, leave too few for one validation split"
    return folds, f"Compared by cross-validation with {folds} folds, {reason}"


def _identity(plan: Plan, facts: Facts) -> dict[str, Any]:
    content = asdict(plan) | {"candidates": {one.name: one.point.options for one in plan.candidates}}
    del content["repeats"], content["subset"]  # more repeats continue a tune; the arguments say whether it has a subset
    return json.loads(json.dumps(content | {"lists": facts.lists, "sizes": facts.sizes}))  # type: ignore[no-any-return]


def _check_same_plan(home: Path, plan: Plan, facts: Facts) -> None:
    if not (home / PLAN).is_file():
        return
    then, now = read_json(home / PLAN), _identity(plan, facts)
    differing = [name for name in now if then.get(name) != now[name]]
    remedy = "Choose another directory with --out, or delete that one."
    if set(differing) & {"lists", "sizes"} and then.get("arguments") == now["arguments"]:
        sizes = [" + ".join(f"{count:,} {split}" for split, count in c.get("sizes", {}).items()) for c in (then, now)]
        raise TuneError(
            f"The data have changed since the tune in {home} began: {sizes[0]} then, {sizes[1]} now. Its measurements "
            f"are of other examples. {remedy}"
        )
    if differing:
        listed = "\n".join(f"  {name}: {then.get(name)} there, {now[name]} here" for name in differing)
        raise TuneError(f"{home} holds another tune:\n{listed}\n{remedy}")


def _write_plan(home: Path, plan: Plan, facts: Facts) -> None:
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / PLAN, _identity(plan, facts))


# --- time


def _announcement(race: Race, why: str) -> str:
    plan, each, last = race.plan, race.seconds_of_trial(), race.seconds_of_final()
    while_it_lasts = plan.repeats > 1 and race.clock.budget is not None
    left = race.unfinished(plan.candidates, range(plan.round if while_it_lasts else plan.measurements))
    names = "; ".join(one.name for one in plan.candidates)
    total = format_seconds(left * each + last)
    rest = "; further divisions take what is left of the budget" if while_it_lasts else ""
    return (
        f"{len(plan.candidates)} candidates: {names}\n{why}\n"
        f"{left} trials of about {format_seconds(each)}, at most, then the final fit ({plan.protocol}) with its test, "
        f"about {format_seconds(last)}: about {total}{rest}"
    )


def _least_seconds(race: Race) -> float:
    """What one measurement of each candidate and the final fit take."""
    return race.unfinished(race.plan.candidates, range(1)) * race.seconds_of_trial() + race.reserve()


def _too_little_time(race: Race, least: float) -> str:
    assert race.clock.budget is not None
    wanted = format_seconds(race.clock.spent + least * SAFETY)
    return (
        f"--time_budget: {format_seconds(race.clock.budget)} are too little. One measurement of each of "
        f"{len(race.plan.candidates)} candidates and the final fit take about {wanted}. Give that much, fewer "
        "candidates (--rates), or fewer epochs (--trainer.max_epochs)."
    )


# --- the final fit


def _fit(race: Race, outcome: Outcome) -> None:
    trial = race.plan.final(outcome.candidate)
    folder = race.home / trial.folder
    try:
        finished(race.home, trial)
    except TrialError:  # of another choice, before more was measured
        print(f"{outcome.candidate.name} is chosen now; the fit of the former choice is {set_aside(folder)}")
    queue = LocalQueue(usable_cpus(), failures=0)
    with Progress("final fit", [trial.method], [trial], [], race.metric.replace("val/", "test/")) as shown:
        queue.run(race.home, race.home.name, [trial], [record(race, outcome) | {"candidates": None}], shown)
    results = finished(race.home, trial)
    if results is None or "failed" in results["sweep"]:
        reason = shown.failures.get(trial.folder) or (results or {"sweep": {}})["sweep"].get("failed", "it did not end")
        raise TuneError(f"The final fit failed: {reason} See {folder / 'output.log'}.")
    if (folder / TEST_PREDICTIONS).is_file():
        try:
            with race.clock.alarm(0.0):
                draw_test(folder, datamodule_of(folder / "fit.yaml", {}, of_run=True))
        except OutOfTimeError:
            print("The budget ended before the mistakes of the test were drawn.")
    print(summarize(folder, "fit"), flush=True)
