"""Errors that a user can fix, as a message: those of this package, of the operating system and of libraries."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from replora.errors import RepLoRAError
from replora.launch import OWN, foreign_package

# What the operating system refused -> what is wrong, and what to do.
_SYSTEM = {
    errno.ENOENT: "there is no such file or folder. Check the name and the working directory, {cwd}",
    errno.EACCES: "this user may not read or write it. Change its permissions, or choose another place",
    errno.EPERM: "this user may not read or write it. Change its permissions, or choose another place",
    errno.EROFS: "it lies on a read-only file system. Choose another place to write to",
    errno.EEXIST: "it exists already. Choose another name, or remove it",
    errno.EISDIR: "it is a folder, and a file is expected",
    errno.ENOTDIR: "a part of this path is a file, and a folder is expected",
    errno.ENOTEMPTY: "the folder is not empty. Choose another name, or empty it",
    errno.ENAMETOOLONG: "the name is too long for the file system. Choose a shorter one",
    errno.ENOSPC: "no space is left on the device. Free some, or choose another place",
    errno.EDQUOT: "the disk quota is used up. Free some space, or choose another place",
    errno.EFBIG: "the file would become larger than the file system allows. Choose another place",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n), or use fewer loader processes",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "there is not enough memory. Lower the batch size, or use a smaller model",
    errno.EIO: "the device reports an input/output error. Check the disk or the network share",
    errno.ESTALE: "the network share has changed meanwhile. Mount it again",
    errno.ELOOP: "links lead in a circle",
    errno.EINVAL: "the operating system does not accept it",
}
# Classes of libraries, by name, so that none is imported here -> what to do.
_LIBRARIES = {
    "MisconfigurationException": "",
    "OutOfMemoryError": "Lower --data.batch_size (and raise --trainer.accumulate_grad_batches), or shard the model.",
    "MemoryError": "There is not enough memory. Lower the batch size, or use a smaller model.",
    "RecursionError": "A file is nested too deeply to be read.",
    "ModuleNotFoundError": "Install it with pip.",
    "SafetensorError": "The file is corrupt, or no safetensors file. Copy it again from its source.",
    "YAMLError": "The file is not valid YAML.",
}
# Modules that check options and say what is wrong with them.
_CHECKS_OPTIONS = ("lightning.", "torch.optim.")
_NO_MEMORY = "can't allocate memory"  # in the RuntimeError of torch on a CPU
_ZERO_BYTE = "embedded null"  # in the ValueError of a path
LONGEST = 500  # characters of a library's message


def user_error(error: BaseException) -> str | None:
    """The message of an error that a user can fix; None for any other, which is a defect of a program.

    jsonargparse and Lightning wrap the errors of constructors and files in their own: the first known one of the chain
    is taken, and one of this package before all others.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, RepLoRAError):
            return str(cause)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _SYSTEM:
            return _of_system(cause)
        if isinstance(cause, ImportError) and (hidden := _hidden_package(cause)):
            return hidden
        names = {cls.__name__ for cls in type(cause).__mro__}
        for name, remedy in _LIBRARIES.items():
            if name in names:
                return " ".join(filter(None, [_first_paragraph(cause), remedy]))
        if isinstance(cause, ValueError) and _ZERO_BYTE in str(cause):
            return "A path holds a zero byte, which no name of a file does. Write the path without \\0."
        if isinstance(cause, RuntimeError) and _NO_MEMORY in str(cause):
            return f"{_LIBRARIES['MemoryError']} Asked for by the options: {_first_paragraph(cause)}"
        if isinstance(cause, ValueError | RuntimeError | TypeError) and _raised_in(cause).startswith(_CHECKS_OPTIONS):
            return _first_paragraph(cause)
    return None


def _hidden_package(error: ImportError) -> str | None:
    """The message about another package with the name of one of ours, if it lacks what was imported."""
    package = (error.name or "").partition(".")[0]
    return foreign_package(sys.modules[package]) if package in OWN and package in sys.modules else None


def _raised_in(error: BaseException) -> str:
    """Name of the module that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _of_system(error: OSError) -> str:
    assert error.errno is not None
    what = _SYSTEM[error.errno].format(cwd=Path.cwd())
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    return f"{' -> '.join(names) or 'A file cannot be read or written'}: {what}."


def _first_paragraph(error: BaseException) -> str:
    text = " ".join(str(error).split("\n\n")[0].split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
