"""fit, validate, test and predict: LightningCLI and its differences here.

- The command line takes precedence over the options in a checkpoint.
- Each run has one directory, with the configuration of each verb in its own file (`fit.yaml`, `test.yaml`, ...).
- `--config NAME` finds the configurations that ship with the package.
- The module creates the optimizer, after the adapter is injected.
- validate, test and predict never measure untrained weights by accident.
- All verbs have the same options, so that one verb reads the configuration that another one saved.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

# Importing the packages makes their classes available by name: --model ImageClassification, --data VTABDataModule.
from datamodules import BaseDataModule
from lightning_modules import AdaptedModule, FinalValidation, LastCheckpoint, ResultsWriter
from lightning_modules.callbacks.monitor_check import MonitorCheck
from lightning_modules.callbacks.progress import progress_callbacks
from lightning_modules.callbacks.results_writer import trained_classes
from replora.errors import RepLoRAError
from replora.identity import flat_options, plain_option
from replora.plots.mistakes import draw_test
from replora.recipes import changed_options
from replora.reports.summary import summarize
from replora.results import UNTRAINED, DivergedError
from replora.resuming import is_finished
from replora.run_directory import check_unused, create_unique, left_as_found, locked
from replora.trainer.checkpoint import find_checkpoint
from replora.trainer.checks import check_command_line, check_data_files, check_trainer, fix_int_float_union
from replora.trainer.config_option import PackagedConfigFile, scaled_rate
from replora.trainer.in_force import name_classes_of_help, name_optimizers
from replora.trainer.logger_files import send_files
from replora.trainer.loggers import loggers
from replora.trainer.precision import offer_auto, resolve_auto
from replora.trainer.quiet import ignore_messages
from replora.trainer.refusal import why_refused
from replora.trainer.run_options import CONFIG_TEXT, LINKS, RUN_OPTIONS


class SaveVerbConfig(SaveConfigCallback):
    """Saves the configuration as `<run_dir>/<verb>.yaml`, so that a test does not replace that of the fit."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        file = Path(self.config.run_dir) / self.config_filename
        file.parent.mkdir(parents=True, exist_ok=True)
        # As parsed, so validating it again would only take time, of every trial of a sweep.
        self.parser.save(self.config, str(file), skip_none=False, skip_validation=True, overwrite=True, multifile=False)


class TrainerCLI(LightningCLI):
    """Parses the command line of one verb and runs it.

    Args:
        arguments: Verb and its options.
        pictures: Whether a test of images is drawn.
    """

    def __init__(self, arguments: list[str], *, pictures: bool = False) -> None:
        self.verb = arguments[0]
        self.pictures = pictures
        fix_int_float_union()
        offer_auto()
        ignore_messages()
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
            # One batch of validation before the training finds what two would, and takes half as long.
            trainer_defaults={"log_every_n_steps": 1, "enable_model_summary": False, "num_sanity_val_steps": 1},
            seed_everything_default=0,
            parser_kwargs={"prog": "replora-cli", "exit_on_error": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
        )
        if getattr(rank_zero_only, "rank", 0) == 0:
            recorded = not self.options.trainer.fast_dev_run
            if self.pictures and recorded and self.verb in ("fit", "test"):
                drawn = draw_test(self.options.run_dir, self.datamodule)
                send_files(self.trainer.loggers, drawn, self.options.run_dir / "results.json")
            print(summarize(self.options.run_dir, self.verb, recorded=recorded))

    def __deepcopy__(self, _memo: dict[int, Any]) -> TrainerCLI:
        """Itself: weight averaging copies the module, whose optimizer function leads to the parser and to here."""
        return self

    # --- options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The requested verb only: building the parsers of all four takes four times as long."""
        hidden = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        return {self.verb: hidden | {"verbose", "return_predictions", "ckpt_path"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        if "prog" not in kwargs:  # the verb's parser, whose usage would list a hundred options
            kwargs |= {"usage": "%(prog)s [options]", "exit_on_error": False}
        parser = self.parser_class(allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action=PackagedConfigFile, help=CONFIG_TEXT)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, (hint, default, text) in RUN_OPTIONS.items():
            parser.add_argument(f"--{name}", type=hint, default=default, help=text)
        # A link is ignored if the selected classes have no such argument.
        parser.link_arguments(
            "data.num_classes",
            "model.init_args.num_classes",
            compute_fn=self._number_of_classes,
            apply_on="instantiate",
        )
        for target, source in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_command_line(args)
        try:
            self.config = parser.parse_args(name_classes_of_help(name_optimizers([*args, *scaled_rate(args[1:])])))
        except ArgumentError as error:
            raise RepLoRAError(why_refused(self.verb, args[1:], error)) from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing: in Lightning the options in the checkpoint take precedence over the command line."""

    def _set_seed(self) -> None:
        seed = self.options.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise RepLoRAError(f"--seed_everything {seed} is not a seed: give an integer in [0, 4294967295].")
        super()._set_seed()

    def _dump_config(self) -> None:
        """The options that the checkpoint records, not validated again: Lightning's own takes eight times as long."""
        if not hasattr(self, "config_dump"):
            dumped = self.parser.dump(
                self.config, skip_link_targets=False, skip_none=False, skip_validation=True, format="json"
            )
            self.config_dump = json.loads(dumped)[self.verb]

    # --- the run

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb."""
        options: Namespace = self.config[self.verb]
        return options

    def before_instantiate_classes(self) -> None:
        check_trainer(self.options.trainer)
        resolve_auto(self.options.trainer)
        check_data_files(self.options.data)
        if self.options.seed_everything is False:
            os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier run of this process
        given: Path | None = self.options.ckpt_path
        self.untrained = self.verb != "fit" and str(given) == UNTRAINED
        self.options.ckpt_path = None if self.untrained else find_checkpoint(self.verb, given, self.options.run_dir)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self.options.ckpt_path}
        # The summary takes the place of Lightning's tables.
        return given | {"verbose": False} if subcommand in ("validate", "test") else given

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
        callbacks: list[Callback] = [FinalValidation(), MonitorCheck(), self.record]
        callbacks += progress_callbacks(given.callbacks, given.enable_progress_bar)
        if given.enable_checkpointing is not False and not given.fast_dev_run:
            # The last epoch's weights, in one file: what a run is measured with, and what it resumes from.
            callbacks.append(LastCheckpoint(run_dir / "checkpoints"))
        callbacks += self.model.writers(self.verb, run_dir)
        self.trainer_defaults["callbacks"] = callbacks  # LightningCLI adds these to the user's
        if given.logger in (None, True):
            kwargs["logger"] = loggers(run_dir, self.verb)
        return super().instantiate_trainer(default_root_dir=run_dir, **kwargs)

    def _has_started(self) -> bool:
        """Whether a training step or a measurement has been made."""
        trainer = getattr(self, "trainer", None)
        return trainer is not None and (trainer.global_step > 0 or self.record.file.exists())

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
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

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
        fresh = given is None
        if given is None:
            task, method = self.datamodule.describe()["task"], self.model.describe()["method"]
            given = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{task}-{method}"
            given = create_unique(given) if first else given
        elif first and self.verb == "fit" and resumed is None and not self.options.trainer.fast_dev_run:
            check_unused(given)
        if first:
            remedy = "Wait until it ends, stop it, or choose another directory with --run_dir."
            lock = locked(given, f"the {self.verb}", remedy)
            self.resources.enter_context(left_as_found(given, self.verb, fresh, self._has_started, lock))
        return given
