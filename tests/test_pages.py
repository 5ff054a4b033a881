"""The pages of docs/: their code, their commands and pictures, and the site that is made of them."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import markdown
import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import replora
from replora.cli.arguments import split_arguments
from replora.cli.commands.tune import options_apart, tune
from replora.cli.main import COMMANDS, TRAINER_VERBS, main
from replora.config_files import packaged_configs
from replora.options.class_options import options_of
from replora.options.explain import Explanation
from replora.options.settings import settings_of
from replora.results import read_results
from replora.trainer.in_force import TOP
from replora.trainer.run_options import LINKED

ROOT = Path(__file__).parents[1]
SITE = str(ROOT / "mkdocs.yml")
HOOK = str(ROOT / "docs" / "hooks" / "repository.py")
COMMONMARK = MarkdownIt("commonmark").enable("table")
# Comment before a block of code: the test that runs it, or what it needs that a test cannot have.
MARK = re.compile(r"<!-- (?:tested by (\S+)|not run: (\S.+)) -->")
NO_CODE = ("text", "yaml", "mermaid")
PAGES = {file.name: COMMONMARK.parse(file.read_text("utf-8")) for file in sorted((ROOT / "docs").glob("*.md"))}
OTHERS = {name: COMMONMARK.parse((ROOT / name).read_text("utf-8")) for name in ("README.md", "CONTRIBUTING.md")}


def is_code(token: Token) -> bool:
    return token.type == "code_block" or (token.type == "fence" and token.info not in NO_CODE)


def code(page: str, word: str) -> str:
    (found,) = [token.content for token in PAGES[page] if is_code(token) and word in token.content]
    return found


# --- code


@pytest.mark.parametrize("page", PAGES)
def test_a_test_runs_each_block_of_code_or_the_page_says_why_not(page: str) -> None:
    tokens = [Token("", "", 0), *PAGES[page]]
    for before, token in pairwise(tokens):
        if not is_code(token):
            continue
        where = f"docs/{page}, line {token.map[0] + 1}" if token.map else page
        assert token.type == "code_block" or token.info in ("python", "bash"), f"{where}: which language?"
        mark = MARK.fullmatch(before.content.strip()) if before.type == "html_block" else None
        assert mark, f"{where}: neither <!-- tested by FILE --> nor <!-- not run: REASON --> stands before the code"
        if mark[1] and mark[1] != ".ci/run":
            assert page in (ROOT / mark[1]).read_text("utf-8"), f"{where}: {mark[1]} does not read this page"


def test_the_pages_on_training_loops_and_several_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """training_loop.md, and the lines of serving.md that switch between adapters."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for word in ("randperm", "merge_and_unload"):
        exec(compile(code("training_loop.md", word), "training_loop.md", "exec"), names)
    assert (names["predicted"] == names["labels"][400:800]).float().mean() > 0.6
    assert names["same"].equal(names["predicted"])
    for name in ("birds", "cars"):
        shutil.copy("adapter.safetensors", f"{name}.safetensors")
    model = names["build_vision_backbone"]("vit_nano", num_classes=10).model
    exec(
        compile(code("serving.md", 'name="cars")  # acts'), "serving.md", "exec"), {"replora": replora, "model": model}
    )
    assert replora.adapter_names(model) == ["birds", "cars"]


def test_the_plan_of_sweeps_and_the_picture_of_vision_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of sweeps.md that runs nothing, and the picture that vision_language.md asks about."""
    monkeypatch.chdir(tmp_path)
    main(shlex.split(code("sweeps.md", "--dry_run"))[1:])
    assert "trials" in capsys.readouterr().out
    exec(compile(code("vision_language.md", "picture()"), "vision_language.md", "exec"), {})
    assert Path("scene.png").stat().st_size > 0


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path with arrays.py of extending.md, and flowers.npz."""
    folder = tmp_path_factory.mktemp("arrays")
    (folder / "arrays.py").write_text(code("extending.md", "arrays.py"), encoding="utf-8")
    labels = np.arange(50) % 5 + 3
    images = (labels[:, None, None, None] * 30 + np.zeros((1, 32, 32, 3))).astype(np.uint8)
    np.savez(folder / "flowers.npz", images=images, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("arrays", None)


def test_data_of_a_class_outside_the_package(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of extending.md: its options, its splits, and what the record says of them."""
    monkeypatch.chdir(arrays)
    line = code("extending.md", "arrays.ArraysDataModule --data.file")
    small = "--model.backbone vit_nano --data.image_size 32 --trainer.max_epochs 1 --trainer.accelerator cpu"
    main([*shlex.split(line)[2:], *small.split(), "--run_dir", str(tmp_path / "run")])
    results = read_results(tmp_path / "run")
    assert results["data"]["dataset"] == "Arrays"
    assert results["data"]["task"] == "flowers"
    assert results["data"]["file_sha256"] == sha256(Path("flowers.npz").read_bytes()).hexdigest()
    sizes = {split: facts["size"] for split, facts in results["data"]["splits"].items()}
    assert sizes == {"train": 30, "val": 10, "test": 10}


# --- commands


def commands() -> Iterator[Any]:
    """Verb and arguments of every command of this program, in blocks of code and within sentences."""
    for page, tokens in (PAGES | OTHERS).items():
        parts = [token.content for token in tokens if is_code(token)]
        parts += [part.content for token in tokens for part in token.children or [] if part.type == "code_inline"]
        for line in "\n".join(parts).replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                found = re.search(r"(?:^|\s)(?:replora-cli|-m replora) ([a-z].*)", command)
                if found:
                    yield pytest.param(shlex.split(found[1], comments=True), id=f"{page}: {found[1]}")


@pytest.mark.usefixtures("arrays")
@pytest.mark.parametrize("words", list(commands()))
def test_the_program_has_the_options_of_a_command(words: list[str]) -> None:
    """Its configurations exist, and options and values are accepted; a variable stands for any value."""
    verb, *arguments = words
    place = next((i for i, word in enumerate(arguments) if "$" in word), None)
    while place is not None:
        first = place - (not arguments[place].startswith("$") or arguments[place - 1].startswith("--"))
        del arguments[first if "[@]" not in arguments[place] else place : place + 1]
        place = next((i for i, word in enumerate(arguments) if "$" in word), None)
    if verb in TRAINER_VERBS:
        assert problem_of_fit(arguments) is None
        return
    command = COMMANDS[verb]
    if isinstance(command, dict):
        command = command[arguments.pop(0)] if arguments and arguments[0] in command else next(iter(command.values()))
    if command is tune:
        of_fit, arguments = options_apart(arguments)
        assert problem_of_fit(of_fit) is None
    known = options_of(command)
    settings = settings_of(split_arguments(arguments)[1], read_configs="config" not in known)
    assert Explanation(known, settings, frozenset(known)).first_problem() is None


def problem_of_fit(arguments: list[str]) -> str | None:
    """What is wrong with options of `fit`; the configuration of a run that a page speaks of need not exist."""
    pairs = pairwise(arguments)
    ours = [i for i, (option, value) in enumerate(pairs) if option == "--config" and value.endswith("/fit.yaml")]
    given = [word for i, word in enumerate(arguments) if i not in ours and i - 1 not in ours]
    return Explanation(TOP, settings_of(given), LINKED).first_problem()


# --- pictures, and both ways to show a page


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_pictures_have_texts_for_those_who_do_not_see_them(page: str) -> None:
    for token in (PAGES | OTHERS)[page]:
        for part in token.children or []:
            if part.type == "image":
                assert len(part.content.split()) >= 3, f"{page}: {part.attrs['src']} needs a text that describes it"
            assert part.type != "html_inline" or not re.search("src=|href=", part.content)  # nothing checks these
        assert token.type != "html_block" or not re.search("src=|href=", token.content)
        if token.type == "fence" and token.info == "mermaid":
            assert re.search(r"accTitle: \S.*\n\s+accDescr: \S", token.content), f"{page}: {token.content[:80]}"


@pytest.fixture(scope="module")
def renderer() -> markdown.Markdown:
    config = load_config(SITE)
    return markdown.Markdown(extensions=config.markdown_extensions, extension_configs=config.mdx_configs)


@pytest.mark.parametrize("page", PAGES)
def test_the_site_shows_what_a_code_host_shows(page: str, renderer: markdown.Markdown) -> None:
    """Blocks, lists and tables are the same by both rules of Markdown, and so are the anchors of headings."""
    html = renderer.reset().convert((ROOT / "docs" / page).read_text("utf-8"))
    kinds = [token.type for token in PAGES[page]]
    for tag, names in {"pre": ("code_block", "fence"), "li": ("list_item_open",), "table": ("table_open",)}.items():
        assert len(re.findall(rf"<{tag}\b", html)) == sum(kinds.count(name) for name in names), tag
    tokens = PAGES[page]
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in headings]
    anchors = [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain]
    assert re.findall(r"<h\d id=\"([^\"]+)\"", html) == anchors
    assert "<!--" not in re.sub(r"<!-- .*? -->", "", html, flags=re.DOTALL)


# --- the site


def make(folder: Path, text: str, **changes: Any) -> str:
    """The page `text`, as mkdocs.yml has it built: a warning is an error."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(text, encoding="utf-8")
    (folder / "docs" / "other.md").write_text("# Other\n", encoding="utf-8")
    options: dict[str, Any] = {"nav": ["index.md", "other.md"], "repo_url": "https://code.example/r", "hooks": [HOOK]}
    config = load_config(
        SITE, docs_dir=str(folder / "docs"), site_dir=str(folder / "site"), strict=True, **options | changes
    )
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return (folder / "site" / "index.html").read_text("utf-8")


def test_links_to_the_repository(tmp_path: Path) -> None:
    lines = [
        "# A",
        "[a](../results/quickstart) [b](../CONTRIBUTING.md#checks) [c](other.md)",
        "![d](../results/quickstart/quickstart.png)",
        "`[e](../code)`",
        "```text\n[f](../code)\n```",
    ]
    html = make(tmp_path, "\n\n".join(lines))
    assert 'href="https://code.example/r/tree/HEAD/results/quickstart"' in html
    assert 'href="https://code.example/r/blob/HEAD/CONTRIBUTING.md#checks"' in html
    assert 'href="other/"' in html
    assert 'src="results/quickstart/quickstart.png"' in html
    assert (tmp_path / "site" / "results" / "quickstart" / "quickstart.png").stat().st_size > 0
    assert html.count("](../code)") == 2


def test_without_an_address_links_lead_to_the_checkout(tmp_path: Path) -> None:
    html = make(tmp_path, "# A\n[a](../results)\n", repo_url="")
    assert f'href="{(ROOT / "results").as_uri()}"' in html


@pytest.mark.parametrize(
    ("text", "nav"),
    [
        ("[a](missing.md)", None),
        ("[a](other.md#missing)", None),
        ("[a](#missing)", None),
        ("[a](/other.md)", None),
        ("![a](missing.png)", None),
        ("[a](../results/missing.json)", None),
        ("[a](../../outside)", None),
        ("[a](../CONTRIBUTING.md#missing)", None),
        ("::: replora.missing", None),
        ("[a][replora.missing]", None),
        ("", ["index.md", "other.md", "missing.md"]),
        ("", ["index.md"]),
    ],
)
def test_what_leads_nowhere_stops_the_build(tmp_path: Path, text: str, nav: list[str] | None) -> None:
    with pytest.raises(Abort):
        make(tmp_path, f"# A\n\n{text}\n", **({"nav": nav} if nav else {}))


def test_the_generated_pages_have_every_verb_option_configuration_and_name() -> None:
    hook = load_config(SITE).hooks["docs/hooks/reference.py"]
    command_line = "\n".join(hook.command_line())
    for verb, command in COMMANDS.items():
        for word, function in (command if isinstance(command, dict) else {"": command}).items():
            section = command_line.split(f"\n## replora-cli {verb} {word}".rstrip() + "\n")[1].split("\n## ")[0]
            assert all(f"`--{name}`" in section for name in options_of(function))
    shown = "\n".join(hook.configurations())
    assert all(f"\n### {name}\n" in shown for name in packaged_configs())
    assert all(f"::: replora.{name}\n" in "\n".join([*hook.python(), ""]) for name in replora.__all__)
    assert "`--batch_size`" in "\n".join(hook.classes()).split("\n### VTABDataModule\n")[1].split("\n### ")[0]


def test_ci_builds_what_the_workflow_publishes() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text("utf-8"))
    commands = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert "mkdocs build --strict" in commands
    (command,) = re.findall(r"^mkdocs .*", (ROOT / ".ci" / "run").read_text("utf-8"), flags=re.MULTILINE)
    assert command.startswith("mkdocs build --strict ")
    assert "-q" not in command  # which drops the warnings that --strict counts
