"""`replora-cli tune`: the learning rate, and more if asked, for the data at hand."""

from __future__ import annotations

import inspect
from pathlib import Path

from replora.errors import RepLoRAError
from replora.io import check_output
from replora.run_directory import LOCK


def tune(
    options: list[str],
    out: Path | None = None,
    time_budget: str | None = None,
    methods: list[str] | None = None,
    rates: list[float] | None = None,
    ranks: list[int] | None = None,
    epochs: list[int] | None = None,
    folds: int | None = None,
    draws: int | None = None,
    repeats: int | None = None,
    dry_run: bool = False,
) -> None:
    """Choose the learning rate on validation data, then fit and test the choice.

        replora-cli tune --config image_folder.yaml --data.root photos --time_budget 20m
        replora-cli tune --config image_folder.yaml --data.root photos --methods [linear_probe,replora] --dry_run true

    Takes the options of fit, and those below. Candidates are compared by cross-validation where there are few examples,
    and dropped by successive halving. The test set is used once, by the final fit in OUT/final, which is a run like any
    other. After an interruption, the same command continues. docs/tune.md describes it.

    Args:
        options: Options of fit.
        out: Directory of the trials and the final run. Default: runs/tune-CONFIG-DATA.
        time_budget: Time for all of it, such as 90s, 20m or 1h30m. Default: no limit.
        methods: Names of configurations in adapter/, such as [lora,replora]. Default: the method of the configuration.
        rates: Learning rates, such as [0.001,0.01]. Default: five around that of each method, and more beyond an edge.
        ranks: Ranks to choose from, such as [4,16]. Default: the configured one.
        epochs: Numbers of epochs to choose from. Default: the configured one.
        folds: Number of folds (>= 1); 1 compares on the validation data as they are. Default: 5 for fewer than 1,000
            examples whose validation data were not chosen by hand, else 1.
        draws: Number of draws of folds, subsets and seeds (>= 1). Default: 1 with five folds, 3 without folds.
        repeats: How often the same examples are divided into folds (>= 1). Default: with a time budget up to 10 times,
            as long as it lasts, else once.
        dry_run: Print the candidates and the expected time, and run nothing else.
    """
    # Only here: the light verbs of the command line do not wait for torch.
    from replora.run_directory import locked_workplace
    from replora.tune.budget import Clock, parse_budget
    from replora.tune.plan import default_home
    from replora.tune.tune import Request, run_tune

    clock = Clock(None if time_budget is None else parse_budget(time_budget))
    for name, value in {"folds": folds, "draws": draws, "repeats": repeats}.items():
        if value is not None and value < 1:
            raise RepLoRAError(f"--{name} {value} is too small. It must be at least 1.")
    for name, listed in {"methods": methods, "rates": rates, "ranks": ranks, "epochs": epochs}.items():
        if listed is not None and (not listed or len(set(listed)) < len(listed)):
            raise RepLoRAError(f"--{name} {listed} is empty, or names a value twice.")
    if rates and not all(0 < rate < float("inf") for rate in rates):
        raise RepLoRAError(f"--rates {rates}: a learning rate is a number above 0.")
    request = Request(options, methods or (), rates or (), ranks or (), epochs or (), folds, draws, repeats)
    home = out or default_home(options)
    check_output(home, None, folder=True, is_own=_is_tune)
    if dry_run:
        run_tune(request, home, clock, dry_run=True)
        return
    remedy = "Wait until it ends, stop it, or choose another directory with --out."
    with locked_workplace(home, "A tune", remedy):
        run_tune(request, home, clock)


def options_apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of `fit`, which go on as they are, and those of `tune`."""
    own_names = {f"--{name}" for name in inspect.signature(tune).parameters} - {"--options"}
    of_fit: list[str] = []
    own: list[str] = []
    following = 0
    for position, argument in enumerate(arguments):
        if following:
            following -= 1
            continue
        name, equals, _ = argument.partition("=")
        if name in own_names or argument in ("-h", "--help"):
            following = int(name in own_names and not equals)
            own += arguments[position : position + 1 + following]
        else:
            of_fit.append(argument)
    return of_fit, own


def _is_tune(home: Path) -> bool:
    return (home / LOCK).exists() or (home / "plan.json").exists()
