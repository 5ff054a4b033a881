"""`fit --help`: the options that matter first, with the values in force and where they come from."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from replora.options.class_options import Option, classes_in, subclasses
from replora.options.settings import Setting, settings_of
from replora.options.tree import OptionTree
from replora.trainer.in_force import options_in_force

FLAGS = ("-h", "--help", "--help_all")
# In the order of the page.
FIRST = (
    *("config", "run_dir", "ckpt_path", "seed_everything"),
    *("data", "data.root", "data.task", "data.tasks", "data.protocol", "data.train_fraction", "data.shots"),
    *("data.batch_size", "data.image_size", "data.clips.num_frames"),
    *("model", "model.backbone", "model.checkpoint", "model.adapter", "model.adapter.rank", "model.adapter.targets"),
    *("model.optimizer.lr", "model.optimizer.weight_decay", "model.schedule.warmup_epochs"),
    *("model.schedule.warmup_steps", "trainer.max_epochs", "trainer.accelerator", "trainer.devices"),
    *("trainer.precision", "trainer.accumulate_grad_batches"),
)
GROUPS = ("data", "model", "model.adapter")  # whose other classes are listed
# What the libraries' own texts say at length.
TEXTS = {
    "data": "Class of the data.",
    "model": "Class of the model: the kind of task.",
    "model.optimizer.lr": "Peak learning rate of the schedule (> 0).",
    "model.optimizer.weight_decay": "Weight decay (>= 0); biases, norms and diagonals train without it.",
    "trainer.max_epochs": "Number of epochs (>= 1).",
    "trainer.accelerator": "cpu, gpu, mps, or auto for the best there is.",
    "trainer.devices": "Number of devices, their indices as in [0,2], or auto for all.",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, bf16-true and others.",
    "trainer.accumulate_grad_batches": "Number of batches per optimizer step (>= 1).",
}
REFERENCE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")  # :class:`~package.Name`
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
    everything = "--help_all" in arguments
    settings = settings_of([argument for argument in arguments if argument not in FLAGS])
    tree, values = options_in_force(settings)
    named = {"model", "data"} <= tree.classes.keys()
    if not named:
        examples = [Setting(name, cls) for name, cls in EXAMPLES.items() if name not in tree.classes]
        tree, _ = options_in_force([*examples, *settings])
    options = dict(tree.walk())
    shown = _ours_first(options) if everything else [name for name in FIRST if name in options]
    lines = [
        f"usage: replora-cli {verb} --config NAME [--OPTION VALUE ...]",
        "",
        f"{summary[:1].upper()}{summary[1:]}.",
        "",
        _what_is_shown(verb, named, everything, arguments),
        "",
        *(line for name in shown for line in _entry(name, options[name], values.get(name), tree, everything)),
        "",
        *_further(verb, everything, tree),
    ]
    return "\n".join(lines)


def _ours_first(options: Mapping[str, Option]) -> list[str]:
    """All names: first those of `FIRST`, then ours, then those of the Trainer."""
    rest = [name for name in options if name not in FIRST and name != "trainer"]
    return [
        *(name for name in FIRST if name in options),
        *sorted(rest, key=lambda name: name.startswith("trainer.")),
    ]


def _what_is_shown(verb: str, named: bool, everything: bool, arguments: list[str]) -> str:
    if not named:
        return _wrapped(
            f"Give a configuration to see its options and values, such as: replora-cli {verb} --config vtab.yaml "
            "--help. `replora-cli configs` lists those that ship with the package. Without one, the options of images "
            "in folders are shown:"
        )
    given = " ".join(argument for argument in arguments if argument not in FLAGS)
    return _wrapped(f"{'All options' if everything else 'The options that matter first'}, as `{given}` sets them:")


def _entry(name: str, option: Option, setting: Setting | None, tree: OptionTree, everything: bool) -> list[str]:
    value, source = option.default, "default"
    if setting is not None:
        value, source = setting.value, setting.file or "given here"
    if (cls := tree.class_of(name, option)) is not None and (setting is None or name in tree.classes):
        value = cls.__name__
        source = source if setting is not None else "default"
    text = TEXTS.get(name) or option.text
    others = _other_classes(option, tree.class_of(name, option)) if name in GROUPS else ""
    text = REFERENCE.sub(r"`\1`", text) if everything else _shortened(text, value)
    needed = option.required and setting is None
    shown = "" if name == "config" else "  (needed)" if needed else f"  {_short(value)}  ({source})"
    return [f"  --{name}{shown}", *(_indented(line) for line in (text, others) if line)]


def _other_classes(option: Option, cls: type | None) -> str:
    """The classes that a group can be, in a sentence; none for a group with a single one."""
    known = sorted({name for base in classes_in(option.hint) for name in subclasses(base)})
    known = [name for name in known if cls is None or name != cls.__name__]
    return f"Others: {', '.join(known)}." if 1 <= len(known) <= 20 else ""


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


def _further(verb: str, everything: bool, tree: OptionTree) -> list[str]:
    lines = (
        [] if everything else ["All options, those of Lightning's Trainer last:", f"  replora-cli {verb} --help_all"]
    )
    for group in ("model", "data"):
        if group in tree.classes:
            name = tree.classes[group].__name__
            lines += [f"The options of {name} with their full texts:", f"  replora-cli {verb} --{group}.help {name}"]
    return lines


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _width())


def _width() -> int:
    return min(100, max(40, shutil.get_terminal_size().columns))
