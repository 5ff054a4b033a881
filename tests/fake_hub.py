"""A stand-in for huggingface_hub whose repositories are local folders."""

from __future__ import annotations

import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

COMMIT = "abc123"


def fake_hub(monkeypatch: pytest.MonkeyPatch, repositories: Path) -> Path:
    """Make `huggingface_hub` answer from the folder `repositories`, where OWNER/NAME is a folder.

    Returns:
        `repositories`, made.
    """
    repositories.mkdir(parents=True, exist_ok=True)

    def dataset_info(name: str, revision: str | None = None) -> SimpleNamespace:  # noqa: ARG001
        if not (repositories / name).is_dir():
            raise FileNotFoundError(f"404: no repository {name}")
        return SimpleNamespace(sha=COMMIT, id=name)

    def snapshot_download(
        name: str, repo_type: str, revision: str, local_dir: str, allow_patterns: list[str] | None = None
    ) -> str:
        assert (repo_type, revision) == ("dataset", COMMIT)
        source = repositories / name
        for file in sorted(source.rglob("*")):
            inner = file.relative_to(source).as_posix()
            if not file.is_dir() and (allow_patterns is None or any(fnmatch(inner, p) for p in allow_patterns)):
                target = Path(local_dir) / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target, follow_symlinks=False)
        return local_dir

    api = SimpleNamespace(dataset_info=dataset_info)
    hub = SimpleNamespace(HfApi=lambda: api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)  # type: ignore[arg-type]
    return repositories


def without_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    """Make the hub's client find no network and an empty cache.

    Returns:
        The addresses that it asked for, which grow.
    """
    import huggingface_hub
    from huggingface_hub import constants

    asked: list[str] = []

    class Unreachable(Exception):  # noqa: N818
        """An error without a response, as those of httpx and requests are."""

    def no_answer(_self: object, url: str, **_options: object) -> None:
        asked.append(url)
        raise Unreachable("Name or service not known")

    session = type("Session", (), dict.fromkeys(("get", "head", "request", "stream"), no_answer))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.get_session", session)
    assert huggingface_hub.HfApi
    return asked
