"""Measure everything that docs/benchmarks.md shows of a CPU, on one machine in one go, and write its tables.

    python benchmarks/all.py                      # about 85 minutes; nothing else should run meanwhile

Each benchmark is a process of its own. Those that were measured at this commit already are left out, so the same
command goes on after an interruption. `record_memory.py` compares with another commit, and is run by hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import measure

from replora.results import git_commit

TRAINING = "training_step.py --threads"
FEW = "--methods floor peft_lora replora_over_peft replora lora"
# Result -> command; of a command with several results the last one. Whole runs, which take longest, come first.
COMMANDS = {
    "sweep_throughput": "sweep_throughput.py",
    "whole_run-digits": "whole_run.py --task digits --rounds 2 --threads 1",
    "whole_run-photos": "whole_run.py --task photos --epochs 1 --rounds 2 --threads 1",
    "whole_run-questions": "whole_run.py --task questions --rounds 1 --threads 1",
    "inference-cpu-fp32": "inference.py --rounds 3 --threads 1",
    "evaluation-vit_base-batch16-cpu-fp32": "evaluation.py --threads 1 --rounds 10",
    "loading": "loading.py --threads 1 --rounds 3",
    "image_decoding": "image_decoding.py --threads 1 --rounds 10",
    "video_decoding": "video_decoding.py --threads 1",
    "startup": "startup.py --threads 1 --rounds 3",
    "memory": "memory.py --threads 1",
    "compilation": "compilation.py --threads 1",
    "step_profile-vit_base-batch16-cpu-fp32": "step_profile.py --rounds 5 --threads 2",
    "training_step-vit_base-batch16-cpu-fp32": f"{TRAINING} 2 --rounds 10",
    "training_step-llama_stack-batch4-cpu-fp32": f"{TRAINING} 2 --rounds 7 --batch 4 --model vit_small swin_tiny "
    "llama_stack",
    "training_step-swin3d_tiny-batch1-cpu-fp32": f"{TRAINING} 2 --model swin3d_tiny --batch 1 --rounds 5",
    "training_step-llama_stack-batch2-cpu-fp32": f"{TRAINING} 2 --model llama_stack --batch 2 --rounds 9 {FEW}",
    "training_step-vit_base-batch8-cpu-fp32": f"{TRAINING} 2 --model vit_base --batch 8 --rounds 9 {FEW}",
    "training_step-vit_b_16-batch4-cpu-fp32": f"{TRAINING} 1 --rounds 7 --batch 4 --no-full --methods floor replora "
    "lora --model swin_t vit_b_16",
    "training_step-vit_large-batch2-cpu-fp32": "training_step.py --model vit_large --batch 2 --threads 1 --rounds 4",
    "training_step-llama_stack-batch4-cpu-fp32-compiled": f"{TRAINING} 1 --rounds 7 --batch 4 --compile --no-full "
    "--methods floor replora lora peft_lora replora_over_peft --model vit_small llama_stack",
    "scaling-vit_small-cpu-fp32": "scaling.py --threads 1 --rounds 10",
}


def measured(file: Path) -> bool:
    """Whether a result is of this commit. Results that were written since make a checkout dirty, and do not count."""
    if not file.is_file():
        return False
    then, now = json.loads(file.read_text(encoding="utf-8"))["git"], git_commit()
    return bool(then and now) and str(then).removesuffix("-dirty") == str(now).removesuffix("-dirty")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="output folder of the JSON files")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="results to measure; default: all")
    parser.add_argument("--list", action="store_true", help="print the commands, and which are left")
    options = parser.parse_args(arguments)
    here = Path(__file__).parent
    failed = []
    for name, command in COMMANDS.items():
        done = measured(options.out / f"{name}.json")
        if options.list:
            print(f"{'measured' if done else 'left':<9} python benchmarks/{command}")
        if options.list or done or (options.only and name not in options.only):
            continue
        begin = time.monotonic()
        script, *given = command.split()
        given += [] if options.out == measure.RESULTS else ["--out", str(options.out)]
        print(f"{name}: python benchmarks/{command}", flush=True)
        ended = subprocess.run([sys.executable, here / script, *given], stdout=subprocess.DEVNULL)
        print(f"  {time.monotonic() - begin:.0f} s, status {ended.returncode}", flush=True)
        failed += [name] if ended.returncode else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}. The same command measures them again.")
    if not options.list and not options.only and options.out == measure.RESULTS:
        subprocess.run([sys.executable, here / "tables.py"], check=True)


if __name__ == "__main__":
    main()
