"""The Trainer of transformers: a ViT learns handwritten digits, its head beside the adapter.

    python examples/image_classification.py             # a minute on two cores, without a network
    python examples/image_classification.py --quick     # seconds

The ViT is a small random one, so that nothing is downloaded; `ViTForImageClassification.from_pretrained` gives others.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import peft
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import replora


def digits() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """1,797 images of 8 x 8 gray levels, a quarter of them for the evaluation."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
    train, test = train_test_split(rows, test_size=0.25, random_state=0, stratify=labels)
    return train, test


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--out", default="runs/image_classification", help="folder of checkpoints and of the adapter")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    base = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))
    # A list of modules would be looked for by the names of transformers' own version; a regular expression fits all.
    lora = peft.LoraConfig(r=8, target_modules=r".*\.(query|value|q_proj|v_proj)", modules_to_save=["classifier"])
    model = peft.get_peft_model(base, lora)
    replora.reparameterize(model)
    train, test = digits()
    trainer = Trainer(
        model,
        TrainingArguments(
            options.out,
            max_steps=10 if options.quick else 600,
            per_device_train_batch_size=32,
            learning_rate=5e-3,
            weight_decay=0.01,
            eval_strategy="steps",
            eval_steps=5 if options.quick else 200,
            save_steps=5 if options.quick else 200,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_steps=5 if options.quick else 50,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=train,
        eval_dataset=test[:64] if options.quick else test,
        compute_metrics=accuracy,
        callbacks=[replora.RepLoRACallback()],
    )
    trainer.train()
    print(trainer.evaluate())
    model.save_pretrained(options.out)  # plain LoRA and the head


if __name__ == "__main__":
    main()
