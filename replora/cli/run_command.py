"""Parse and run a verb that is a function of `replora.cli.commands`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping

from replora.cli.arguments import FLAGS, split_arguments
from replora.cli.commands.prepare import name_root
from replora.cli.commands.sweep import sweep
from replora.cli.commands.tune import options_apart, tune
from replora.datasets.common.files import printable
from replora.errors import RepLoRAError, nearest


def run_command(verb: str, command: Callable[..., None] | dict[str, Callable[..., None]], arguments: list[str]) -> None:
    """Run a verb.

    Args:
        verb: Its name.
        command: Its function, or second word of the command line -> function.
        arguments: What follows the verb.

    Raises:
        RepLoRAError: An argument is wrong; the message names it.
    """
    if isinstance(command, dict):
        word = arguments[0] if arguments else "--help"
        if word in FLAGS:
            print(f"usage: replora-cli {verb} WHAT [options]\n\n{columns(described({verb: command}))}")
            return
        if word not in command:
            raise RepLoRAError(f"{verb}: there is no {word!r}. {nearest(word, command)}")
        arguments = name_root(arguments)[1:] if verb == "prepare" else arguments[1:]
        verb, command = f"{verb} {word}", command[word]
    for before, argument in zip([verb, *arguments], arguments, strict=False):
        if not argument or (argument.startswith("--") and argument.endswith("=")):  # Path("") is the working directory
            raise RepLoRAError(
                f"{verb}: what follows {argument or before!r} is empty, as from a variable that is not set. Give a "
                "value, or leave it out."
            )
    if command is tune:  # the options of fit are one argument
        of_fit, own = options_apart(arguments)
        arguments = [_json(of_fit), *own]
    # Only here: `--help` of the program does not wait for the parser.
    from jsonargparse import ArgumentError, ArgumentParser, auto_cli

    prog = f"replora-cli {verb}"
    try:
        if command is sweep:  # auto_cli reserves --config
            text = f"{first_line(sweep).capitalize()}."
            parser = ArgumentParser(prog=prog, description=text, allow_abbrev=False, exit_on_error=False)
            parser.add_function_arguments(sweep, as_group=False)
            options = parser.parse_args(arguments)
        else:
            ordered = arguments if command is tune else _positional_first(command, arguments)
            auto_cli(command, args=ordered, prog=prog, allow_abbrev=False, exit_on_error=False)
            return
    except ArgumentError as error:
        raise RepLoRAError(_why_refused(verb, command, arguments, error)) from error
    sweep(**options)


def _positional(command: Callable[..., None]) -> list[str]:
    """Names of the parameters that have no default, which are arguments without an option."""
    return [
        name
        for name, parameter in inspect.signature(command).parameters.items()
        if parameter.default is inspect.Parameter.empty and name != "config"
    ]


def _takes_list(command: Callable[..., None], name: str) -> bool:
    return "list" in str(inspect.signature(command).parameters[name].annotation)


def _positional_first(command: Callable[..., None], arguments: list[str]) -> list[str]:
    """`RUN --out x a.jpg b.jpg` -> `RUN ["a.jpg", "b.jpg"] --out x`, as the parser takes a list as one argument."""
    plain, options = split_arguments(arguments)
    names = _positional(command)
    before = len(names) - 1
    if names and _takes_list(command, names[-1]) and len(plain) > before:
        plain = [*plain[:before], _json(plain[before:])]
    return [*plain, *options]


def _json(arguments: list[str]) -> str:
    """A list as one argument. Raises RepLoRAError for bytes that are not UTF-8, which the parser does not take."""
    for argument in arguments:
        if printable(argument) != argument:
            raise RepLoRAError(
                f"The argument {printable(argument)} is not UTF-8 text. Name a file's folder, or a pattern with *."
            )
    return json.dumps(arguments, ensure_ascii=False)  # YAML does not join JSON's pairs of \\ud83d\\ude00


def _why_refused(verb: str, command: Callable[..., None], arguments: list[str], error: Exception) -> str:
    # Only here: reading the types of options is slow, and only a refusal needs it.
    from replora.options.class_options import accepts, describe_type, options_of
    from replora.options.explain import Explanation
    from replora.options.settings import settings_of

    plain, options = split_arguments(arguments)
    names, known = _positional(command), options_of(command)
    settings = settings_of(options, read_configs="config" not in known)
    if message := Explanation(known, settings, frozenset(known)).message():
        return f"{verb} {message}" if message.startswith("-") else message
    given = {setting.name for setting in settings}
    for name in known.keys() - given - set(names):
        if known[name].required:
            return f"{verb} needs --{name}: {known[name].text}"
    if len(plain) < len(names):
        missing = names[len(plain)]
        return f"{verb} needs {missing.upper()}: {known[missing].text}"
    if len(plain) > len(names) and not (names and _takes_list(command, names[-1])):
        takes = " ".join(name.upper() for name in names) or "options alone"
        return f"{verb} takes {takes}: {plain[len(names)]!r} is one argument too many."
    for name, value in zip(names, plain, strict=False):
        if not accepts(known[name], value):
            return f"{verb} {name.upper()} takes {describe_type(known[name].hint)}, not {value!r}."
    return " ".join(str(error).split())


def described(commands: Mapping[str, Callable[..., None] | dict[str, Callable[..., None]]]) -> dict[str, str]:
    """Words of a verb -> what it does."""
    texts: dict[str, str] = {}
    for name, command in commands.items():
        named = {f"{name} {word}": f for word, f in command.items()} if isinstance(command, dict) else {name: command}
        texts |= {words: first_line(function) for words, function in named.items()}
    return texts


def columns(texts: Mapping[str, str]) -> str:
    """Two columns, indented."""
    width = max(map(len, texts)) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in texts.items())


def first_line(function: Callable[..., None]) -> str:
    """The first line of a function's docstring, as a text in a list."""
    line = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]
