"""What options ask for, compared with the memory of this machine before it is asked for."""

from __future__ import annotations

import os

from replora.errors import RepLoRAError

GIB = 2**30


def check_memory(size: float, what: str, remedy: str) -> None:
    """Refuse what cannot fit.

    Args:
        size: Bytes that are needed at least.
        what: What needs them, as the subject of a sentence.
        remedy: What to do, as a sentence.

    Raises:
        RepLoRAError: The machine has less memory.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > physical:
        raise RepLoRAError(
            f"{what} needs at least {size / GIB:,.0f} GiB, and this machine has {physical / GIB:,.0f} GiB. {remedy}"
        )
