"""Make the results of `docs/commonsense.md`: SmolLM2-135M on real questions, untuned, with LoRA and with RepLoRA.

    REPLORA_DATA=FOLDER python scripts/commonsense_smollm2.py --out results/commonsense_smollm2

FOLDER holds LLM-Adapters' files of ARC-Easy, openbookqa and boolq. Every run is an ordinary `replora-cli fit` or `test`
of `configs/commonsense_smollm2.yaml` with seed 0. What is there already is not run again. Learning rates: those that
were best for each method on ARC-Easy in an earlier search (LoRA 3e-3 of 1e-3, 3e-3, 1e-2; RepLoRA 1e-3 of 3e-4, 1e-3,
3e-3).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

UNTUNED = ["test", "--ckpt_path=untrained"]
LORA = ["fit", "--config=adapter/lora.yaml", "--model.optimizer.lr=0.003"]
REPLORA = ["fit"]
THREE_TASKS = ["--data.tasks=[ARC-Easy, openbookqa, boolq]", "--data.train_fraction=0.05"]
CLEAN = ["--data.preset=clean"]
LLM_ADAPTERS = ["--data.preset=llm_adapters", "--data.test_items=200"]

# Table -> run -> verb and options beyond those of the configuration.
TABLES: dict[str, dict[str, list[str]]] = {
    "cloze": {"untuned": UNTUNED, "lora": LORA, "replora": REPLORA},
    "cloze_three_tasks": {
        "untuned": [*UNTUNED, *THREE_TASKS],
        "lora": [*LORA, *THREE_TASKS],
        "replora": [*REPLORA, *THREE_TASKS],
    },
    "clean": {"untuned": [*UNTUNED, *CLEAN], "replora": [*REPLORA, *CLEAN]},
    "llm_adapters": {"replora": [*REPLORA, *LLM_ADAPTERS]},
}


def run(arguments: list[str], file: Path) -> None:
    """One run; what it measured becomes `file`, without where the data lie on this machine."""
    from replora.cli import main as replora_cli
    from replora.reports.results import write_json

    verb, *options = arguments
    with tempfile.TemporaryDirectory() as folder:
        replora_cli([verb, "--config=commonsense_smollm2.yaml", *options, f"--run_dir={folder}/run"])
        content = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
    content["data"].pop("root", None)
    write_json(file, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/commonsense_smollm2"))
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES), help="all by default")
    args = parser.parse_args()

    from replora.reports.commonsense import commonsense_table

    for table in args.tables:
        files = [args.out / f"{table}-{name}.json" for name in TABLES[table]]
        for file, arguments in zip(files, TABLES[table].values(), strict=True):
            if not file.exists():
                run(arguments, file)
        print(commonsense_table(files))


if __name__ == "__main__":
    main()
