"""Why the parser refused the options of a verb."""

from __future__ import annotations

from lightning.pytorch import Trainer

from datamodules import BaseDataModule
from lightning_modules import AdaptedModule
from replora.options.class_options import Option
from replora.options.explain import Explanation
from replora.options.settings import settings_of
from replora.trainer.run_options import CONFIG_TEXT, LINKED, RUN_OPTIONS

# The options of a verb and what they take.
TOP = {
    "model": Option(AdaptedModule | None, required=True),
    "data": Option(BaseDataModule | None, required=True),
    "trainer": Option(Trainer),
    **{name: Option(hint, default, text=text) for name, (hint, default, text) in RUN_OPTIONS.items()},
    "seed_everything": Option(bool | int, default=0, text="Random seed (>= 0) for heads, adapters and data order."),
    "config": Option(str, text=CONFIG_TEXT),
}


def why_refused(verb: str, arguments: list[str], error: Exception) -> str:
    """A message for a user: which option is wrong, what it takes, and the nearest names.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        arguments: Options of the verb.
        error: What the parser raised, whose own words are used where nothing is found.
    """
    stray = [a for before, a in zip(["--", *arguments], arguments, strict=False) if _is_stray(before, a)]
    if stray:
        return f"{verb} takes no argument {stray[0]!r} without an option before it, such as --config {stray[0]}."
    found = Explanation(TOP, settings_of(arguments), LINKED).message()
    return found or " ".join(str(error).split())


def _is_stray(before: str, argument: str) -> bool:
    """Whether an argument is neither an option nor the value of one."""
    takes_value = before.startswith("-") and "=" not in before and before != "--"
    return not argument.startswith("-") and not takes_value
