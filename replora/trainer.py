"""fit, validate, test and predict: LightningCLI, and what is different here.

- The command line wins over the options in a checkpoint.
- Each run has one directory, with the configuration of each verb in a file of its own (`fit.yaml`, `test.yaml`, ...).
- `--config NAME` finds the configurations that ship with the package.
- The optimiser is made by the module, when the adapter is in place.
- validate, test and predict never measure untrained weights by accident.
- All verbs have the same options, so that one verb reads what another one saved.
"""

from __future__ import annotations

import inspect
import logging
import warnings
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

# Importing the packages makes their classes known by name: --model ImageClassification, --data VTABDataModule.
from datamodules import BaseDataModule
from lightning_modules import (
    AdaptedModule,
    AnswerWriter,
    CausalLanguageModel,
    LastCheckpoint,
    PredictionWriter,
    ResultsWriter,
    SubmissionWriter,
    VisionLanguage,
)
from replora.adapters.config import AdapterConfig
from replora.config_files import find_config
from replora.errors import RepLoRAError, nearest
from replora.former_names import renamed
from replora.recipes import changed_options
from replora.results import read_results

# Messages that ask for what is already so, or advertise.
SETTLED_WARNINGS = (
    ".*does not have many workers.*",  # 1,000 decoded images in memory need none
    ".*it is recommended to use `Trainer\\(devices=1.*",  # padded samples are not counted
    ".*Checkpoint directory .* exists and is not empty.*",  # a run that resumes
    ".*The dirpath has changed.*",  # a checkpoint measured into another run's directory
    ".*GPU available but not used.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the sampler skips what was seen
    ".*You have overridden `transfer_batch_to_device`.*",  # questions of language models stay lists
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
)
NEEDLESS_MESSAGES = (
    *("Tip: ", "TPU available", "Loading `train_dataloader` to estimate", "For seamless cloud logging"),
    "callbacks returned in `LightningModule.configure_callbacks` will override",  # by themselves, in a test after a fit
)


UNTRAINED = "untrained"  # what --ckpt_path says where no training is wanted


class PackagedConfigFile(ActionConfigFile):
    """`--config`: a local file, or one that ships with the package. Says which."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if isinstance(values, str) and not any(mark in values for mark in "{\n"):  # else it is YAML itself
            file = find_config(values)
            rank_zero_info(f"config {values}: {file}")
            text = file.read_text(encoding="utf-8")
            values = str(file) if renamed(text) == text else renamed(text)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class SaveVerbConfig(SaveConfigCallback):
    """Saves the configuration as `<run_dir>/<verb>.yaml`: a test does not replace what the fit was made with."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        file = Path(self.config.run_dir) / self.config_filename
        file.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(file), skip_none=False, overwrite=True, multifile=False)


class TrainerCLI(LightningCLI):
    """Parses the command line of one verb and runs it.

    Args:
        arguments: The verb and its options.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.verb = arguments[0]
        self.untrained = False
        _let_whole_numbers_be_whole()
        for message in SETTLED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_needed)
        super().__init__(
            AdaptedModule,
            BaseDataModule,
            save_config_callback=SaveVerbConfig,
            save_config_kwargs={"config_filename": f"{self.verb}.yaml", "save_to_log_dir": False},
            # The module prints one line about its parameters, instead of a table.
            trainer_defaults={"log_every_n_steps": 1, "enable_model_summary": False},
            seed_everything_default=0,
            parser_kwargs={"prog": "replora-cli"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
        )
        if (results := self.options.run_dir / "results.json").exists():
            rank_zero_info(f"results: {results}")

    # --- options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one verb asked for: building the parsers of all four takes four times as long."""
        needless = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        return {self.verb: needless | {"verbose", "return_predictions", "ckpt_path"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        if "prog" not in kwargs:  # the verb's parser: its usage would list a hundred options before every error
            kwargs["usage"] = "%(prog)s [options]"
        parser = self.parser_class(allow_abbrev=False, **kwargs)
        help_text = "YAML file, local or packaged; repeatable, later ones win"
        parser.add_argument("-c", "--config", action=PackagedConfigFile, help=help_text)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=Path | None,
            help="The run's directory. Default: that of --ckpt_path, else runs/<time>-<task>-<method>",
        )
        parser.add_argument(
            "--ckpt_path",
            type=Path | None,
            help="Checkpoint to resume or to measure, `last` for that of --run_dir, `untrained` to measure a language "
            "model before any training. Default: fit starts anew, other verbs take RUN_DIR/checkpoints/last.ckpt",
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="Whether fit ends with a test of the last weights, where the data's protocol has a test",
        )
        # Each link is passed over where the classes chosen have no such argument.
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("model.init_args.backbone", "data.init_args.tokenizer")
        parser.link_arguments("data.init_args.clips.num_frames", "model.init_args.num_frames")
        parser.link_arguments("model.init_args.revision", "data.init_args.revision")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        _refuse_misunderstandings(args)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Leave the options alone: Lightning would put those in the checkpoint above the command line's."""

    # --- the run

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb."""
        options: Namespace = self.config[self.verb]
        return options

    def before_instantiate_classes(self) -> None:
        self.options.ckpt_path = self._checkpoint()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self.options.ckpt_path}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.untrained and self.model.backbone.head_names:
            raise RepLoRAError(
                f"--ckpt_path {UNTRAINED}: {self.model.backbone.name} has a new head of random weights, so there is "
                "nothing to measure before training."
            )
        if (recipe := getattr(self.datamodule, "recipe", None)) is not None:
            self.datamodule.recipe_changes = changed_options(recipe, self.options.as_dict())
        run_dir = self._run_dir()
        self.options.run_dir = run_dir
        given = self.config_init[self.verb].trainer
        callbacks: list[Callback] = [ResultsWriter(run_dir, self.untrained)]
        if given.enable_checkpointing is not False and not given.fast_dev_run:
            # The last epoch's weights, in one file: what a run is measured with, and what it resumes from.
            callbacks.append(LastCheckpoint(run_dir / "checkpoints"))
        if isinstance(self.model, CausalLanguageModel):
            callbacks.append(AnswerWriter(run_dir))
        elif isinstance(self.model, VisionLanguage):
            callbacks.append(SubmissionWriter(run_dir))
        elif self.verb == "predict":
            callbacks.append(PredictionWriter(run_dir))
        self.trainer_defaults["callbacks"] = callbacks  # LightningCLI adds these to the user's
        if given.logger in (None, True):
            kwargs["logger"] = _loggers(run_dir, self.verb)
        return super().instantiate_trainer(default_root_dir=run_dir, **kwargs)

    def after_fit(self) -> None:
        """Test the last weights, once, under the protocols that have a test."""
        tested = getattr(self.datamodule, "protocol", None) in ("final", "holdout")
        if tested and self.options.test_after_fit and not self.trainer.interrupted:
            quiet = self.trainer.progress_bar_callback is None
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=not quiet)

    def predict(self, **kwargs: Any) -> None:
        """Without collecting predictions in memory: `PredictionWriter` writes them."""
        self.trainer.predict(return_predictions=False, **kwargs)

    def _checkpoint(self) -> Path | None:
        """The checkpoint to use: `--ckpt_path`, and for verbs that need one the last of the run.

        Raises:
            RepLoRAError: It does not exist, or is no checkpoint.
        """
        path: Path | None = self.options.ckpt_path
        run_dir: Path | None = self.options.run_dir
        last = None if run_dir is None else run_dir / "checkpoints" / "last.ckpt"
        if path is None and self.verb == "fit":
            return None
        if str(path) == UNTRAINED and self.verb != "fit":
            self.untrained = True
            return None
        if path is None or str(path) == "last":
            if last is None:
                raise RepLoRAError(
                    f"{self.verb} needs trained weights. Give the run, --config RUN/fit.yaml, or a checkpoint, "
                    "--ckpt_path RUN/checkpoints/last.ckpt. A language model can be measured before any training: "
                    f"--ckpt_path {UNTRAINED}."
                )
            path = last
        path = path.expanduser()
        if not path.is_file():
            raise RepLoRAError(
                f"There is no checkpoint {path}. A fit writes RUN/checkpoints/last.ckpt after every epoch."
            )
        if path.suffix == ".safetensors":
            raise RepLoRAError(
                f"--ckpt_path: {path} is an adapter for replora.load_adapter; a run's checkpoint is "
                "RUN/checkpoints/last.ckpt."
            )
        if not zipfile.is_zipfile(path):
            raise RepLoRAError(f"--ckpt_path: {path} is damaged or no checkpoint of torch.")
        return path

    def _run_dir(self) -> Path:
        """The run's directory.

        Raises:
            RepLoRAError: A fit that does not resume would mix with an earlier one.
        """
        given: Path | None = self.options.run_dir
        resumed: Path | None = self.options.ckpt_path
        if given is None and resumed and Path(resumed).parent.name == "checkpoints":
            given = resumed.parents[1]
        if given is None:
            task, method = self.datamodule.describe()["task"], self.model.describe()["method"]
            given = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{task}-{method}"
        holds_results = (given / "results.json").exists()
        if self.verb == "fit" and resumed is None and holds_results and "fit" in read_results(given):
            raise RepLoRAError(
                f"{given} holds a finished run. Choose a new directory with --run_dir, resume with --ckpt_path "
                f"{given / 'checkpoints' / 'last.ckpt'}, or delete it."
            )
        return given


def _refuse_misunderstandings(arguments: list[str]) -> None:
    """What the parser would drop without a word, or refuse without saying what there is.

    Raises:
        RepLoRAError: The number of classes is given to the model, or there is no class or choice of a given name.
    """
    bases = {"--model": AdaptedModule, "--data": BaseDataModule, "--model.adapter": AdapterConfig}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        value = value if equals else " ".join(arguments[position + 1 : position + 2])
        if option in ("--model.num_classes", "--model.init_args.num_classes"):
            raise RepLoRAError("The number of classes is the data's. For a data set of your own: --data.num_classes.")
        if option in ("--model.num_frames", "--model.init_args.num_frames"):
            raise RepLoRAError("The number of frames is the data's: --data.clips.num_frames.")
        if option in bases and value.isidentifier():
            known = [cls.__name__ for cls in _subclasses(bases[option])]
            if value not in known:
                raise RepLoRAError(f"{option}: there is no class {value!r}. {nearest(value, known)}")
        group, _, name = option.replace(".init_args", "").rpartition(".")
        choices = _choices(bases[group], name) if group in bases and value.isidentifier() else set()
        if choices and value not in choices:
            raise RepLoRAError(f"{option}: {value!r} is not an option. {nearest(value, sorted(choices))}")


def _choices(base: type, name: str) -> set[str]:
    """The values of an option of a few fixed ones, of all classes that have it; none if one of them takes others."""
    hints = [get_type_hints(cls.__init__).get(name) for cls in _subclasses(base)]  # type: ignore[misc]
    found = [hint for hint in hints if hint is not None]
    if any(get_origin(hint) is not Literal for hint in found):
        return set()
    return {choice for hint in found for choice in get_args(hint)}


def _let_whole_numbers_be_whole() -> None:
    """`--trainer.limit_val_batches 1` is one batch, 1.0 is all of them, whatever was imported before Lightning.

    The first type of a union that fits is taken, and `typing` hands out one object for Union[int, float] and
    Union[float, int], that which was written first: after `import ray.tune` the Trainer would take 1 for 1.0.
    """
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    for option, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[option] = int | float | None


def _subclasses(base: type) -> Iterator[type]:
    """All concrete ones."""
    cls: type
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from _subclasses(cls)


def _is_needed(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in NEEDLESS_MESSAGES)


def _loggers(run_dir: Path, verb: str) -> list[Logger]:
    """CSV and TensorBoard, in `logs/<verb>`, or `logs/<verb>-2` and so on where that exists: CSVLogger empties it."""
    version, count = verb, 1
    while (run_dir / "logs" / version).exists():
        count += 1
        version = f"{verb}-{count}"
    return [
        CSVLogger(run_dir, name="logs", version=version),
        TensorBoardLogger(run_dir, name="logs", version=version, default_hp_metric=False),
    ]
