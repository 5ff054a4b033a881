"""What can be wrong with data on disk or with the choice of a subset or a protocol."""

from __future__ import annotations

from replora.errors import RepLoRAError


class DatasetNotFoundError(RepLoRAError):
    """The folder of a data set, or one of its list files, is not where it was looked for."""


class UnknownTaskError(RepLoRAError):
    """The name of a task is not known, or what was said about the task contradicts the table."""


class ListFileError(RepLoRAError):
    """A list file has a bad line, a label out of range, a path out of the data, a missing image or a wrong length."""


class CorruptImageError(RepLoRAError):
    """An image file cannot be read or decoded."""


class CorruptVideoError(RepLoRAError):
    """A video file or a folder of frames cannot be read or decoded, or is not whole."""


class RecordError(RepLoRAError):
    """A file of text records is damaged, or a record of it is not of the form that its task has."""


class SubsetError(RepLoRAError):
    """The fraction or the number of shots cannot be taken from this training set."""


class ProtocolError(RepLoRAError):
    """A split was asked for that the chosen protocol does not offer."""


class LabelError(RepLoRAError):
    """An annotation of an original data set is outside what the label rule of a task knows."""


class TrackError(RepLoRAError):
    """Images of one track of VTAB-1K were asked for as another, or the record of how they were made is damaged."""


class PrepareError(RepLoRAError):
    """A data set cannot be built, downloaded or unpacked."""


class LoaderWorkerError(RepLoRAError):
    """A process that loads images died."""
