"""The pages of reference/, generated when the site is built: from the parser, the YAML files and the public names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import datamodules
import lightning_modules
import replora
from replora.cli.main import COMMANDS, TRAINER_VERBS
from replora.config_files import packaged_configs
from replora.options.class_options import Option, describe_type, options_of
from replora.trainer.help import TEXTS
from replora.trainer.in_force import TOP
from replora.trainer.run_options import LINKED

# Packages and modules of replora/__init__.pyi -> the heading of their public names, in the order of the page.
HEADINGS = {
    "adapters.config": "Methods and their options",
    "adapters.inject": "Injection",
    "adapters.targets": "Targets",
    "adapters.container": "What a model carries",
    "adapters.merge": "Merging",
    "adapters.multi_adapter": "Several adapters on one backbone",
    "adapters.state": "Adapter files",
    "adapters.peft_format": "Folders of PEFT",
    "adapters.peft_lora": "Inside the LoRA layers of PEFT",
    "inference": "Trained runs",
    "errors": "Errors",
}
# What `replora.load_run` returns, and what its `predict` returns -> the methods to show.
RETURNED = {"Predictor": ["predict"], "Predictions": ["labels", "top"]}
FOLDERS = {
    "": "Tasks",
    "adapter": "Methods",
    "recipe": "Recipes of published rows",
    "sweep": "Sweeps",
    "trainer": "Machines",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for page in (command_line, configurations, python, classes):
        files.append(File.generated(config, f"reference/{page.__name__}.md", content="\n\n".join(page())))
    return files


def command_line() -> list[str]:
    parts = [
        "# Command line",
        "The options of each verb, as its parser has them; `replora-cli VERB --help` shows them as well. `fit`, "
        "`validate`, `test` and `predict` also have the arguments of the classes in force as options, such as "
        "`--data.batch_size`: [Classes of models and data](classes.md) lists them, and "
        "`replora-cli fit --config NAME --help` shows them with their values.",
    ]
    for verb, summary in TRAINER_VERBS.items():
        options = {name: option for name, option in TOP.items() if name not in LINKED}
        parts += [f"## replora-cli {verb}", f"{summary[:1].upper()}{summary[1:]}.", entries(options)]
    for verb, command in COMMANDS.items():
        for word, function in (command if isinstance(command, dict) else {"": command}).items():
            parts += [f"## replora-cli {verb} {word}".rstrip(), text_of(function), entries(options_of(function))]
    return parts


def configurations() -> list[str]:
    parts = [
        "# Configurations",
        "What ships with the package, for `--config`: give it several times to combine files, of which later ones take "
        "precedence. `replora-cli configs` lists them.",
    ]
    files = packaged_configs()
    assert {name.rpartition("/")[0] for name in files} == FOLDERS.keys()
    for folder, heading in FOLDERS.items():
        parts.append(f"## {heading}")
        for name, file in files.items():
            if name.rpartition("/")[0] == folder:
                lines = file.read_text("utf-8").splitlines()
                about = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
                content = "\n".join(f"    {line}".rstrip() for line in lines[len(about) :])
                parts += [f"### {name}", escaped(f"{about[0]}.")]
                parts += [escaped(" ".join(about[1:]))] * (len(about) > 1)
                parts.append(f'??? abstract "The file"\n\n    ```yaml\n{content}\n    ```')
    return parts


def python() -> list[str]:
    """The public names of `replora`, below the heading of the module that each is imported from."""
    stub = ast.parse(Path(replora.__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    parts = ["# Python", "`import replora` gives these names; each is imported when it is first used."]
    shown: list[str] = []
    for module, heading in HEADINGS.items():
        parts.append(f"## {heading}")
        for node in imports:
            if f"{node.module}.".startswith(f"{module}."):
                names = [alias.name for alias in node.names]
                parts += [f"::: replora.{name}" for name in names]
                shown += names
        if module == "inference":
            for name, members in RETURNED.items():
                parts.append(f"::: lightning_modules.predictors.{name}\n    options:\n      members: {members}")
    assert sorted(shown) == sorted({*replora.__all__} - {"__version__"}), "a module is missing among HEADINGS"
    return parts


def classes() -> list[str]:
    parts = [
        "# Classes of models and data",
        "The arguments of each class are options of `fit`: those of a model as `--model.NAME`, those of the data as "
        "`--data.NAME`, those of a method as `--model.adapter.NAME`. A terminal shows them after "
        "`replora-cli fit --data.help VTABDataModule`.",
    ]
    methods = [name for name in replora.__all__ if name.endswith("Config")]
    for heading, room, names in (
        ("Models and callbacks", lightning_modules, lightning_modules.__all__),
        ("Data", datamodules, datamodules.__all__),
        ("Methods", replora, methods),
    ):
        parts.append(f"## {heading}")
        for name in names:
            cls = getattr(room, name)
            if not inspect.isabstract(cls):
                parts += [f"### {name}", text_of(cls), entries(options_of(cls))]
    return parts


def text_of(source: Callable[..., Any]) -> str:
    """The docstring without its sections of arguments and errors."""
    text = re.split(r"\n(?:Args|Raises|Returns|Yields|Attributes):\n", inspect.getdoc(source) or "")[0]
    return "\n\n".join(part if part.startswith("    ") else escaped(part) for part in text.strip().split("\n\n"))


def entries(options: Mapping[str, Option]) -> str:
    lines = []
    for name, option in options.items():
        text = escaped(TEXTS.get(name) or option.text)
        lines.append(f"- **`--{name}`** ({kind_of(option)})" + (f": {text}" if text else ""))
    return "\n".join(lines)


def kind_of(option: Option) -> str:
    if option.required:
        return f"{describe_type(option.hint)}; required"
    default = option.default
    if isinstance(default, Namespace):  # the options of a class
        default = default.get("class_path", "its options")
    shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    return f"{escaped(describe_type(option.hint))}; default: `{shown}`"


def escaped(text: str) -> str:
    """The text with what Markdown would read as markup, outside of code, as characters."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = {"<": "&lt;", **{mark: f"\\{mark}" for mark in "*_[]"}}
    return "".join(part if part[:1] == "`" else part.translate(str.maketrans(plain)) for part in parts)
