"""fit, validate, test and predict through the command line, and each known trap of LightningCLI."""

from __future__ import annotations

import csv
import inspect
import json
import re
import shutil
import subprocess
import sys
import types
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

import lightning_modules
import replora
from replora.cli.main import _help, main
from replora.results import read_results, weights_source
from replora.trainer import trainer_cli
from tests.cli.helpers import DIGITS, Remember, fit, refused

REMEMBER = "--trainer.callbacks+=tests.cli.helpers.Remember"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests copy it before they add to it."""
    return fit(tmp_path_factory.mktemp("finished") / "run", "--seed_everything=3", REMEMBER)


@pytest.fixture
def run(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    config = (copy / "fit.yaml").read_text().replace(str(finished), str(copy))
    (copy / "fit.yaml").write_text(config)
    return copy


def saved(file):
    return yaml.safe_load(file.read_text())


# --- what a run leaves behind


def test_one_directory_a_run(finished):
    files = {file.relative_to(finished).as_posix() for file in finished.rglob("*") if file.is_file()}
    expected = {"fit.yaml", "results.json", "adapter.safetensors", "checkpoints/last.ckpt", "logs/fit/metrics.csv"}
    assert expected < files
    assert any("events.out.tfevents" in name for name in files)
    with (finished / "logs/fit/metrics.csv").open() as stream:
        assert "val/accuracy" in next(csv.reader(stream))


def test_results_of_fit_and_its_test(finished):
    content = read_results(finished)
    assert content["method"] == "replora"
    assert content["data"]["task"] == "digits"
    assert content["data"]["protocol"] == "holdout"
    assert len(content["data"]["train_indices"]) == 20
    assert content["fit"]["seed"] == content["test"]["seed"] == 3
    assert weights_source(content["test"]) == "last epoch"
    assert content["fit"]["steps"] == 2


def test_adapter_file_is_that_of_the_last_epoch(finished):
    description, state = replora.read_adapter(finished / "adapter.safetensors")
    checkpoint = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert description["options"]["rank"] == 2
    assert {f"model.{name}" for name in state} == set(checkpoint)
    assert all(torch.equal(tensor, checkpoint[f"model.{name}"]) for name, tensor in state.items())


def test_default_directory_tells_time_task_and_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *DIGITS, "--test_after_fit=false"])
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.endswith("-digits-replora")
    assert "test" not in read_results(made)


# --- traps


def test_the_optimizer_trains_the_adapter(finished):  # C1
    groups = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    state = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert sum(len(group["params"]) for group in groups) == len(state) > 2
    trained = [name for name in state if ".replora." in name]
    fresh = replora.adapter_state(_module(finished).model)
    assert any(not torch.equal(state[name], fresh[name.removeprefix("model.")]) for name in trained)


def _module(run):
    from lightning.pytorch import seed_everything

    from lightning_modules import ImageClassification

    seed_everything(3)
    options = saved(run / "fit.yaml")["model"]["init_args"]["adapter"]["init_args"]
    adapter = replora.RepLoRAConfig(**options)
    return ImageClassification(10, backbone="vit_nano", pretrained=False, adapter=adapter)


def test_the_command_line_wins_over_the_checkpoint(run):  # C2
    main(["test", f"--config={run / 'fit.yaml'}", "--model.label_smoothing=0.3", "--model.optimizer.lr=0.5"])
    config = saved(run / "test.yaml")
    assert config["model"]["init_args"]["label_smoothing"] == 0.3
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5


def test_checkpoints_are_plain_data(finished):  # C3
    hyper_parameters = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert json.loads(json.dumps(hyper_parameters)) == hyper_parameters
    assert hyper_parameters["num_classes"] == 10


def test_number_of_classes_comes_from_the_data(finished, capsys):  # C4
    assert _module(finished).model.head.out_features == 10
    assert "num_classes" not in saved(finished / "fit.yaml")["model"]["init_args"]
    for option in ("--model.num_classes=7", "--model.init_args.num_classes=7"):
        error = refused(capsys, "fit", *DIGITS, option)
        assert "the number of classes is the data's. DigitsDataModule has no option for it" in error


@pytest.mark.parametrize(
    ("options", "method"),
    [
        (["--model.adapter=LinearProbeConfig"], "linear_probe"),
        (["--model.adapter=replora.PeftMethodConfig", "--model.adapter.method=dora"], "dora"),
        (["--config=adapter/bitfit"], "bitfit"),
    ],
)
def test_methods_are_swapped_by_class(tmp_path, options, method):  # C5
    main(["fit", *DIGITS, f"--run_dir={tmp_path}", *options, "--test_after_fit=false"])
    assert read_results(tmp_path)["method"] == method


@pytest.mark.usefixtures("finished")
def test_own_callbacks_survive_the_users():  # C6
    names = [type(callback).__name__ for callback in Remember.trainer.callbacks]
    assert {"Remember", "ResultsWriter", "LastCheckpoint", "SaveVerbConfig"} <= set(names)


def test_each_verb_saves_its_own_configuration(run):  # C10
    before = (run / "fit.yaml").read_text()
    main(["test", f"--config={run / 'fit.yaml'}"])
    main(["validate", f"--config={run / 'test.yaml'}"])
    main(["predict", f"--config={run / 'validate.yaml'}"])
    assert (run / "fit.yaml").read_text() == before
    assert {"fit", "test", "validate", "predict"} < set(read_results(run))
    with (run / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 797
    assert {"index", "label", "predicted", "probability"} < set(rows[0])
    assert (run / "logs" / "test").is_dir()


def test_short_names_of_classes(tmp_path):  # class_path without its package
    main(
        [
            "fit",
            "--model=ImageClassification",
            "--model.backbone=vit_nano",
            "--data=DigitsDataModule",
            "--data.protocol=tune",
            "--data.shots=1",
            "--model.pretrained=false",
            "--model.adapter=LinearProbeConfig",
            "--model.optimizer=SGD",
            "--model.optimizer.lr=1e-2",
            "--trainer.max_epochs=1",
            "--trainer.limit_val_batches=1",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            f"--run_dir={tmp_path / 'new'}",
        ]
    )
    config = saved(tmp_path / "new" / "fit.yaml")
    assert config["model"]["init_args"]["optimizer"]["class_path"].endswith("SGD")
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
    assert "test" not in read_results(tmp_path / "new"), "tune never tests"
    assert not (tmp_path / "new" / "logs").exists()


@pytest.mark.parametrize(
    "module", ["ImageClassification", "VideoClassification", "CausalLanguageModel", "VisionLanguage"]
)
def test_a_module_by_its_name_alone_has_its_own_defaults(module, capsys):
    with pytest.raises(SystemExit):
        main(["fit", f"--model={module}", "--data=DigitsDataModule", "--model.pretrained=false", "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    schedule = inspect.signature(getattr(lightning_modules, module)).parameters["schedule"].default
    assert options["schedule"] == asdict(schedule)
    assert options["adapter"]["class_path"] == "replora.RepLoRAConfig"
    assert options["pretrained"] is False


def test_one_batch_is_not_all_of_them():
    """Even where the union of the two types was written the other way round before, as ray.tune does."""
    options = ["--config=quickstart.yaml", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1.0"]
    before = "from typing import Union; Union[float, int, None]"
    program = f"{before}; from replora.cli.main import main; main(['fit', *{options}, '--print_config'])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    trainer = yaml.safe_load(printed)["trainer"]
    assert repr(trainer["limit_val_batches"]) == "1"
    assert repr(trainer["limit_test_batches"]) == "1.0"


def test_dry_run_leaves_nothing(tmp_path):
    fit(tmp_path / "run", "--trainer.fast_dev_run=true")
    assert not list(tmp_path.rglob("*.json"))


# --- measuring and resuming


def test_a_test_alone_measures_the_runs_last_weights(run):
    before = read_results(run)["test"]
    main(["test", f"--config={run / 'fit.yaml'}"])
    after = read_results(run)["test"]
    assert after["metrics"] == before["metrics"]
    assert weights_source(after).endswith("checkpoints/last.ckpt (after 1 epochs)")


def test_a_checkpoint_leads_to_its_run(run, tmp_path):
    config = saved(run / "fit.yaml")
    del config["run_dir"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    main(["validate", f"--config={tmp_path / 'other.yaml'}", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"])
    assert "validate" in read_results(run)


def test_resuming_goes_on_in_the_same_directory(run):
    main(["fit", f"--config={run / 'fit.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=2"])
    content = read_results(run)
    assert content["fit"]["epochs"] == 2
    assert content["fit"]["resumed_from"].endswith("last.ckpt")
    assert (run / "logs" / "fit-2" / "metrics.csv").is_file()
    assert (run / "logs" / "fit" / "metrics.csv").is_file()


def test_a_finished_run_is_not_overwritten(run, capsys):
    error = refused(capsys, "fit", f"--config={run / 'fit.yaml'}")
    assert f"holds a run: its state is in {run / 'checkpoints/last.ckpt'}" in error
    assert f"--ckpt_path {run / 'checkpoints/last.ckpt'}, choose a new directory with --run_dir" in error


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_untrained_weights_are_not_measured(verb, capsys):
    assert f"{verb} needs trained weights. Give the run" in refused(capsys, verb, *DIGITS)


def test_wrong_checkpoints(run, tmp_path, capsys):
    config = f"--config={run / 'fit.yaml'}"
    assert "There is no checkpoint nowhere.ckpt" in refused(capsys, "test", config, "--ckpt_path=nowhere.ckpt")
    assert "is an adapter for replora.load_adapter" in refused(
        capsys, "test", config, f"--ckpt_path={run / 'adapter.safetensors'}"
    )
    (tmp_path / "half.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:1000])
    assert "is damaged, or no checkpoint that a fit wrote" in refused(
        capsys, "test", config, f"--ckpt_path={tmp_path / 'half.ckpt'}"
    )
    error = refused(
        capsys,
        "test",
        config,
        "--model.adapter.rank=3",
        f"--run_dir={tmp_path / 'new'}",
        last := f"--ckpt_path={run / 'checkpoints/last.ckpt'}",
    )
    assert "adapter.rank: 2 in the checkpoint, 3 here" in error
    error = refused(capsys, "test", config, "--seed_everything=4", f"--run_dir={tmp_path / 'new'}", last)
    assert "backbone.fingerprint" in error
    assert "Traceback" not in error


# --- errors and help


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.adapter.rnk=3"], "RepLoRAConfig has no option 'rnk'. Did you mean --model.adapter.rank?"),
        (["--model.backbnoe=x"], "ImageClassification has no option 'backbnoe'. Did you mean --model.backbone?"),
        (["--trainer.max_epoch=3"], "--trainer.max_epoch: there is no such option. Did you mean --trainer.max_epochs?"),
        (["--model=ImageClasification"], "there is no class 'ImageClasification'. Did you mean 'ImageClassification'"),
        (["--data", "VTABDatamodule"], "there is no class 'VTABDatamodule'. Did you mean 'VTABDataModule'"),
        (["--model.adapter", "LoraConfig"], "there is no class 'LoraConfig'. Did you mean 'LoRAConfig'"),
        (["--model.adapter.factors=mpl"], "--model.adapter.factors: 'mpl' is not an option. Did you mean 'mlp'"),
        (["--data.preset", "cloz"], "--data.preset: 'cloz' is not an option. Did you mean 'cloze'"),
        (["--model.adapter.rank=0"], "rank: 0 is out of range"),
        (["--model.adapter.targets=[query]"], "'query'"),
        (["--model.backbone=vit_nanno"], "Did you mean 'vit_nano'"),
        (["--model.schedule.per=batch"], "'batch'"),
        (["--model.drop_path_rate=1.5"], "drop_path_rate: 1.5 is out of range"),
        (["--data.image_size=33"], "Set --data.image_size 32"),
        (["--data.protocol=best"], "'best'"),
        (["--trainer.max_epochs=-1"], "set --trainer.max_epochs"),
        (["--model.checkpoint=nowhere.npz"], "there is no file 'nowhere.npz'"),
        (["--seed_everything=-1"], "--seed_everything -1 is not a seed: give an integer in [0, 4294967295]"),
        (["--seed_everything=99999999999"], "--seed_everything 99999999999 is not a seed"),
        (["--data.subset_seed=-3"], "subset_seed=-3 is too small: it must be at least 0"),
    ],
)
def test_errors_say_what_is_wrong_without_a_traceback(options, message, tmp_path, capsys):
    error = refused(capsys, "fit", *DIGITS, f"--run_dir={tmp_path / 'run'}", *options)
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "results.json").exists()


def test_missing_model_or_data(capsys):
    assert "There is no --data: give a configuration" in refused(capsys, "fit", "--model=ImageClassification")


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("REPLORA_DEBUG", "1")
    with pytest.raises(ValueError, match="drop_path_rate"):
        main(["fit", *DIGITS, "--model.drop_path_rate=1.5"])


def test_a_defect_is_reported_with_its_traceback(monkeypatch, capsys):
    def broken(*_args, **_options):
        raise ValueError("a bug")

    monkeypatch.setattr(trainer_cli, "TrainerCLI", broken)
    monkeypatch.setattr(sys, "argv", ["replora-cli", "fit", "--run_dir", "my runs"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "ValueError: a bug (test_trainer_cli.py, line" in error
    assert "Traceback" not in error
    report = Path(re.search(r"the file (\S+),", error)[1])
    content = report.read_text()
    report.unlink()
    assert content.startswith("replora-cli fit --run_dir 'my runs'\n")
    assert "torch " in content
    assert 'raise ValueError("a bug")' in content
    monkeypatch.setenv("REPLORA_DEBUG", "1")
    with pytest.raises(ValueError, match="a bug"):
        main()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (
            ["fit", "--model.help", "ImageClassification"],
            [
                "--model.backbone",
                "--model.pretrained",
                "--model.checkpoint",
                "--model.drop_path_rate",
                "--model.label_smoothing",
                "--model.adapter",
                "--model.optimizer",
                "--model.schedule.warmup_epochs",
                "--model.schedule.per",
            ],
        ),
        (["fit", "--model=ImageClassification", "--model.adapter.help=RepLoRAConfig"], ["rank", "factors", "targets"]),
        (
            ["fit", "--data.help", "VTABDataModule"],
            ["--data.root", "--data.task", "--data.protocol", "--data.shots", "--data.train_fraction", "--data.track"],
        ),
        (["fit", "--data.help", "DigitsDataModule"], ["--data.batch_size", "--data.subset_seed"]),
    ],
)
def test_the_help_of_a_class_shows_every_option(arguments, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert [option for option in options if option not in shown] == []
    assert "dict_kwargs" not in shown


@pytest.mark.parametrize("line", [line.split()[1:] for line in _help().splitlines() if ".help " in line], ids=" ".join)
def test_the_help_names_commands_that_work(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("package", ["datamodules", "lightning_modules"])
def test_a_package_that_hides_ours_is_named(monkeypatch, package, capsys, tmp_path):
    other = types.ModuleType(package)
    other.__file__ = str(tmp_path / package / "__init__.py")
    monkeypatch.setitem(sys.modules, package, other)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {package: ["replora", "culprit"]})
    error = refused(capsys, "fit", *DIGITS)
    assert f"The package '{package}' that Python finds is {other.__file__}" in error
    assert "It belongs to the installed culprit" in error
