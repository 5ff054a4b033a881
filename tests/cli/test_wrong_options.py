"""Wrong options: each gets one message with the option, what it takes and the nearest name, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from replora.cli import main as cli
from replora.config_files import packaged_configs
from tests.cli.helpers import refused

QUICK = "fit --config=quickstart.yaml"
# Command line -> parts of its message. The message never shows the parser's own dump.
UNKNOWN_OPTIONS = {
    f"{QUICK} --model.bakbone=vit_nano": "--model.bakbone: ImageClassification has no option|--model.backbone?",
    "fit --config=vtab.yaml --data.train_fractoin=0.1": "VTABDataModule has no option|--data.train_fraction?",
    "fit --config=vtab.yaml --data.imagesize=32": "--data.image_size",
    "fit --config=vtab.yaml --data.batchsize=32": "--data.batch_size",
    "fit --config=vtab.yaml --data.shot=3": "--data.shots?",
    "fit --config=vtab.yaml --data.seed=3": "--data.subset_seed",
    f"{QUICK} --model.lr=0.01": "ImageClassification has no option 'lr'|--model.optimizer.lr or",
    f"{QUICK} --lr=0.1": "--lr: there is no such option|--model.optimizer.lr or",
    f"{QUICK} --learning_rate=0.1": "--learning_rate: there is no such option",
    f"{QUICK} --weight_decay=0.1": "--model.optimizer.weight_decay?",
    f"{QUICK} --rank=4": "--model.adapter.rank?",
    f"{QUICK} --epochs=4": "--trainer.max_epochs",
    f"{QUICK} --max_epochs=4": "--trainer.max_epochs?",
    f"{QUICK} --batch_size=4": "--data.batch_size?",
    f"{QUICK} --image_size=4": "--data.image_size",
    f"{QUICK} --devices=4": "--trainer.devices?",
    f"{QUICK} --seed=4": "--seed_everything",
    f"{QUICK} --ckpt=best": "--ckpt_path?",
    f"{QUICK} --rundir=x": "--run_dir?",
    f"{QUICK} --modle.backbone=x": "--model.backbone?",
    f"{QUICK} --dat.batch_size=3": "--data.batch_size",
    f"{QUICK} --trainer.epochs=3": "--trainer.max_epochs",
    f"{QUICK} --trainer.gpus=3": "--trainer.gpus: there is no such option",
    f"{QUICK} --trainer.callback.monitor=x": "--trainer.callback",
    f"{QUICK} --model.adapter.rnk=3": "RepLoRAConfig has no option 'rnk'|--model.adapter.rank?",
    f"{QUICK} --model.adapter.r=3": "RepLoRAConfig has no option 'r'",
    f"{QUICK} --model.adapter.lora_alpha=3": "--model.adapter.alpha",
    f"{QUICK} --model.adapter.target_modules=[q]": "--model.adapter.targets",
    f"{QUICK} --model.adapter=LinearProbeConfig --model.adapter.hiddn=3": "LinearProbeConfig has no option",
    f"{QUICK} --model.optimizer.learning_rate=3": "AdamW has no option 'learning_rate'|--model.optimizer",
    f"{QUICK} --model.optimizer.momentum=0.9": "AdamW has no option 'momentum'",
    f"{QUICK} --model.schedule.warmup=3": "--model.schedule.warmup",
    f"{QUICK} --model.backbone.name=x": "model.backbone takes a text and has no options of its own",
    f"{QUICK} --data.clips.num_frames=8": "DigitsDataModule has no option",
    f"{QUICK} --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=x": "EarlyStopping has no option 'monitr'",
    f"{QUICK} -x": "there is no such option",
    f"{QUICK} stray": "takes no argument 'stray'",
    "fit vtab.yaml": "takes no argument 'vtab.yaml'|--config vtab.yaml",
    "test runs/mine": "takes no argument 'runs/mine'|--config runs/mine",
    f"{QUICK} --run_dir x y": "takes no argument 'y'",
    f"{QUICK} ": "takes no argument '' without an option before it.",
    f"{QUICK} --model.adapter={{rnk:3}}": "--model.adapter",
    f"{QUICK} --trainer.callbacks=[{{class_path:EarlyStopping}}]": "--trainer.callbacks",
}
WRONG_VALUES = {
    f"{QUICK} --model.optimizer.lr=fast": "--model.optimizer.lr takes a number, not 'fast'",
    f"{QUICK} --model.optimizer.lr=0,01": "--model.optimizer.lr takes a number, not '0,01'",
    f"{QUICK} --model.optimizer.betas=0.9": "--model.optimizer.betas takes a list",
    f"{QUICK} --model.adapter.targets=q,v": "--model.adapter.targets takes a list|Write [q,v]",
    f"{QUICK} --model.adapter.rank=x": "--model.adapter.rank takes an integer, not 'x'",
    f"{QUICK} --model.adapter.rank=1.5": "--model.adapter.rank takes an integer",
    f"{QUICK} --model.adapter.rank=[4]": "--model.adapter.rank takes an integer",
    f"{QUICK} --model.adapter.blocks=first": "--model.adapter.blocks takes 'all' or a list",
    f"{QUICK} --model.adapter.alpha=big": "--model.adapter.alpha takes a number",
    f"{QUICK} --model.drop_path_rate=much": "--model.drop_path_rate takes a number",
    f"{QUICK} --model.pretrained=maybe": "--model.pretrained takes true or false",
    f"{QUICK} --model.schedule.warmup_epochs=two": "--model.schedule.warmup_epochs takes",
    f"{QUICK} --model.compile=yes,please": "--model.compile takes true or false",
    f"{QUICK} --data.batch_size=1.5": "--data.batch_size takes an integer, not '1.5'",
    f"{QUICK} --data.batch_size=all": "--data.batch_size takes an integer",
    f"{QUICK} --data.shots=few": "--data.shots takes an integer or null",
    f"{QUICK} --data.train_fraction=10%": "--data.train_fraction takes a number, not '10%'",
    f"{QUICK} --data.protocol=tunee": "--data.protocol: 'tunee'|'tune'",
    f"{QUICK} --data.drop_last=2": "--data.drop_last takes true or false",
    f"{QUICK} --trainer.max_epochs=one": "--trainer.max_epochs takes an integer or null, not 'one'",
    f"{QUICK} --trainer.max_epochs=1.5": "--trainer.max_epochs takes an integer or null",
    f"{QUICK} --trainer.precision=99": "--trainer.precision takes",
    f"{QUICK} --trainer.precision=fp16": "--trainer.precision takes",
    f"{QUICK} --trainer.deterministic=often": "--trainer.deterministic takes",
    f"{QUICK} --trainer.logger=Wandb": "--trainer.logger: there is no class 'Wandb'|'WandbLogger'",
    f"{QUICK} --trainer.callbacks=EarlyStoping": "there is no class 'EarlyStoping'|'EarlyStopping'",
    f"{QUICK} --trainer.callbacks=EarlyStopping": "EarlyStopping|monitor",
    f"{QUICK} --trainer=3": "--trainer",
    f"{QUICK} --seed_everything=abc": "--seed_everything takes true or false or an integer",
    f"{QUICK} --test_after_fit=maybe": "--test_after_fit takes true or false",
    f"{QUICK} --model.optimizer=SGDD": "there is no class 'SGDD' of the kind Optimizer|'SGD'",
    f"{QUICK} --model.optimizer=torch.optim.Adamm": "there is no class 'torch.optim.Adamm'|'Adam'",
    f"{QUICK} --model.optimizer.class_path=os.system": "there is no class 'os.system' of the kind Optimizer",
    f"{QUICK} --model.adapter=os.system": "os.system",
    f"{QUICK} --data=os.system": "os.system",
    f"{QUICK} --model=replora.LoRAConfig": "replora.LoRAConfig",
    f"{QUICK} --model=nowhere.Mine": "nowhere.Mine",
    f"{QUICK} --trainer.max_epochs": "--trainer.max_epochs takes an integer or null; a value is missing",
    f"{QUICK} --trainer.accelerator": "--trainer.accelerator takes",
    f"{QUICK} --data.shots": "--data.shots takes an integer or null; a value is missing",
    f"{QUICK} --data.protocol --data.shots=2": "--data.protocol takes 'tune' or 'final' or 'holdout'; a value",
    f"{QUICK} --run_dir": "--run_dir takes a path or null; a value is missing",
    "fit --config": "--config",
    f"{QUICK} --trainer.accumulate_grad_batches=0": "must be at least 1",
    f"{QUICK} --trainer.check_val_every_n_epoch=0": "must be at least 1",
    f"{QUICK} --trainer.gradient_clip_val=-1": "must be at least 0",
    f"{QUICK} --trainer.log_every_n_steps=-1": "must be at least 0",
    f"{QUICK} --trainer.devices=two": "devices",
    f"{QUICK} --data.image_size=20000": "pixels needs at least|and this machine has|--data.image_size",
    f"{QUICK} --model.adapter.rank=1000000000": "rank: 1000000000 is out of range",
    f"{QUICK} --model.num_classes=3": "DigitsDataModule has no option for it",
    "fit --config=vtab.yaml --model.num_classes=3": "the number of classes is the data's. Set --data.num_classes",
    "fit --config=ssv2.yaml --model.num_frames=3": "the number of frames is the data's. Set --data.clips.num_frames",
    "fit --config=ssv2.yaml --model.image_size=3": "the size of the images is the data's",
    f"{QUICK} --model.image_size=3": "the size of the images is the data's. Set --data.image_size",
    f"{QUICK} --model.adapter.rank+=3": "--model.adapter.rank+= adds to a list, but it takes an integer",
    f"{QUICK} --model.backbone+=x": "--model.backbone+= adds to a list|Write --model.backbone instead",
    f"{QUICK} --model.adapter+=replora.LoRAConfig": "--model.adapter+= adds to a list",
    f"{QUICK} --run_dir=": "--run_dir is empty, as from a variable that is not set",
    "test --ckpt_path ": "--ckpt_path is empty",
    f"{QUICK} --model.optimizer=": "there is no class '' of the kind Optimizer",
    f"{QUICK} --model.adapter.targets=": "--model.adapter.targets takes a list",
    f"{QUICK} --config={{model:": "--config, line 1, column 8 is not valid YAML",
    f"{QUICK} --config={{a:[&a,*a]}}": "--config",
    "fit": "There is no --model: give a configuration",
    "validate": "There is no --model: give a configuration",
    "fit --model=ImageClassification": "There is no --data: give a configuration|DigitsDataModule",
    "fit --data=DigitsDataModule": "There is no --model: give a configuration|ImageClassification",
}
FILES = {
    "model:\n  bakbone: x\n": "model.bakbone",
    "modle:\n  class_path: ImageClassification\n": "modle",
    "model:\n  class_path: ImageClassification\n  init_args:\n    bakbone: x\n": "no option 'bakbone'. Did you mean",
    "trainer:\n  max_epoch: 3\n": "trainer.max_epoch: there is no such option. Did you mean trainer.max_epochs?",
    "trainer:\n  max_epochs: three\n": "trainer.max_epochs takes an integer or null, not 'three'",
    "data:\n  class_path: DigitDataModule\n": "there is no class 'DigitDataModule'",
    "data:\n  class_path: DigitsDataModule\n  init_args:\n    batch_size: many\n": "data.batch_size takes an integer",
    "data: 3\n": "data takes",
    "- a\n- b\n": "is no configuration: it is not a mapping but a list",
    "model: null\n": "model takes a class and its options, not null",
    "data: null\n": "data takes a class and its options, not null",
    "model:\n  init_args: null\n": "model.init_args takes a mapping of options",
    "model:\n  class_path: null\n": "model.class_path takes the name of a class",
    "1: 2\n": "a mapping of keys that are no text",
    "trainer:\n  callbacks:\n  - class_path: EarlyStoping\n": "callbacks[0]: there is no class|'EarlyStopping'",
    "trainer:\n  callbacks:\n  - clas_path: EarlyStopping\n": "callbacks[0] takes a class_path and init_args",
    "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args:\n      monitr: x\n": (
        "trainer.callbacks[0].monitr: EarlyStopping has no option 'monitr'. Did you mean trainer.callbacks[0].monitor?"
    ),
    "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitor: a, patience: x}\n": (
        "trainer.callbacks[0].patience takes an integer, not 'x'"
    ),
    "hello\n": "is no configuration: it is not a mapping but a str",
    "root:x:0:0\n": "is no configuration",
    "": "is no configuration: it is empty",
    "model: [\n": "is not valid YAML",
    "model:\n\t- x\n": "line 2, column 1 is not valid YAML",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: *nowhere\n": "is not valid YAML",
    "a: &a [*a]\n": "aliases expand",
    "data:\n  seed: 8\n  seed: 9\n": "line 3, column 3: the key 'seed' is there twice, first in line 2",
    "3: x\n": "is no configuration",
    "model: !!python/object/apply:os.system [echo]\n": "is not valid YAML",
    "[" * 4000: "nested too deeply",
}
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(error: str, parts: str, arguments: object) -> None:
    for part in parts.split("|"):
        assert part in error, arguments
    assert len(error.strip().splitlines()) <= 3
    assert len(error) < 1200
    for foreign in ("Traceback", "Union subtypes", "NestedArg", "Namespace(", "usage:"):
        assert foreign not in error


@pytest.mark.parametrize("call", UNKNOWN_OPTIONS | WRONG_VALUES)
def test_an_option(call: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(refused(capsys, *call.split(" ")), (UNKNOWN_OPTIONS | WRONG_VALUES)[call], call)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [*FILES, BOMB], ids=[repr(name)[:40] for name in [*FILES, BOMB]])
def test_a_configuration(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    error = refused(capsys, "fit", "--config=quickstart.yaml", "--config=mine.yaml")
    check(error, FILES.get(content, "aliases expand"), content)
    assert "mine.yaml" in error
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    assert "image.yaml is no configuration: it is not a text in UTF-8" in refused(capsys, "fit", "--config=image.yaml")


# Other verbs, as `replora-cli` runs them.
COMMANDS = {
    "train": "There is no verb 'train'. Did you mean 'fit'?",
    "eval": "Did you mean 'test'?",
    "fitt": "Did you mean 'fit'",
    "preprae vtab": "'prepare'",
    "prepare vtb": "prepare: there is no 'vtb'. Did you mean 'vtab'?",
    "prepare": "",
    "prepare vtab --root": "prepare vtab --root takes a path or null; a value is missing",
    "prepare vtab --tsk=cifar": "prepare vtab --tsk: there is no such option|--task",
    "prepare clip-features": "prepare clip-features needs SOURCE",
    "predict-files": "predict-files needs RUN: Directory of the run",
    "predict-files run": "predict-files needs IMAGES",
    "predict-files run a.jpg --topk=3": "predict-files --topk: there is no such option. Did you mean --top_k?",
    "predict-files run a.jpg --top_k=three": "predict-files --top_k takes an integer, not 'three'",
    "predict-files run a.jpg --force": "predict-files --force takes true or false; a value is missing",
    "predict-files run --out=x.csv a.jpg b.jpg": "run is not the directory of a finished fit",
    "export": "export needs SOURCE",
    "export a b": "export takes SOURCE: 'b' is one argument too many",
    "export a --formt=peft": "export --formt: there is no such option. Did you mean --format?",
    "merge": "merge needs SOURCE",
    "merge x --forc=true": "merge --forc: there is no such option. Did you mean --force?",
    "plot": "plot needs SOURCE",
    "plot nowhere": "No run, and no configuration nowhere",
    "plot a --images=many": "plot --images takes an integer, not 'many'",
    "sweep": "sweep needs --config",
    "sweep --config": "sweep --config takes a text; a value is missing",
    "sweep --config=nowhere.yaml": "--config nowhere.yaml: no such file",
    "sweep --dry_rn=true": "sweep --dry_rn: there is no such option. Did you mean --dry_run?",
    "sweep --cpus_per_trial=two": "--cpus_per_trial takes a number",
    "report": "report needs RUNS",
    "report ": "report: what follows 'report' is empty, as from a variable that is not set",
    "export run --out=": "export: what follows '--out=' is empty",
    "merge run --out ": "merge: what follows '--out' is empty",
    "plot ": "plot: what follows 'plot' is empty",
    "predict-files run ": "what follows 'run' is empty",
    "prepare images --root ": "is empty",
    "quickstart --out ": "is empty",
    "report nowhere": "There is no nowhere",
    "quickstart --seed=x": "quickstart --seed takes an integer, not 'x'",
    "quickstart foo": "quickstart takes options alone: 'foo' is one argument too many",
    "configs x": "configs takes options alone",
}


@pytest.mark.parametrize("call", [call for call in COMMANDS if COMMANDS[call]])
def test_a_command(call: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(refused(capsys, *call.split(" ")), COMMANDS[call], call)
    assert not list(tmp_path.iterdir())


CONFIGS = [name for name in packaged_configs() if "/" not in name]
MISSPELLED = {
    "--data.batch_sze=3": "has no option 'batch_sze'. Did you mean --data.batch_size",
    "--model.adapter.rnk=3": "has no option 'rnk'. Did you mean --model.adapter.rank?",
    "--trainer.max_epoch=3": "there is no such option. Did you mean --trainer.max_epochs?",
    "--model.optimizer.lr=quick": "--model.optimizer.lr takes a number, not 'quick'",
}


@pytest.mark.parametrize("option", MISSPELLED)
@pytest.mark.parametrize("config", CONFIGS)
def test_an_option_of_each_configuration(config: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(refused(capsys, "fit", f"--config={config}", option), MISSPELLED[option], config)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize("option", MISSPELLED)
def test_an_option_of_each_verb(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(refused(capsys, verb, "--config=quickstart.yaml", option), MISSPELLED[option], verb)


VERBS = [
    f"{verb} {word}" if word else verb
    for verb, command in cli.COMMANDS.items()
    for word in (command if isinstance(command, dict) else [""])
]


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_a_command_does_not_have(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(refused(capsys, *verb.split(" "), "--no_such_option=1"), f"{verb} --no_such_option: there is no such", verb)
    check(refused(capsys, *verb.split(" "), "--no_such_option"), f"{verb} --no_such_option: there is no such", verb)
    assert not list(tmp_path.iterdir())
