"""A sweep's file: what it plans, and how it refuses what it cannot mean."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from replora.config_files import find_config, packaged_configs
from replora.io import read_csv
from replora.reports.runs import read_runs
from replora.sweeps.plan import ONLY, Point
from replora.sweeps.sweep_file import SweepError, read_sweep
from tests.sweeps.small_sweep import SMALL, write_sweep

SHIPPED = sorted(name for name in packaged_configs() if name.startswith("sweep/"))
GIVEN_RATES = "sweep/commonsense_data_needed.yaml"  # the one without a first stage


def test_the_product_of_everything(tmp_path):
    sweep = read_sweep(
        write_sweep(tmp_path / "s.yaml", tasks={"data.task": ["dtd", "kitti"]}, sizes={"data.shots": [1, 2, 3]})
    )
    selection, final = sweep.selection_trials(), sweep.planned_final_trials()
    assert len(selection) == 2 * 3 * (2 + 2)
    assert len(final) == 2 * 3 * 2 * 2
    assert len({trial.folder for trial in (*selection, *final)}) == len(selection) + len(final)
    assert [trial.seed for trial in final] == [0] * 12 + [1] * 12, "seed after seed"
    trial = selection[-1]
    assert trial.folder == "select/task=kitti/RepLoRA/shots=3/lr=0.01/seed=0"
    assert trial.arguments[:2] == ["--config=quickstart.yaml", "--config=adapter/replora.yaml"]
    assert {"--data.task=kitti", "--data.shots=3", "--model.optimizer.lr=0.01", "--data.protocol=tune"} < set(
        trial.arguments
    )
    assert trial.arguments[-3:] == ["--seed_everything=0", "--data.subset_seed=0", "--data.shuffle_seed=0"]
    assert final[0].folder == "final/task=dtd/LoRA/shots=1/seed=0"


def test_final_trials_have_the_chosen_points(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml"))
    point = Point("lr=0.02", {"model.optimizer.lr": 0.02})
    trials = sweep.final_trials({("LoRA", "", "shots=1"): point})
    assert [trial.method for trial in trials] == ["LoRA", "LoRA"], "a method without a choice is left out"
    assert all("--model.optimizer.lr=0.02" in trial.arguments for trial in trials)


def test_later_options_win(tmp_path):
    file = write_sweep(
        tmp_path / "s.yaml",
        options={"trainer.max_epochs": 1, "data.batch_size": 1, "data.root": "a"},
        sizes=[{"data.shots": 2, "trainer.max_epochs": 9, "data.batch_size": 2}],
        final={"seeds": [3], "options": {"data.batch_size": 3}},
    )
    trial = read_sweep(file, {"data.root": "b"}).final_trials({("LoRA", "", "shots=2"): ONLY})[0]
    assert {"--trainer.max_epochs=9", "--data.batch_size=3", "--data.root=b"} < set(trial.arguments)
    assert trial.folder == "final/LoRA/shots=2/seed=3", "a point of a list is called by its first option"


OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5, "weight_decay": 0.1}}


@pytest.mark.parametrize(
    ("of_all", "of_method", "message"),
    [
        (
            {"model.optimizer.lr": 0.01},
            {"model.optimizer": OPTIMIZER},
            r"model\.optimizer\.lr \(methods: LoRA, grid\) would be undone by model\.optimizer \(methods: LoRA, opt"
            r".* set before it as well \(options\)",
        ),
        (
            {"model.optimizer.weight_decay": 0.2},
            {"model.optimizer": OPTIMIZER, "model.optimizer.weight_decay": 0.3},
            r"model\.optimizer\.weight_decay \(methods: LoRA, options\) would be undone by model\.optimizer \(methods",
        ),
        ({"data.a": 1}, {"data.init_args.a": 2, "data.a": 3}, r"data\.a \(methods: LoRA, options\) would be undone by"),
        ({"model.optimizer.lr": 0.01}, {"model.optimizer": {"weight_decay": 0.1}}, r"grid\) would be undone by"),
        # Here the order is right, the values agree, or a class keeps what is said before it.
        ({"model.optimizer.lr": 0.01}, {"model.optimizer": "torch.optim.SGD"}, ""),
        ({"model.optimizer.lr": 0.01}, {"model.optimizer": {"class_path": "SGD", "init_args": {"momentum": 0.9}}}, ""),
        ({}, {"model.optimizer": OPTIMIZER}, ""),
        ({"data.a": 1}, {"data.init_args.a": 2}, ""),
        ({"data.a": 1}, {"data.init_args.a": 2, "data.a": 2}, ""),
        ({"model.optimizer.weight_decay": 0.2}, {"model.optimizer": OPTIMIZER, "model.optimizer.eps": 1}, ""),
        ({"model.optimizer.weight_decay": 0}, {"model.optimizer": OPTIMIZER, "model.optimizer.weight_decay": 0.1}, ""),
    ],
)
def test_where_an_earlier_option_would_win_the_file_is_refused(tmp_path, of_all, of_method, message):
    """An option stands where it is set first. Where it contains another one, or lies in it, the last of both wins."""
    lora = {"configs": ["adapter/lora.yaml"], "options": of_method, "grid": {"model.optimizer.lr": [0.01, 0.02]}}
    file = write_sweep(tmp_path / "s.yaml", methods={"LoRA": lora}, options=of_all)
    with pytest.raises(SweepError, match=message) if message else nullcontext():
        read_sweep(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  LoRA: {}\n  DoRA: {}\n  LoRA: {}\n", r"line 5, column 3.*the key 'LoRA' is there twice, first in line 3"),
        ("  LoRA:\n    options: {data.root: a, data.root: b}\n", r"line 4.*'data.root' is there twice"),
        ("  LoRA:\n    options: {data.root: {0.1: a, 0.10: b}}\n", r"line 4.*the key '0.10' is there twice"),
        ("  no: {}\n", r"methods: the name False is no text, as YAML reads it\. Put it in quotes"),
        ("  8: {}\n", r"methods: the name 8 is no text"),
    ],
)
def test_keys_that_would_get_lost_are_refused(tmp_path, text, message):
    """YAML lets the last of equal keys win, and reads `no` as a truth value."""
    (tmp_path / "s.yaml").write_text(f"base: [quickstart.yaml]\nmethods:\n{text}final: {{seeds: [0]}}\n")
    with pytest.raises(SweepError, match=message):
        read_sweep(tmp_path / "s.yaml")


def test_merged_keys_of_yaml_are_not_twice(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "base: [quickstart.yaml]\nmethods:\n  LoRA: &lora {options: {data.root: a}}\n"
        "  DoRA: {<<: *lora, options: {data.root: b}}\nfinal: {seeds: [0]}\n"
    )
    assert [method.options for method in read_sweep(tmp_path / "s.yaml").methods] == [
        {"data.root": "a"},
        {"data.root": "b"},
    ]


def test_numbers_as_yaml_reads_them_as_text(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(SMALL).replace("- 0.02", "- 2e-2").replace("- 0.01", "- 1.e-2"))
    rates = [point.options["model.optimizer.lr"] for point in read_sweep(file).methods[0].grid]
    assert rates == [0.01, 0.02]


def test_unequal_grids_are_refused(tmp_path):
    methods = SMALL["methods"] | {"DoRA": {"configs": ["adapter/dora.yaml"], "grid": {"model.optimizer.lr": [0.1]}}}
    with pytest.raises(SweepError, match=r"different numbers of points \(LoRA 2, RepLoRA 2, DoRA 1\)"):
        read_sweep(write_sweep(tmp_path / "s.yaml", methods=methods))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {}}, "no key 'method'. Did you mean 'methods'"),
        ({"methods": None}, "the key 'methods' is missing"),
        ({"select": None}, "grids need a stage `select`"),
        ({"select": {"seeds": [0]}}, "select: the key 'metric' is missing"),
        ({"select": SMALL["select"] | {"mode": "most"}}, "mode 'most' is not known"),
        ({"select": SMALL["select"] | {"metric": "test/accuracy"}}, "test/accuracy is not measured on validation"),
        ({"select": SMALL["select"] | {"metric": "train/loss"}}, "train/loss is not measured on validation"),
        ({"final": {"seeds": 3}}, r"must be a list of whole numbers such as \[0, 1, 2\], not 3"),
        ({"final": {"seeds": [1, 1]}}, "two trials have the directory final/LoRA/shots=1/seed=1"),
        ({"sizes": {"data.shots": 3}}, "data.shots must have a list of values, not 3"),
        ({"sizes": [3]}, "3 is no mapping of options"),
        ({"options": {"--data.shots": 3}}, "'--data.shots' is no option. Write it as on the command line without"),
        ({"base": "quickstart.yaml"}, "must be a list of names of configurations"),
        ({"seconds_per_trial": "long"}, "must be a number above 0"),
        ({"seconds_per_trial": float("nan")}, "must be a number above 0"),
        ({"final": {"seeds": [-1]}}, r"seeds: -1 is not a seed. It must be in \[0, 4294967295\]"),
        ({"final": {"seeds": [2**32]}}, "4294967296 is not a seed"),
        ({"methods": {"..": {}}, "select": None}, "'..' has no letter or digit"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(SweepError, match=message):
        read_sweep(write_sweep(tmp_path / "s.yaml", **changes))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.shots", r"data\.shots would undo data\.shots, which .* varies \(sizes\)"),
        ("model.optimizer.lr", r"varies \(methods: LoRA, grid\)"),
        ("model.adapter.init_args.hidden", r"varies \(methods: RepLoRA, options\)"),
        ("model.adapter.init_args", r"would undo model\.adapter\.init_args\.hidden"),
        ("model.adapter", r"would undo model\.adapter\.init_args\.hidden"),
        ("model.adapter.factors", r"model\.init_args\.adapter\.init_args\.factors, .* varies \(the methods' configs\)"),
        ("data.init_args.shots", r"varies \(sizes\)"),
        ("data.protocol", r"varies \(select, options\)"),
        ("data.augment", r"varies \(final, options\)"),
        ("data.subset_seed", r"varies \(seeds\)"),
        ("config", "config is what a sweep sets for each trial"),
    ],
)
def test_options_of_the_command_line_leave_what_is_compared_alone(tmp_path, option, message):
    replora = SMALL["methods"]["RepLoRA"] | {"options": {"model.adapter.init_args.hidden": 16}}
    file = write_sweep(
        tmp_path / "s.yaml",
        methods=SMALL["methods"] | {"RepLoRA": replora},
        final={"seeds": [0], "options": {"data.augment": True}},
    )
    with pytest.raises(SweepError, match=message):
        read_sweep(file, {option: 5})


def test_options_of_the_command_line_for_all_alike(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "s.yaml"), {"data.root": "b", "model.adapter.init_args.rank": 4})
    trials = [*sweep.selection_trials(), *sweep.planned_final_trials()]
    assert all({"--data.root=b", "--model.adapter.init_args.rank=4"} < set(trial.arguments) for trial in trials)


def test_a_file_that_is_no_sweep(tmp_path):
    (tmp_path / "s.yaml").write_text("- a\n")
    with pytest.raises(SweepError, match="must be a mapping of keys to values, not a list"):
        read_sweep(tmp_path / "s.yaml")
    with pytest.raises(SweepError, match="cannot be read as a sweep"):
        read_sweep(tmp_path / "absent.yaml")


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != GIVEN_RATES])
def test_shipped_sweeps_are_fair_and_complete(name):
    sweep = read_sweep(find_config(name))
    assert sweep.select
    assert sweep.final or name.endswith("_rates.yaml"), "which compares rates alone"
    assert sweep.seconds_per_trial, "a dry run says what it costs"
    three = dict.fromkeys(("digits_low_data", "tied_low_data", "commonsense_tasks", "commonsense_rates"), 3)
    seeds = range((three | {"method_rates": 2}).get(sweep.name, 1))
    assert {trial.arguments[-3] for trial in sweep.selection_trials()} == {f"--seed_everything={s}" for s in seeds}
    assert all("--data.protocol=tune" in trial.arguments for trial in sweep.selection_trials())
    assert not any("--data.protocol=tune" in trial.arguments for trial in sweep.planned_final_trials())
    for config in (*sweep.base, *(config for method in sweep.methods for config in method.configs)):
        assert find_config(config).is_file()


def test_given_rates_are_those_that_validation_questions_selected():
    """Of both methods, at the smaller amounts; then the file is `commonsense_tasks` without its first stage."""
    sweep, selecting = (read_sweep(find_config(name)) for name in (GIVEN_RATES, "sweep/commonsense_tasks.yaml"))
    assert not sweep.select
    choices = read_csv(Path(__file__).parents[2] / "results" / "commonsense_tasks_one_rate" / "choices.csv")
    selected = {(row["task"], method.name): set() for row in choices for method in sweep.methods}
    for row in choices:
        selected[row["task"], row["method"]].add(float(row["learning rate"]))
    given = {task.options["data.tasks"][0]: task.options["model.optimizer.lr"] for task in sweep.tasks}
    assert selected == {(task, method.name): {given[task]} for task in given for method in sweep.methods}
    assert sweep.sizes == selecting.sizes
    assert [method.configs for method in sweep.methods] == [method.configs for method in selecting.methods]
    assert sweep.final
    assert selecting.final
    assert sweep.final.seeds == selecting.final.seeds
    trials = sweep.planned_final_trials()
    assert len(trials) == 3 * 4 * 2 * 5
    assert all("--data.protocol=final" in trial.arguments for trial in trials)


@pytest.mark.parametrize("name", ["ablation", "commonsense_data_needed", "digits_low_data", "transfer_low_data"])
def test_the_stated_cost_is_the_recorded_one(name):
    """Within half of it, for start-up is not recorded. (Of commonsense the expensive sizes are not recorded.)"""
    records = read_runs([Path(__file__).parents[2] / "results" / name])
    measured = fmean(run["fit"]["seconds"] for run in records)
    assert measured / 1.5 < read_sweep(find_config(f"sweep/{name}.yaml")).seconds_per_trial < 1.5 * measured


def test_shipped_sweeps_cover_what_they_say():
    named = {name.removeprefix("sweep/").removesuffix(".yaml") for name in SHIPPED}
    images = ("quickstart", "digits", "transfer", "tied", "real_vit", "vtab", "fgvc")
    low_data = {f"{data}_low_data" for data in (*images, "commonsense")}
    others = {"other_tasks", "vtab_other_tasks"}
    tuning = {"vtab_grid", "ablation", "training_length", "method_rates", "commonsense_rates"}
    language_and_real = {"commonsense_tasks", "commonsense_data_needed", "real_vit_tasks"}
    assert named == low_data | others | tuning | language_and_real
    tasks = [task.options["data.tasks"] for task in read_sweep(find_config("sweep/commonsense_tasks.yaml")).tasks]
    assert tasks == [["ARC-Easy"], ["openbookqa"], ["boolq"], ["piqa"]]
    for name in others:
        sweep = read_sweep(find_config(f"sweep/{name}.yaml"))
        assert sweep.select
        assert sweep.final
        assert (sweep.select.source, sweep.final.points) == ("other_tasks", "all")
    real = read_sweep(find_config("sweep/real_vit_tasks.yaml"))
    assert real.select
    assert real.final
    assert (real.select.source, real.final.points, len(real.tasks)) == ("other_tasks", "selected", 4)
    grid = read_sweep(find_config("sweep/vtab_grid.yaml"))
    assert len(grid.tasks) == 19
    assert all(len(method.grid) == 25 for method in grid.methods)
    digits = read_sweep(find_config("sweep/digits_low_data.yaml"))
    assert [size.options["data.train_fraction"] for size in digits.sizes] == [0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 1.0]
    assert digits.final
    assert len(digits.final.seeds) == 5
    quick = read_sweep(find_config("sweep/quickstart_low_data.yaml"))
    trials = [*quick.selection_trials(), *quick.planned_final_trials()]
    assert len(trials) * (quick.seconds_per_trial or 0) / 2 <= 600, "ten minutes on two cores"
