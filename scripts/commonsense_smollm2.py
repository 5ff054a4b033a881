"""Produce the results of `docs/commonsense.md`: SmolLM2-135M on real questions, untuned, with LoRA and with RepLoRA.

    REPLORA_DATA=FOLDER python scripts/commonsense_smollm2.py --page docs/commonsense.md

FOLDER holds LLM-Adapters' files of ARC-Easy, openbookqa and boolq. Every run is an ordinary `replora-cli fit` or `test`
of `configs/commonsense_smollm2.yaml` with seed 0. The script skips runs whose results exist: delete them after a
change of the configuration. Both methods use the configuration's learning rate, which was selected by a search on
validation questions of ARC-Easy (`configs/sweep/commonsense_low_data.yaml`).
"""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
from pathlib import Path

UNTUNED = ["test", "--ckpt_path=untrained"]
LORA = ["fit", "--config=adapter/lora.yaml"]
REPLORA = ["fit"]
THREE_TASKS = ["--data.tasks=[ARC-Easy, openbookqa, boolq]", "--data.train_fraction=0.05"]
# OpenBookQA gained little from few records beside other tasks.
OPENBOOKQA = ["--data.tasks=[openbookqa]", "--data.train_fraction=0.3"]
CLEAN = ["--data.preset=clean"]
LLM_ADAPTERS = ["--data.preset=llm_adapters", "--data.test_items=200"]

# Table -> run -> verb and options in addition to those of the configuration.
TABLES: dict[str, dict[str, list[str]]] = {
    "cloze": {"untuned": UNTUNED, "lora": LORA, "replora": REPLORA},
    "cloze_three_tasks": {
        "untuned": [*UNTUNED, *THREE_TASKS],
        "lora": [*LORA, *THREE_TASKS],
        "replora": [*REPLORA, *THREE_TASKS],
    },
    "cloze_openbookqa": {
        "untuned": [*UNTUNED, *OPENBOOKQA],
        "lora": [*LORA, *OPENBOOKQA],
        "replora": [*REPLORA, *OPENBOOKQA],
    },
    "clean": {"untuned": [*UNTUNED, *CLEAN], "replora": [*REPLORA, *CLEAN]},
    "llm_adapters": {"replora": [*REPLORA, *LLM_ADAPTERS]},
}


def run(arguments: list[str], file: Path) -> None:
    """Execute one run and write its measurements to `file`, without the location of the data on this machine."""
    from replora.cli.main import main as replora_cli
    from replora.reports.answers import right_answers
    from replora.results import read_results, stored, write_json

    verb, *options = arguments
    command = [verb, "--config=commonsense_smollm2.yaml", *options]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        replora_cli([*command, f"--run_dir={directory}"])
        content = read_results(directory)
        content["test"]["right"] = right_answers(directory / "predictions.jsonl", list(content["test"]["mean"]))
    fit = content.get("fit", {})
    for data in (content["data"], *(evaluation["data"] for evaluation in content["evaluations"])):
        data.pop("root", None)
    for done in (fit, *fit.get("processes", ()), *content["evaluations"]):
        if done:
            done["command"] = shlex.join(["replora-cli", *command])
    write_json(file, stored(content))


def put_into(page: Path, name: str, table: str) -> None:
    """Replace the text between `<!-- table NAME -->` and `<!-- end -->` in a page."""
    text = page.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- table {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    page.write_text(marks.sub(lambda found: f"{found[1]}\n{table}{found[2]}", text), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/commonsense_smollm2"))
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES), help="default: all tables")
    parser.add_argument("--page", type=Path, help="Markdown file to write the tables into")
    args = parser.parse_args(arguments)

    from replora.reports.sections.commonsense import commonsense_table

    for name in args.tables:
        files = [args.out / f"{name}-{method}.json" for method in TABLES[name]]
        for file, options in zip(files, TABLES[name].values(), strict=True):
            if not file.exists():
                run(options, file)
        table = commonsense_table(files)
        print(table)
        if args.page is not None:
            put_into(args.page, name, table)


if __name__ == "__main__":
    main()
