"""`fit --help`: the options that matter first, with the values in force and where they come from."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from jsonargparse import Namespace

from replora.errors import RepLoRAError
from replora.options.class_options import Option, classes_in, subclasses
from replora.options.explain import Explanation
from replora.options.settings import Setting, settings_of
from replora.options.tree import OptionTree
from replora.trainer.in_force import TOP, options_in_force
from replora.trainer.run_options import HELP_FLAGS, LINKED

# In the order of the page: what every verb needs, and what a fit needs beyond it.
ALWAYS = (
    *("config", "run_dir", "ckpt_path", "data", "data.root", "data.task", "data.tasks", "data.protocol"),
    *("data.image_size", "data.clips.num_frames", "data.eval_batch_size", "data.num_workers", "model"),
    *("model.backbone", "model.checkpoint", "trainer.accelerator", "trainer.devices", "trainer.precision"),
)
FIRST = (
    *("config", "run_dir", "ckpt_path", "seed_everything", "test_after_fit"),
    *("data", "data.root", "data.task", "data.tasks", "data.protocol", "data.train_fraction", "data.shots"),
    *("data.batch_size", "data.image_size", "data.clips.num_frames", "data.num_workers"),
    *("model", "model.backbone", "model.checkpoint", "model.adapter", "model.adapter.rank", "model.adapter.factors"),
    *("model.adapter.hidden", "model.adapter.targets", "model.label_smoothing", "model.optimizer.lr"),
    *("model.optimizer.weight_decay", "model.schedule.warmup_epochs", "model.schedule.warmup_steps"),
    *("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.callbacks", "trainer.logger"),
)
GROUPS = ("data", "model", "model.adapter")  # whose other classes are listed
NOT_FOR_USERS = {"trainer", "model.optimizer.params", *LINKED}
# What the libraries' own texts say at length.
TEXTS = {
    "config": "YAML file, local or packaged (`replora-cli configs` lists those). Give it several times to combine "
    "files, such as --config vtab.yaml --config adapter/lora.yaml: later ones take precedence.",
    "data": "Class of the data.",
    "model": "Class of the model: the kind of task.",
    "model.optimizer.lr": "Peak learning rate of the schedule (> 0).",
    "model.optimizer.weight_decay": "Weight decay (>= 0); biases, norms and diagonal factors train without it.",
    "trainer.max_epochs": "Number of epochs (>= 1).",
    "trainer.accelerator": "cpu, gpu, mps, or auto for the best there is.",
    "trainer.devices": "Number of GPUs (or processes), their indices as in [0,2], or auto for all.",
    "trainer.strategy": "How several devices share the work: auto, ddp, fsdp, deepspeed, or a configuration such as "
    "--config trainer/ddp.yaml.",
    "trainer.precision": "Full or mixed precision: 32-true (as null), bf16-mixed, 16-mixed, bf16-true and others, or "
    "auto: bf16-mixed or 16-mixed by the GPU, 32-true elsewhere.",
    "trainer.accumulate_grad_batches": "Gradient accumulation: number of batches per optimizer step (>= 1).",
    "trainer.gradient_clip_val": "Largest norm of the gradients, to which larger ones are clipped (>= 0); null for no "
    "clipping.",
    "trainer.callbacks": "Callbacks beside those of this program, such as --trainer.callbacks+=EarlyStopping "
    "--trainer.callbacks.monitor=val/accuracy, where the protocol validates.",
    "trainer.logger": "Null for CSV and TensorBoard files in the run's directory, false, or a class such as "
    "WandbLogger or MLFlowLogger.",
}
# Markup of libraries -> what it shows: :class:`~package.Name`, `Title <target>`_, ``code``, directives, defaults.
MARKUP = (
    (re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)(?:<[^>]*>)?`"), r"`\1`"),
    (re.compile(r"`([^`<]+?)\s*(?:<[^>]*>)?`_+"), r"\1"),
    (re.compile(r"``"), "`"),
    (re.compile(r"\s*\.\. \w+::.*$"), ""),
    (re.compile(r"\s*(?:\(default: (?:[^()]|\([^()]*\))*\)|Default: `[^`]*`\.?|Defaults? to `[^`]*`\.?)"), ""),
)
LONGEST_VALUE = 40  # characters
# The classes whose options are shown where no configuration is given.
EXAMPLES = {"model": "ImageClassification", "data": "ImageFolderDataModule"}


def help_page(verb: str, summary: str, arguments: list[str]) -> str:
    """The help of a verb.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        summary: What the verb does, as a text in a list.
        arguments: Options of the verb. Those beside `--help` are shown with their values.

    Raises:
        RepLoRAError: A configuration file does not exist or cannot be read.
    """
    everything = bool({"--help_all", "--trainer.help"}.intersection(arguments))
    settings = settings_of([argument for argument in arguments if argument not in HELP_FLAGS])
    tree, values = options_in_force(settings)
    named = {"model", "data"} <= tree.classes.keys()
    if not named:
        examples = [Setting(name, cls) for name, cls in EXAMPLES.items() if name not in tree.classes]
        tree, _ = options_in_force([*examples, *settings])
    problem = Explanation(TOP, settings, LINKED).first_problem()
    if problem is not None:
        raise RepLoRAError(problem)
    options = {name: option for name, option in tree.walk() if name not in NOT_FOR_USERS}
    shown = _ours_first(options) if everything else _short_list(verb, options, values)
    lines = [
        f"usage: replora-cli {verb} --config {'NAME' if verb == 'fit' else 'RUN/fit.yaml'} [--OPTION VALUE ...]",
        "",
        f"{summary[:1].upper()}{summary[1:]}.",
        "",
        _what_is_shown(verb, named, everything, arguments),
        "",
        *(line for name in shown for line in _entry(name, options[name], values.get(name), tree, everything)),
        "",
        *_further(verb, everything, tree, _given(arguments)),
    ]
    return "\n".join(lines)


def _short_list(verb: str, options: Mapping[str, Option], values: Mapping[str, Setting]) -> list[str]:
    """The options that matter first, and for a fit those that the arguments and files set."""
    if verb != "fit":
        return [name for name in ALWAYS if name in options]
    return [name for name in _ours_first(options) if name in FIRST or name in values]


def _ours_first(options: Mapping[str, Option]) -> list[str]:
    """All names: first those of `FIRST`, then ours, then those of the Trainer."""
    rest = [name for name in options if name not in FIRST]
    return [
        *(name for name in FIRST if name in options),
        *sorted(rest, key=lambda name: name.startswith("trainer.")),
    ]


def _what_is_shown(verb: str, named: bool, everything: bool, arguments: list[str]) -> str:
    if not named and verb == "fit":
        return _wrapped(
            "Give a configuration to see its options and values, such as: replora-cli fit --config vtab.yaml --help. "
            "`replora-cli configs` lists those that ship with the package. Without one, the options of images in "
            "folders are shown:"
        )
    if not named:
        return _wrapped(
            f"Give the configuration of a run to see its options and values: replora-cli {verb} --config RUN/fit.yaml "
            "--help. Without one, the options of images in folders are shown:"
        )
    what = "All options" if everything else "The options that matter first"
    return _wrapped(f"{what}, as `{_given(arguments)}` sets them:")


def _given(arguments: list[str]) -> str:
    return shlex.join(argument for argument in arguments if argument not in HELP_FLAGS)


def _entry(name: str, option: Option, setting: Setting | None, tree: OptionTree, everything: bool) -> list[str]:
    value, source = option.default, "default"
    if setting is not None:
        value, source = setting.value, setting.file or "given here"
    if isinstance(value, Namespace):  # the options of a group, which are shown one by one
        value = "its options:"
    if (cls := tree.class_of(name, option)) is not None and (setting is None or name in tree.classes):
        value = cls.__name__
        source = source if setting is not None else "default"
    text = TEXTS.get(name) or option.text
    others = _other_classes(option, tree.class_of(name, option)) if name in GROUPS else ""
    if name not in TEXTS:
        text = _plain(text) if everything else _shortened(_plain(text), value)
    needed = option.required and setting is None
    shown = "" if name == "config" else "  (needed)" if needed else f"  {_short(value)}  ({source})"
    return [f"  --{name}{shown}", *(_indented(line) for line in (text, others) if line)]


def _other_classes(option: Option, cls: type | None) -> str:
    """The classes that a group can be, in a sentence; none for a group with a single one."""
    known = sorted({name for base in classes_in(option.hint) for name in subclasses(base)})
    known = [name for name in known if cls is None or name != cls.__name__]
    return f"Others: {', '.join(known)}." if 1 <= len(known) <= 20 else ""


def _plain(text: str) -> str:
    for pattern, shown in MARKUP:
        text = pattern.sub(shown, text)
    return text


def _shortened(text: str, value: Any) -> str:
    """The first sentence of a text, and what no value stands for."""
    first, *rest = text.split(". ")
    default = [sentence for sentence in rest if sentence.startswith("Default") and value is None]
    return " ".join(f"{sentence.rstrip('.')}." for sentence in [first, *default] if sentence)


def _indented(text: str) -> str:
    return textwrap.fill(text, _width(), initial_indent=" " * 8, subsequent_indent=" " * 8)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, Iterable) and not isinstance(value, str) else text
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _further(verb: str, everything: bool, tree: OptionTree, given: str) -> list[str]:
    command = f"  replora-cli {verb} {given}".rstrip()
    lines = [] if everything else ["All options, those of Lightning's Trainer last:", f"{command} --help_all"]
    for group in ("model", "data"):
        if group in tree.classes:
            name = tree.classes[group].__name__
            lines += [f"The class {name} by itself, with its full texts:", f"{command} --{group}.help {name}"]
    return lines


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _width())


def _width() -> int:
    return min(100, max(40, shutil.get_terminal_size().columns))
