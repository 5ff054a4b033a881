"""Which arguments of a command line are options with their values, and which stand by themselves."""

from __future__ import annotations

import re

FLAGS = ("-h", "--help", "--print_config")  # options without a value
_OPTION = re.compile(r"--?\w[\w.+-]*(=|$)")  # unlike a question that begins with a dash


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without an option, and the options with their values."""
    plain: list[str] = []
    options: list[str] = []
    waits = False  # the next argument is the value of the last option
    for argument in arguments:
        if waits or _OPTION.match(argument):
            options.append(argument)
            waits = not waits and "=" not in argument and argument not in FLAGS
        else:
            plain.append(argument)
    return plain, options
