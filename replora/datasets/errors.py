"""Errors of data on disk, of subsets and of protocols."""

from __future__ import annotations

from replora.errors import RepLoRAError


class DatasetNotFoundError(RepLoRAError):
    """The folder of a data set, or one of its list files, does not exist."""


class UnknownTaskError(RepLoRAError):
    """The name of a task is not known, or an option contradicts the table of tasks."""


class ListFileError(RepLoRAError):
    """A list file has an invalid line, a wrong label or length, a path outside the data, or a missing image."""


class CorruptImageError(RepLoRAError):
    """An image file cannot be read or decoded."""


class CorruptVideoError(RepLoRAError):
    """A video file or a folder of frames cannot be read or decoded, or is incomplete."""


class RecordError(RepLoRAError):
    """A file of text records is corrupt, or a record does not have the form of its task."""


class SubsetError(RepLoRAError):
    """The fraction or the number of shots cannot be taken from this training set."""


class ProtocolError(RepLoRAError):
    """A requested split is not part of the protocol."""


class LabelError(RepLoRAError):
    """An annotation of an original data set is outside the range of its label rule."""


class TrackError(RepLoRAError):
    """The images are of another track of VTAB-1K than requested, or their record is corrupt."""


class PrepareError(RepLoRAError):
    """A data set cannot be built, downloaded or unpacked."""


class LoaderWorkerError(RepLoRAError):
    """A loader process died."""
