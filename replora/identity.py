"""What each option and each field of `results.json` means when two runs are compared.

Options are of four kinds (docs/results.md), and a field is of the kind of the option that it records:

    harmless    cannot change a number: two runs that differ in it are the same run
    repeat      a seed: two runs that differ in it may be averaged
    axis        two runs that differ in it stand beside each other in tables and curves
    setting     two runs that differ in it are shown apart, or are refused together

Whoever compares runs or parts of them calls a function of this file, and names the comparison:

    run           two verbs that write into one results.json
    checkpoint    a checkpoint and the model that loads it
    table         two runs in one table of a report
    cell          where they stand there: their task and amount of data
    method        two runs by hand of one method in a table: the fields in which they differ are part of its name
    length        the same, for how long and in what batches they were trained
    sweep         two runs that a sweep calls by one name
    stage         two runs of one stage of a sweep that should differ in their seeds alone
    measurement   an evaluation and the fit of its weights, as far as that decides what an example counts as
    splits        runs on the three splits of HMDB51, whose accuracies are averaged
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["harmless", "repeat", "axis", "setting"]
Comparison = Literal[
    "run", "checkpoint", "table", "cell", "method", "length", "sweep", "stage", "measurement", "splits"
]

CHANGED = ", changed: "  # between the name of a recipe and the options that are not the recipe's
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
BATCHES = ("trainer.limit_", "trainer.overfit_batches", "trainer.val_check_interval")


@dataclass(frozen=True)
class Field:
    """A field of `results.json`, with all fields below it that are not in the table themselves.

    Attributes:
        path: Keys from the top of the file, joined by dots.
        compared: The comparisons that look at it, joined by spaces.
        option: The option that it records, whose kind it has. Without one, a difference in it is one of settings.
        label: Name of the field in reports. Default: the last key of the path.
    """

    path: str
    compared: str
    option: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.path.rpartition(".")[2]

    @property
    def shown(self) -> bool:
        """Whether reports show a difference in it: as a condition, in the name of a method, or as a row or column."""
        return bool(SHOWN & set(self.compared.split()))


SHOWN = {"table", "cell", "method", "length"}
# Reports list the conditions of a table in this order.
FIELDS = (
    Field("sweep.name", "table", label="sweep"),
    Field("data.dataset", "table splits"),
    Field("backbone", "run splits"),
    Field("backbone.published", ""),
    Field("backbone.name", "run checkpoint table splits", "model.backbone", "backbone"),
    Field("backbone.fingerprint", "run checkpoint table splits"),
    Field("method", "run checkpoint splits"),
    Field("options", "run checkpoint method sweep splits", "model.adapter"),
    # They shape training alone: trained tensors of one value can be used with another.
    Field("options.dropout", "run method sweep splits", "model.adapter.dropout"),
    Field("options.init", "run method sweep splits", "model.adapter.init"),
    Field("targets", "sweep", label="targets found"),
    Field("data.task", "cell", "data.task"),
    Field("data.track", "table measurement", "data.track"),
    Field("data.protocol", "table splits", "data.protocol"),
    Field("data.preset", "table measurement", "data.preset"),
    Field("data.image_size", "table measurement", "data.image_size"),
    Field("data.interpolation", "table measurement", "data.interpolation"),
    Field("data.framing", "table measurement", "data.framing"),
    Field("data.upright", "table measurement", "data.upright"),
    Field("data.background", "table measurement", "data.background"),
    Field("data.normalization", "table measurement splits", "data.normalization"),
    Field("data.cutoff", "table measurement", "data.cutoff"),
    Field("data.test_items", "table", "data.test_items"),
    Field("data.official_split", "table", "data.split"),
    Field("data.recipe", "table splits"),
    Field("data.clips", "table measurement splits", "data.clips"),
    Field("data.skip_corrupt", "table splits", "data.skip_corrupt"),
    Field("data.prompts", "table measurement", "data.prompts"),
    Field("data.truncation_side", "table measurement", "data.truncation_side"),
    Field("data.tokenizer", "measurement", "data.tokenizer"),
    Field("data.feature_size", "measurement", "data.feature_size"),
    Field("data.class_names", "splits"),
    Field("data.train_fraction", "cell splits", "data.train_fraction"),
    Field("data.shots", "cell splits", "data.shots"),
    Field("data.subset_seed", "splits", "data.subset_seed"),
    Field("data.subset_rule", "stage method splits", label="subset rule"),
    Field("data.select_fraction", "stage method splits", "data.select_fraction"),
    Field("data.val_fraction", "splits", "data.val_fraction"),
    Field("data.split_seed", "table splits", "data.split_seed", "split seed"),
    Field("fit.optimizer", "splits"),
    Field("fit.optimizer.lr", "method stage splits", "model.optimizer.lr"),
    Field("fit.optimizer.weight_decay", "method stage splits", "model.optimizer.weight_decay"),
    Field("fit.epochs", "length splits", "trainer.max_epochs"),
    Field("fit.steps", "length"),
    Field("fit.batch", "length splits", "data.batch_size"),
    Field("fit.schedule.warmup_epochs", "length", "model.schedule.warmup_epochs", "warmup epochs"),
    Field("fit.schedule.warmup_steps", "length", "model.schedule.warmup_steps", "warmup steps"),
    Field("fit.schedule.warmup_fraction", "length", "model.schedule.warmup_fraction", "warmup fraction"),
    Field("fit.precision", "splits", "trainer.precision"),
    Field("fit.seed", "splits", "seed_everything"),
    # An accuracy over fewer items is another number.
    Field("test.metrics.test/skipped", "table splits", label="skipped test items"),
    # The test's where there is one.
    Field("fit.caption_tokenizer", "table", label="caption tokenizer"),
    Field("test.caption_tokenizer", "table", label="caption tokenizer"),
)
# Options of a model by which two measurements of the same weights can differ.
MEASURED_WITH = (
    *("model.evaluation", "model.num_beams", "model.max_new_tokens"),
    *("model.dtype", "model.quantization", "model.caption_tokenizer"),
)
# Options of the command line, without `init_args`. Those that are absent are settings.
OPTIONS: dict[str, Kind] = {
    # What a run leaves behind, shows, or how fast it is.
    "run_dir": "harmless",
    "ckpt_path": "harmless",
    "config": "harmless",
    "verbose": "harmless",
    "return_predictions": "harmless",
    "test_after_fit": "harmless",
    "trainer.logger": "harmless",
    "trainer.log_every_n_steps": "harmless",
    "trainer.default_root_dir": "harmless",
    "trainer.enable_progress_bar": "harmless",
    "trainer.enable_model_summary": "harmless",
    "trainer.enable_checkpointing": "harmless",
    "trainer.enable_autolog_hparams": "harmless",
    "trainer.model_registry": "harmless",
    "trainer.profiler": "harmless",
    "trainer.barebones": "harmless",
    "trainer.detect_anomaly": "harmless",
    "trainer.num_sanity_val_steps": "harmless",
    "data.num_workers": "harmless",
    "data.cache_bytes": "harmless",
    "data.cache_dir": "harmless",
    "data.check_sizes": "harmless",
    # Where the data and the weights lie: lists, classes and fingerprints say what they are.
    "data.root": "harmless",
    "data.allowed_roots": "harmless",
    "data.union_file": "harmless",
    "model.checkpoint": "harmless",
    # Each example is measured once, whatever the batch.
    "data.eval_batch_size": "harmless",
    "seed_everything": "repeat",
    # The field of this name is there where it matters, and is compared.
    "data.subset_rule": "harmless",
    "data.subset_seed": "repeat",
    "data.shuffle_seed": "repeat",
    "data.fold": "repeat",
    "data.train_fraction": "axis",
    "data.select_fraction": "axis",
    "data.shots": "axis",
    "data.task": "axis",
    "data.split": "axis",
    "model.adapter": "axis",
    "model.optimizer.lr": "axis",
    "model.optimizer.weight_decay": "axis",
}
# Options that earlier runs do not have, and their values that mean what those runs did; None for every value. An option
# whose default is None needs no entry.
ADDED: dict[str, tuple[Any, ...] | None] = {
    "data.framing": ("crop", "squash"),  # of two runs that both have it, and in the field of the results, these differ
    "data.background": ("white",),
    "data.select_fraction": (1.0,),
    "data.skip_corrupt": (False,),
    "data.augmentation": ("crop_flip",),
    "data.policy": ("none",),
    "model.class_weights": ("none",),
    "model.mixup": (0.0,),
    "model.image_size": None,  # it follows data.image_size
}

# Options of PeftMethodConfig that say nothing while the first of them is off.
GENERATOR_OPTIONS = tuple(
    f"model.adapter.{name}" for name in ("reparameterize", "hidden", "activation", "sharing", "scale_exponent")
)

# `data.interpolation` of VTAB-1K may leave the filter to `data.track`: value -> track -> filter. Runs from before there
# was a choice have None.
FILTER_OF_TRACK: dict[str | None, dict[str, str]] = {
    "track": {"archive": "bicubic", "clean": "tf1_bilinear"},
    None: {"archive": "bicubic", "clean": "bilinear"},
}


def option_kind(option: str) -> Kind:
    """What an option of the command line means when two runs are compared.

    Args:
        option: Dotted name, with or without `init_args`. What the table does not know is a setting.
    """
    name = plain_option(option)
    best = max((known for known in OPTIONS if name == known or name.startswith(f"{known}.")), key=len, default=None)
    return "setting" if best is None else OPTIONS[best]


def compared_options(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that can change a number, in canonical order; "1" is 1 where an option takes both."""
    configuration = _without_unused(configuration)
    names = [name for name in sorted(configuration) if option_kind(name) != "harmless"]
    return {name: _number(configuration[name]) for name in names}


def _number(value: Any) -> Any:
    """The number that a text is; another value as it is."""
    return json.loads(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _meaning(option: str, value: Any) -> Any:
    """A value as it is compared: of an option that counts batches, 1 is one batch, and 1.0 all of them."""
    value = _number(value)
    return repr(value) if option.startswith(BATCHES) and isinstance(value, int | float) else value


def configuration_sha256(configuration: Mapping[str, Any]) -> str:
    """The hash of the options that can change a number."""
    text = json.dumps(compared_options(configuration), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differing_options(
    first: Mapping[str, Any], second: Mapping[str, Any], ignored: Collection[str] = ("harmless",)
) -> dict[str, tuple[Any, Any]]:
    """The options in which two resolved configurations differ: name -> the two values, None for an absent one.

    Args:
        first: Dotted option -> value.
        second: The same of the other run.
        ignored: Kinds of options that are not compared.
    """
    first, second = _with_filter(_without_unused(first)), _with_filter(_without_unused(second))
    names = sorted(first.keys() | second.keys())
    compared = [name for name in names if option_kind(name) not in ignored]
    different = [name for name in compared if _meaning(name, first.get(name)) != _meaning(name, second.get(name))]
    return {
        name: (first.get(name), second.get(name))
        for name in different
        if (name in first and name in second) or not _as_before(name, {**first, **second}[name])
    }


def _without_unused(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options without those of generators, where a method of peft has none: as they were before it could have any."""
    if all(value is not False for name, value in options.items() if plain_option(name) == GENERATOR_OPTIONS[0]):
        return options
    return {name: value for name, value in options.items() if plain_option(name) not in GENERATOR_OPTIONS}


def _with_filter(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options with the filter that `data.interpolation` means."""
    names = {plain_option(name): name for name in options}
    if not {"data.interpolation", "data.track"} <= names.keys():
        return options
    found = options[names["data.interpolation"]]
    track = options[names["data.track"]]
    return {**options, names["data.interpolation"]: FILTER_OF_TRACK.get(found, {}).get(track, found)}


def _as_before(option: str, value: Any) -> bool:
    """Whether a value means what runs did that do not have the option."""
    values = ADDED.get(plain_option(option), ())
    return values is None or value in values


def plain_option(option: str) -> str:
    """`data.init_args.root` -> `data.root`."""
    return option.replace(".init_args", "")


def setting_options(results: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, other than seeds, that can change a number; none in results of format 1."""
    options: Mapping[str, Any] = results.get("configuration", {})
    return {
        name: _meaning(name, value)
        for name, value in options.items()
        if option_kind(name) in ("setting", "axis") and (value,) != ADDED.get(plain_option(name))
    }


def options_beside_fields(results: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `setting_options` in which reports show no difference by a field of the results."""
    recorded = [
        field.option for field in FIELDS if field.option and field.shown and _value(results, field.path) is not None
    ]
    return {
        name: value
        for name, value in setting_options(results).items()
        if not any(f"{plain_option(name)}.".startswith(f"{option}.") for option in recorded)
    }


def options_of_kind(kind: Kind) -> list[str]:
    """Names of the options that are of a kind, in the order of the table."""
    return [name for name, found in OPTIONS.items() if found == kind]


def flat_options(content: Any, path: str = "") -> dict[str, Any]:
    """{"model": {"init_args": {"rank": 8}}} -> {"model.init_args.rank": 8}; an empty mapping is a value."""
    if not isinstance(content, Mapping) or not content:
        return {path: content}
    return {k: v for key, value in content.items() for k, v in flat_options(value, f"{path}.{key}".lstrip(".")).items()}


def differing(
    first: Mapping[str, Any], second: Mapping[str, Any], comparison: Comparison
) -> dict[str, tuple[Any, Any]]:
    """The fields in which two runs differ for a comparison: path -> the two values, None for an absent one.

    Args:
        first: Content of a `results.json`, or some of its fields.
        second: The same of the other.
        comparison: Decides which fields count.
    """
    one, other = flat_options(first), flat_options(second)
    paths = sorted(path for path in one.keys() | other.keys() if is_compared(path, comparison))
    return {path: (one.get(path), other.get(path)) for path in paths if one.get(path) != other.get(path)}


def differing_settings(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    comparison: Comparison,
    varied: Collection[str] = (),
    ignored: Collection[Kind] = ("harmless", "repeat"),
) -> dict[str, tuple[Any, Any]]:
    """The fields and the options in which two runs differ: name -> the two values.

    Args:
        first: Content of a `results.json`. One of format 1 has no options, and its fields alone are compared.
        second: The same of the other.
        comparison: Decides which fields count.
        varied: Options, with those below them, in which the runs may differ.
        ignored: Kinds of options in which they may differ.
    """
    option_of = {field.path: field.option for field in FIELDS}
    found = differing(first, second, comparison)
    if "configuration" in first and "configuration" in second:
        found |= differing_options(first["configuration"], second["configuration"], ignored)
    free = tuple(f"{option}." for option in varied)
    return {name: values for name, values in found.items() if not f"{option_of.get(name, name)}.".startswith(free)}


def is_compared(path: str, comparison: Comparison, unknown: bool = False) -> bool:
    """Whether a comparison looks at a field: the longest path in the table that holds the field decides.

    Args:
        path: Keys from the top of the file, joined by dots.
        comparison: Name of the comparison.
        unknown: The answer for a field that the table does not have.
    """
    holding = [field for field in FIELDS if path == field.path or path.startswith(f"{field.path}.")]
    if not holding:
        return unknown
    return comparison in max(holding, key=lambda field: len(field.path)).compared.split()


def compared_fields(results: Mapping[str, Any], comparison: Comparison) -> dict[str, Any]:
    """Label -> value of each field of a run that a comparison looks at; fields that are absent or None are left out.

    The method's options are fields of their own, such as `rank`.
    """
    found: dict[str, Any] = {}
    for field in FIELDS:
        value = _value(results, field.path)
        if value is not None and comparison in field.compared.split():
            found |= value if field.path == "options" else {field.name: value}
    return found


def table_conditions(results: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common to stand in one table: label -> value, fields without a value left out.

    The sweep, the data set, and the backbone's name and fingerprint are always there, empty where they are unknown.
    """
    found = dict.fromkeys(("sweep", "dataset", "backbone", "fingerprint"), "") | compared_fields(results, "table")
    skipped = int(found.pop("skipped test items", 0))
    if skipped:
        found["skipped test items"] = skipped
    if "recipe" in found:
        found["recipe"] = recipe_of_all_methods(found["recipe"])
    return found


def recipe_of_all_methods(name: str) -> str:
    """The name of a recipe without the changed options of the kind axis, of which every method has its own values."""
    recipe, _, changed = name.partition(CHANGED)
    own = [option.removeprefix("model.") for option in options_of_kind("axis")]
    kept = [option for option in changed.split(", ") if option and option not in own]
    return recipe + (CHANGED + ", ".join(kept) if kept else "")


def _value(content: Any, path: str) -> Any:
    """The value at `a.b.c`; None if there is none."""
    for key in path.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content
