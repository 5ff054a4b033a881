"""Make the results of `docs/commonsense.md`: SmolLM2-135M on real questions, untuned, with LoRA and with RepLoRA.

    REPLORA_DATA=FOLDER python scripts/commonsense_smollm2.py --out results/commonsense_smollm2

FOLDER holds LLM-Adapters' files of ARC-Easy, openbookqa and boolq. Every run is an ordinary `replora-cli fit` or `test`
of `configs/commonsense_smollm2.yaml`, about half an hour in all on two CPU cores with bfloat16 instructions. What is
there already is not run again. Learning rates: those that were best for each method on ARC-Easy in an earlier search
(LoRA 3e-3 of 1e-3, 3e-3, 1e-2; RepLoRA 1e-3 of 3e-4, 1e-3, 3e-3).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

LORA = ["--config=adapter/lora.yaml", "--model.optimizer.lr=0.003"]
CLEAN = ["--data.preset=clean"]
LLM_ADAPTERS = ["--data.preset=llm_adapters"]

# Name -> verb and options beyond those of the configuration.
RUNS: dict[str, list[str]] = {
    "cloze-untuned": ["test", "--ckpt_path=untrained"],
    "cloze-lora": ["fit", *LORA],
    "cloze-replora": ["fit"],
    "clean-untuned": ["test", "--ckpt_path=untrained", *CLEAN],
    "clean-replora": ["fit", *CLEAN],
    "llm_adapters-replora": ["fit", *LLM_ADAPTERS],
}


def run(name: str, out: Path, seed: int) -> None:
    """One run; what it measured becomes `out/NAME.json`, without where the data lie on this machine."""
    from replora.cli import main as replora_cli
    from replora.reports.results import write_json

    verb, *options = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        replora_cli(
            [
                verb,
                "--config=commonsense_smollm2.yaml",
                *options,
                f"--seed_everything={seed}",
                f"--run_dir={folder}/run",
            ]
        )
        content = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
    content["data"].pop("root", None)
    write_json(out / f"{name}.json", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/commonsense_smollm2"))
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS), help="all by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.runs:
        if not (args.out / f"{name}.json").exists():
            run(name, args.out, args.seed)
    from replora.reports.commonsense import commonsense_table

    for preset in dict.fromkeys(name.partition("-")[0] for name in args.runs):
        print(commonsense_table(sorted(args.out.glob(f"{preset}-*.json"), reverse=True)))


if __name__ == "__main__":
    main()
