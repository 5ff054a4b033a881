"""sentence-transformers: a small BERT learns which sentences have words of one kind.

    pip install sentence-transformers
    python examples/sentence_similarity.py              # seconds, without a network
    python examples/sentence_similarity.py --quick

The BERT is a random one, so that nothing is downloaded; `SentenceTransformer(name)` gives others.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import BertConfig, BertModel, BertTokenizerFast

import replora

KINDS = {
    "animal": ["cat", "dog", "cow", "hen", "fox"],
    "fruit": ["pear", "plum", "fig", "lime", "kiwi"],
    "color": ["red", "blue", "pink", "gray", "gold"],
    "metal": ["iron", "zinc", "tin", "lead", "steel"],
}
WORDS = [word for words in KINDS.values() for word in words]


def pairs(count: int) -> Dataset:
    """Two sentences of one kind in each row."""
    draw = random.Random(0)
    kinds = [draw.choice(list(KINDS.values())) for _ in range(count)]
    return Dataset.from_list([{name: " ".join(draw.sample(k, 2)) for name in ("anchor", "positive")} for k in kinds])


def random_bert(folder: Path) -> SentenceTransformer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")


def margin(model: SentenceTransformer) -> float:
    """How much more alike two words of one kind are than two of different kinds."""
    kind = torch.arange(len(WORDS)) // 5
    alike = model.similarity(vectors := model.encode(WORDS, convert_to_tensor=True), vectors)
    same = kind[:, None] == kind
    return float(alike[same].mean() - alike[~same].mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--out", default="runs/sentence_similarity", help="folder of checkpoints and of the adapter")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        model = random_bert(Path(temporary))
        lora = peft.LoraConfig(r=4, target_modules=["query", "value"])
        model[0].model = peft.get_peft_model(model[0].model, lora)  # or model.add_adapter(lora)
        replora.reparameterize(model)
        print(f"margin before: {margin(model):.3f}")
        trainer = SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments(
                options.out,
                max_steps=4 if options.quick else 100,
                per_device_train_batch_size=8,
                learning_rate=1e-2,
                logging_steps=2 if options.quick else 25,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
            ),
            train_dataset=pairs(32 if options.quick else 800),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[replora.RepLoRACallback()],
        )
        trainer.train()
        print(f"margin after: {margin(model):.3f}")
        model[0].model.save_pretrained(options.out)
        plain = random_bert(Path(temporary))
        plain[0].model = peft.PeftModel.from_pretrained(plain[0].model, options.out)  # needs no replora
        print(f"{options.out}: plain LoRA, margin {margin(plain):.3f}")


if __name__ == "__main__":
    main()
