"""fit, validate, test and predict: LightningCLI and its differences here.

- The command line takes precedence over the options in a checkpoint.
- Each run has one directory, with the configuration of each verb in its own file (`fit.yaml`, `test.yaml`, ...).
- `--config NAME` finds the configurations that ship with the package.
- The module creates the optimizer, after the adapter is injected.
- validate, test and predict never measure untrained weights by accident.
- All verbs have the same options, so that one verb reads the configuration that another one saved.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import warnings
import zipfile
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

# Importing the packages makes their classes available by name: --model ImageClassification, --data VTABDataModule.
from datamodules import BaseDataModule
from lightning_modules import AdaptedModule, FinalValidation, LastCheckpoint, ResultsWriter
from lightning_modules.callbacks.progress import progress_callbacks
from lightning_modules.callbacks.results_writer import best_checkpoint, trained_classes
from replora.adapters.config import AdapterConfig
from replora.config_files import find_config, former_defaults
from replora.errors import RepLoRAError, nearest
from replora.identity import flat_options, plain_option
from replora.recipes import changed_options
from replora.reports.summary import summarize
from replora.results import UNTRAINED, DivergedError
from replora.resuming import is_finished
from replora.run_directory import check_unused, create_unique, last_checkpoint, locked
from replora.runs import concrete_subclasses

# Warnings that do not apply here, with the reason.
IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # 1,000 decoded images in memory need no workers
    ".*it is recommended to use `Trainer\\(devices=1.*",  # padded samples are not counted
    ".*(Checkpoint|Experiment logs) directory .* exists and is not empty.*",  # a resumed run
    ".*The dirpath has changed.*",  # a checkpoint measured into another run's directory
    ".*GPU available but not used.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the sampler does
    ".*You have overridden `transfer_batch_to_device`.*",  # questions for language models stay lists
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    ".*It is recommended to use .self.log.*sync_dist=True.*",  # what is logged is a metric over all processes
)
IGNORED_MESSAGES = (
    *("Tip: ", "TPU available", "Loading `train_dataloader` to estimate", "For seamless cloud logging"),
    "callbacks returned in `LightningModule.configure_callbacks` will override",  # in a test after a fit
)


class PackagedConfigFile(ActionConfigFile):
    """`--config`: a local file, or one that ships with the package; logs which."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        file = None
        if isinstance(values, str) and not any(mark in values for mark in "{\n"):  # otherwise it is YAML
            file = find_config(values)
            rank_zero_info(f"config {values}: {file}")
            values = str(file)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        if file is not None:
            _point_to_folder(cfg, file)
            for name, value in former_defaults(file).items():
                cfg[name] = value


def _point_to_folder(options: Any, file: Path) -> None:
    """Let `RUN/fit.yaml` mean the run in whose folder it lies, wherever it was written: the folder may be a copy."""
    run_dir = options.get("run_dir")
    if run_dir is None or not any((file.parent / name).exists() for name in ("results.json", "checkpoints")):
        return
    checkpoint = options.get("ckpt_path")
    if checkpoint is not None and Path(checkpoint).is_relative_to(run_dir):
        options["ckpt_path"] = file.parent / Path(checkpoint).relative_to(run_dir)
    options["run_dir"] = file.parent


class SaveVerbConfig(SaveConfigCallback):
    """Saves the configuration as `<run_dir>/<verb>.yaml`, so that a test does not replace that of the fit."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        file = Path(self.config.run_dir) / self.config_filename
        file.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(file), skip_none=False, overwrite=True, multifile=False)


class TrainerCLI(LightningCLI):
    """Parses the command line of one verb and runs it.

    Args:
        arguments: Verb and its options.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.verb = arguments[0]
        self.untrained = False
        _fix_int_float_union()
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_needed)
        self.resources = ExitStack()
        with self.resources:
            self._run(arguments)

    def _run(self, arguments: list[str]) -> None:
        super().__init__(
            AdaptedModule,
            BaseDataModule,
            save_config_callback=SaveVerbConfig,
            save_config_kwargs={"config_filename": f"{self.verb}.yaml", "save_to_log_dir": False},
            # The module prints one line about its parameters instead of a table.
            trainer_defaults={"log_every_n_steps": 1, "enable_model_summary": False},
            seed_everything_default=0,
            parser_kwargs={"prog": "replora-cli"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
        )
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(summarize(self.options.run_dir, self.verb, recorded=not self.options.trainer.fast_dev_run))

    def __deepcopy__(self, _memo: dict[int, Any]) -> TrainerCLI:
        """Itself: weight averaging copies the module, whose optimizer function leads to the parser and to here."""
        return self

    # --- options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The requested verb only: building the parsers of all four takes four times as long."""
        hidden = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        return {self.verb: hidden | {"verbose", "return_predictions", "ckpt_path"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        if "prog" not in kwargs:  # the verb's parser, whose usage would list a hundred options before every error
            kwargs["usage"] = "%(prog)s [options]"
        parser = self.parser_class(allow_abbrev=False, **kwargs)
        help_text = "YAML file, local or packaged. Can be repeated; later files take precedence."
        parser.add_argument("-c", "--config", action=PackagedConfigFile, help=help_text)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=Path | None,
            help="Directory of the run. Default: that of --ckpt_path, else runs/<time>-<task>-<method>.",
        )
        parser.add_argument(
            "--ckpt_path",
            type=Path | None,
            help="Checkpoint to resume or to measure, `last` for that of --run_dir, `best` for that of a "
            "ModelCheckpoint that monitors a metric, or `untrained` to measure a language model before any training. "
            "Default: none for fit, RUN_DIR/checkpoints/last.ckpt for other verbs.",
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="Whether fit ends with a test of the last weights, if the protocol of the data has a test.",
        )
        # A link is ignored if the selected classes have no such argument.
        parser.link_arguments(
            "data.num_classes",
            "model.init_args.num_classes",
            compute_fn=self._number_of_classes,
            apply_on="instantiate",
        )
        parser.link_arguments("model.init_args.backbone", "data.init_args.tokenizer")
        parser.link_arguments("data.init_args.clips.num_frames", "model.init_args.num_frames")
        parser.link_arguments("data.init_args.image_size", "model.init_args.image_size")
        parser.link_arguments("model.init_args.revision", "data.init_args.revision")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        _check_arguments(args)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: in Lightning the options in the checkpoint take precedence over the command line."""

    def _set_seed(self) -> None:
        seed = self.options.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise RepLoRAError(f"--seed_everything {seed} is not a seed: give an integer in [0, 4294967295].")
        super()._set_seed()

    # --- the run

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb."""
        options: Namespace = self.config[self.verb]
        return options

    def before_instantiate_classes(self) -> None:
        if self.options.seed_everything is False:
            os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier run of this process
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
        self._use_seed()
        run_dir = self._run_dir()
        self.options.run_dir = run_dir
        given = self.config_init[self.verb].trainer
        self.record = ResultsWriter(run_dir, self.untrained, self._configuration())
        callbacks: list[Callback] = [FinalValidation(), self.record]
        callbacks += progress_callbacks(given.callbacks, given.enable_progress_bar)
        if given.enable_checkpointing is not False and not given.fast_dev_run:
            # The last epoch's weights, in one file: what a run is measured with, and what it resumes from.
            callbacks.append(LastCheckpoint(run_dir / "checkpoints"))
        callbacks += self.model.writers(self.verb, run_dir)
        self.trainer_defaults["callbacks"] = callbacks  # LightningCLI adds these to the user's
        if given.logger in (None, True):
            kwargs["logger"] = _loggers(run_dir, self.verb)
        return super().instantiate_trainer(default_root_dir=run_dir, **kwargs)

    def _use_seed(self) -> None:
        """One seed sets the subset and the order of the data as well, unless they have their own."""
        seed = self.options.seed_everything
        if isinstance(seed, int) and not isinstance(seed, bool):
            self.datamodule.use_seed(seed)
        given = self.options.data.init_args
        for name in ("subset_seed", "shuffle_seed"):
            if name in given:
                given[name] = getattr(self.datamodule, name)

    def _number_of_classes(self, of_data: int) -> int:
        """That of the data, or of the run that is measured, which may know more classes."""
        if self.verb == "fit" or self.options.ckpt_path is None:
            return of_data
        return len(trained_classes(self.options.ckpt_path) or range(of_data))

    def _configuration(self) -> dict[str, Any]:
        """Every option with the value in force, by its name on the command line, as JSON values."""
        options = json.loads(json.dumps(self.options.as_dict(), default=str))
        return {plain_option(name): value for name, value in flat_options(options).items()}

    def after_fit(self) -> None:
        """Test the last weights once, if the protocol has a test.

        Raises:
            DivergedError: The weights or the loss are not finite numbers.
        """
        if self.finished:
            return
        if self.record.diverged:
            raise DivergedError(
                f"The fit diverged: its weights or its loss are not finite numbers. It is recorded as diverged in "
                f"{self.record.file}, and its adapter is not used without --force true. Lower --model.optimizer.lr, or "
                "clip gradients with --trainer.gradient_clip_val 1.0."
            )
        tested = getattr(self.datamodule, "protocol", None) in ("final", "holdout")
        if tested and self.options.test_after_fit and not self.trainer.interrupted:
            self.trainer.test(self.model, datamodule=self.datamodule)

    def fit(self, **kwargs: Any) -> None:
        """Train, unless the checkpoint to resume is that of a finished run."""
        self.finished = self._is_finished()
        if self.finished:
            rank_zero_info(f"{self.options.run_dir} is finished: there is nothing to train, and nothing was changed.")
        else:
            self.trainer.fit(**kwargs)

    def _is_finished(self) -> bool:
        resumed: Path | None = self.options.ckpt_path
        ends = self.trainer.max_epochs, self.trainer.max_steps
        return resumed is not None and is_finished(resumed, self.record.file, self.record.configuration, *ends)

    def predict(self, **kwargs: Any) -> None:
        """Predict without collecting predictions in memory: the callbacks of `AdaptedModule.writers` write them."""
        self.trainer.predict(return_predictions=False, **kwargs)

    def _checkpoint(self) -> Path | None:
        """The checkpoint to use: `--ckpt_path`, or the last one of the run for verbs that need one.

        Raises:
            RepLoRAError: It does not exist, or is not a checkpoint.
        """
        path: Path | None = self.options.ckpt_path
        run_dir: Path | None = self.options.run_dir
        last = None if run_dir is None else last_checkpoint(run_dir)
        if path is None and self.verb == "fit":
            return None
        if str(path) == UNTRAINED and self.verb != "fit":
            self.untrained = True
            return None
        if str(path) == "best":
            return best_checkpoint(last)
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
        """The directory of the run, locked until the verb ends.

        Raises:
            RunDirectoryError: A fit that does not resume would write into the directory of another one, or another
                process writes in it.
        """
        given: Path | None = self.options.run_dir
        resumed: Path | None = self.options.ckpt_path
        if given is None and resumed and Path(resumed).parent.name == "checkpoints":
            given = resumed.parents[1]
        first = getattr(rank_zero_only, "rank", 0) == 0
        if given is None:
            task, method = self.datamodule.describe()["task"], self.model.describe()["method"]
            given = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{task}-{method}"
            given = create_unique(given) if first else given
        elif first and self.verb == "fit" and resumed is None and not self.options.trainer.fast_dev_run:
            check_unused(given)
        if first:
            remedy = "Wait until it ends, stop it, or choose another directory with --run_dir."
            self.resources.enter_context(locked(given, f"the {self.verb}", remedy))
        return given


def _check_arguments(arguments: list[str]) -> None:
    """Check arguments that the parser would ignore silently, or reject without listing the valid names.

    Raises:
        RepLoRAError: The model is given an option that comes from the data, or a class or choice does not exist.
    """
    bases = {"--model": AdaptedModule, "--data": BaseDataModule, "--model.adapter": AdapterConfig}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        value = value if equals else " ".join(arguments[position + 1 : position + 2])
        if option in ("--model.num_classes", "--model.init_args.num_classes"):
            raise RepLoRAError("The number of classes is the data's. For a custom dataset: --data.num_classes.")
        if option.startswith("--model.") and option.endswith((".num_frames", ".image_size")):
            frames = "The number of frames is the data's: --data.clips.num_frames."
            raise RepLoRAError(f"{frames} So is the size of images: --data.image_size.")
        if option in bases and value.isidentifier():
            known = [cls.__name__ for cls in concrete_subclasses(bases[option])]
            if value not in known:
                raise RepLoRAError(f"{option}: there is no class {value!r}. {nearest(value, known)}")
        group, _, name = plain_option(option).rpartition(".")
        choices = _choices(bases[group], name) if group in bases and value.isidentifier() else set()
        if choices and value not in choices:
            raise RepLoRAError(f"{option}: {value!r} is not an option. {nearest(value, sorted(choices))}")


def _choices(base: type, name: str) -> set[str]:
    """The choices of an option in all classes that have it; none if one of these classes takes other values."""
    hints = [get_type_hints(cls.__init__).get(name) for cls in concrete_subclasses(base)]  # type: ignore[misc]
    found = [hint for hint in hints if hint is not None]
    if any(get_origin(hint) is not Literal for hint in found):
        return set()
    return {choice for hint in found for choice in get_args(hint)}


def _fix_int_float_union() -> None:
    """Keep `--trainer.limit_val_batches 1` (one batch) apart from 1.0 (all), whatever was imported before Lightning.

    The parser uses the first type of a union that fits, and `typing` returns one cached object for Union[int, float]
    and Union[float, int], whichever was created first: after `import ray.tune` the Trainer would read 1 as 1.0.
    """
    hints = inspect.unwrap(Trainer.__init__).__annotations__
    for option, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[option] = int | float | None


def _is_needed(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in IGNORED_MESSAGES)


def _loggers(run_dir: Path, verb: str) -> list[Logger]:
    """CSV and TensorBoard loggers in `logs/<verb>`, or `logs/<verb>-2` and so on, as CSVLogger empties its folder."""
    version, count = verb, 1
    while (run_dir / "logs" / version).exists():
        count += 1
        version = f"{verb}-{count}"
    return [
        CSVLogger(run_dir, name="logs", version=version),
        TensorBoardLogger(run_dir, name="logs", version=version, default_hp_metric=False),
    ]
