"""Why the parser refused the options of a verb."""

from __future__ import annotations

from replora.options.explain import Explanation
from replora.options.settings import settings_of
from replora.trainer.in_force import TOP
from replora.trainer.run_options import LINKED


def why_refused(verb: str, arguments: list[str], error: Exception) -> str:
    """A message for a user: which option is wrong, what it takes, and the nearest names.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        arguments: Options of the verb.
        error: What the parser raised, whose own words are used where nothing is found.
    """
    stray = [a for before, a in zip(["--", *arguments], arguments, strict=False) if _is_stray(before, a)]
    if stray:
        example = f", such as --config {stray[0]}" if stray[0].strip() else ""
        return f"{verb} takes no argument {stray[0]!r} without an option before it{example}."
    found = Explanation(TOP, settings_of(arguments), LINKED).message()
    return found or " ".join(str(error).split())


def _is_stray(before: str, argument: str) -> bool:
    """Whether an argument is neither an option nor the value of one."""
    takes_value = before.startswith("-") and "=" not in before and before != "--"
    return not argument.startswith("-") and not takes_value
