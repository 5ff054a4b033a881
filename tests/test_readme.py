"""README and docs are true: commands exist, examples run, and figures equal those of the results files."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from replora import RepLoRAConfig
from replora.adapters.container import options_of
from replora.backbones.vit_nano import VIT_NANO_WEIGHTS
from replora.cli.main import COMMANDS, TRAINER_VERBS
from replora.config_files import find_config, packaged_configs
from replora.datasets.vision_language.demo import demo_records, demo_scenes
from replora.metrics.cider import cider_d
from replora.plots.quickstart import METHODS, row
from replora.sweeps.sweep_file import read_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART_PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
COMMAND_LINES = re.findall(r"replora-cli ((?:\w+ )?(?:\S+ )*?\S*)(?=`|\n|\s&&|$)", README.replace("\\\n", " "))
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
QUICKSTART = sorted((ROOT / "results" / "quickstart").glob("*/results.json"))


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_name_verbs_and_configs_that_exist(line: str) -> None:
    verb, *options = shlex.split(line)
    assert verb in TRAINER_VERBS or verb in COMMANDS
    for name in (value for flag, value in pairwise(options) if flag == "--config"):
        assert find_config(name).is_file()


@pytest.mark.parametrize("name", re.findall(r"^\| `(adapter/\S+)`", README, flags=re.MULTILINE))
def test_methods_of_the_table_are_packaged(name: str) -> None:
    assert find_config(name).is_file()


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_quickstart_figures_are_those_of_its_results_files() -> None:
    assert len(QUICKSTART) == 6
    for file in QUICKSTART:
        r = row(file)
        assert (
            f"| {METHODS[r.method]} | {r.images} | {r.trained:,} | {r.deployed:,} "
            f"| {r.val_accuracy:.1%} | {r.test_accuracy:.1%} |"
        ) in QUICKSTART_PAGE


def test_figures_of_the_video_page_are_those_of_its_results_files() -> None:
    page = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "results" / "video_demo").glob("*/results.json"))
    assert [file.parent.name for file in files] == ["linear_probe", "lora", "replora"]
    titles = {"linear_probe": "linear probe", "lora": "LoRA", "replora": "RepLoRA"}
    for file in files:
        found, rates = (json.loads(path.read_text(encoding="utf-8")) for path in (file, file.with_name("rates.json")))
        parameters, counted = found["parameters"], found["test"]["metrics"]
        assert rates["validation_accuracy_by_rate"][str(rates["chosen"])] == max(
            rates["validation_accuracy_by_rate"].values()
        )
        assert (
            f"| {titles[file.parent.name]} | {rates['chosen']} | {parameters['adapter_trained']:,} "
            f"| {parameters['adapter_deployed']:,} | {found['fit']['metrics']['val/accuracy']:.1%} "
            f"| {counted['test/accuracy']:.1%} |"
        ) in page


def test_figures_of_the_vision_and_language_page_are_those_of_its_results_file() -> None:
    page = (ROOT / "docs" / "vision_language.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "results" / "vl_demo" / "results.json").read_text(encoding="utf-8"))
    test, val = found["test"]["metrics"], found["fit"]["metrics"]
    row = f"| {test['test/accuracy/vqa']:.3f} | {test['test/cider/coco']:.2f} |"
    assert row in page
    assert f"({val['val/accuracy/vqa']:.3f} on the 300 of validation)" in page
    assert found["fit"]["seed"] == 0


def test_baselines_of_the_vision_and_language_page_are_computed_from_its_scenes() -> None:
    page = (ROOT / "docs" / "vision_language.md").read_text(encoding="utf-8")
    train, test = (demo_records("vqa", split, demo_scenes(split)) for split in ("train", "test"))
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        answers[record.text][record.answers[0]] += 1
    right = [answers[record.text].most_common(1)[0][0] == record.answers[0] for record in test]
    assert f"without a look at the scene | {sum(right) / len(right):.3f} | |" in page
    train, test = (demo_records("coco", split, demo_scenes(split)) for split in ("train", "test"))
    caption = Counter(record.answers[0] for record in train).most_common(1)[0][0]
    scores = cider_d([caption] * len(test), [record.truth for record in test])
    assert f"for every scene | | {sum(scores) / len(scores):.2f} |" in page


def test_the_multimodal_demonstration_ran_with_the_options_of_its_configuration() -> None:
    """Defaults that change leave the figures of the page behind: run its command again."""
    found = json.loads((ROOT / "results" / "vl_demo" / "results.json").read_text(encoding="utf-8"))
    model = yaml.safe_load(find_config("vl_demo.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    adapter = RepLoRAConfig(**model["adapter"]["init_args"])
    assert found["options"] == options_of(adapter)
    assert list(found["extra_parameters"]) == model["also_train"]
    optimizer = model["optimizer"]["init_args"]
    assert {name: found["fit"]["optimizer"][name] for name in optimizer} == optimizer


def test_accuracy_of_the_bundled_backbone_is_that_of_its_log() -> None:
    log = json.loads(VIT_NANO_WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert (
        f"{log['test_accuracy_percent']} % on {log['test_images']:,} CIFAR-10 test images"
        in QUICKSTART_PAGE.replace("\n", " ")
    )


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[0]
    small = code.replace("vit_base_patch16_224.orig_in21k", "test_vit").replace("pretrained=True", "pretrained=False")
    assert small.count("test_vit") == 1
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "adapter.safetensors").is_file()


SWEEPS = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")


def test_the_page_on_sweeps_lists_all_that_ship() -> None:
    shipped = {name for name in packaged_configs() if name.startswith("sweep/")}
    assert set(re.findall(r"^\| `(sweep/\S+)`", SWEEPS, flags=re.MULTILINE)) == shipped


def test_the_example_of_a_sweeps_file_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", SWEEPS, flags=re.DOTALL)
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    sweep = read_sweep(tmp_path / "example.yaml")
    assert len(sweep.selection_trials()) == 2 * 2 * 2 * 2
    assert len(sweep.planned_final_trials()) == 2 * 2 * 2 * 5


def test_the_speed_figure_is_that_of_the_results_file() -> None:
    file = ROOT / "results" / "benchmarks" / "training_step-vit_base-batch16-cpu-fp32.json"
    found = json.loads(file.read_text(encoding="utf-8"))["results"]["replora"]["ratio_to_peft_lora"]
    assert f"takes {found:.3f} of the time of PEFT's LoRA" in README


def test_the_readme_is_short_and_the_pages_that_it_grew_out_of_are_true() -> None:
    assert len(README.splitlines()) < 150
    for page in ("vtab", "methods", "quickstart", "claims"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
            assert (ROOT / "docs" / link).exists(), f"{page}.md: {link}"
        for name in re.findall(r"`(adapter/\S+\.yaml)`", text):
            assert find_config(name).is_file()
