"""Multiple-choice questions, answered by an adapted causal language model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, SumMetric

from lightning_modules.base import AdaptedModule
from lightning_modules.callbacks.answer_writer import AnswerWriter
from lightning_modules.schedule import WarmupLinear
from lightning_modules.sharded_backbone import ShardedBackboneStrategy
from replora import AdapterConfig, RepLoRAConfig
from replora.backbones.language import (
    Dtype,
    LanguageBackbone,
    Quantization,
    build_language_backbone,
    checkpoint_gradients,
    load_tokenizer,
)
from replora.datasets.samples import NO_LOSS
from replora.datasets.text.items import ChoiceItem, TextBatch, with_counts
from replora.datasets.text.prompts import parse_answer
from replora.errors import RepLoRAError, nearest
from replora.evaluation import generate, option_log_likelihoods
from replora.evaluation.choice_counts import ChoiceCounts, Counted, accuracies
from replora.evaluation.likelihood import takes
from replora.metrics.weighted_mean import WeightedMean

Evaluation = Literal["auto", "generate", "likelihood"]

RESPONSE = "### Response:"
DEFAULT_ADAPTER = RepLoRAConfig()
DEFAULT_SCHEDULE = WarmupLinear()


class Answer(TypedDict):
    """The model's answer to one question; a line of `predictions.jsonl`."""

    task: str
    index: int  # position in the task's file
    prompt: str
    options: list[str]
    answer: str  # the correct option
    predicted: str  # the selected option, "" if the text holds none
    predicted_norm: str | None  # the option of the highest log-likelihood per character
    log_likelihoods: list[float] | None  # of the options, in nats
    option_lengths: list[int]  # characters by which `acc_norm` divides the log-likelihoods
    text: str | None  # the generated text
    right: bool
    right_norm: bool | None


class CausalLanguageModel(AdaptedModule):
    """A pre-trained causal language model with an adapter, trained on texts and measured on questions with options.

    Training batches are `replora.datasets.TextBatch`es. The loss is the cross-entropy of the next token, averaged over
    the labeled tokens of one batch of one process; a batch without labels has the loss 0. Accumulated batches and
    processes count alike, however many labels they have.

    An evaluation batch is a list of `replora.datasets.ChoiceItem`s, answered in one of two ways. `generate` lets the
    model write and looks for an answer in its text; logged: `accuracy` and `unparsed`, the share of texts without an
    answer, which count as wrong. `likelihood` takes the most likely option; logged: `acc`, and under the preset `cloze`
    `acc_norm`, which divides the log-likelihood of an option by its characters. Each is logged for every task
    (`test/acc/boolq`) and as the plain mean of the tasks (`test/acc`).

    Args:
        backbone: `smollm2`, a folder as transformers saves it, or a hub id such as `yahma/llama-7b-hf`. The data's
            tokenizer is the one of this name.
        pretrained: Whether to load the weights; otherwise they are random, and only the configuration is read.
        revision: Branch, tag or commit of the hub repository.
        dtype: Data type of the frozen weights: `bf16`, `fp16`, `fp32`, or `auto` for that of the saved weights. The
            adapter is always in float32.
        quantization: `8bit` or `4bit` to quantize the frozen weights with bitsandbytes; they cannot be merged then.
        adapter: Adaptation method: `RepLoRAConfig` (RepLoRA, its ablations, LoRA), `FullConfig`, `BitFitConfig`, or
            `PeftMethodConfig` for another method of the peft library.
        optimizer: Optimizer.
        schedule: Learning-rate schedule.
        gradient_checkpointing: Whether to recompute activations in the backward pass instead of storing them: less
            memory, about a third more time, the same result.
        evaluation: How questions are answered: `generate`, `likelihood`, or `auto` for `generate` under the preset
            `llm_adapters` and `likelihood` otherwise.
        num_beams: Number of beams for generation (>= 1). Default: 4 under the preset `llm_adapters`, else 1 (greedy).
        max_new_tokens: Maximum length of a generated text in tokens (>= 1).

    Raises:
        RepLoRAError: An option is out of its range, or the backbone or its weights are not available.
    """

    backbone: LanguageBackbone

    def __init__(
        self,
        backbone: str = "smollm2",
        pretrained: bool = True,
        revision: str | None = None,
        dtype: Dtype = "auto",
        quantization: Quantization = "none",
        adapter: AdapterConfig = DEFAULT_ADAPTER,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=3e-4, weight_decay=0.0),
        schedule: WarmupLinear = DEFAULT_SCHEDULE,
        gradient_checkpointing: bool = False,
        evaluation: Evaluation = "auto",
        num_beams: int | None = None,
        max_new_tokens: int = 32,
    ) -> None:
        for option, value in {"num_beams": num_beams, "max_new_tokens": max_new_tokens}.items():
            if value is not None and value < 1:
                raise RepLoRAError(f"{option}: {value} is out of range. It must be at least 1.")
        if evaluation not in Evaluation.__args__:  # type: ignore[attr-defined]
            raise RepLoRAError(
                f"evaluation: {evaluation!r} is not known. {nearest(evaluation, Evaluation.__args__)}"  # type: ignore[attr-defined]
            )
        built = build_language_backbone(
            backbone, pretrained=pretrained, revision=revision, dtype=dtype, quantization=quantization
        )
        super().__init__(built, adapter, optimizer, schedule)
        if gradient_checkpointing:
            checkpoint_gradients(self.model)
        self.evaluation: Evaluation = evaluation
        self.num_beams = num_beams
        self.max_new_tokens = max_new_tokens
        self.revision = revision
        self.preset = "cloze"
        self.tokenizer: Any = None
        self.train_loss, self.val_loss = WeightedMean(), MeanMetric()  # in training nothing asks the device
        self.tokens, self.loss_tokens = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")
        self.counts = ChoiceCounts(())
        self._results: dict[str, dict[str, Any]] = {}
        self._clock = 0.0
        self._seconds = 0.0  # of model time in the current evaluation
        self._processed = 0  # questions that this process handled in that time
        self._train_seconds, self._train_tokens = 0.0, 0  # of the current epoch, in which validations may run

    @classmethod
    def build_backbone(
        cls,
        options: dict[str, Any],
        data: dict[str, Any],  # noqa: ARG003
        checkpoint: Path | None,
    ) -> LanguageBackbone:
        return build_language_backbone(
            str(checkpoint or options["backbone"]),
            pretrained=options.get("pretrained", True),
            revision=options.get("revision"),
            dtype=options.get("dtype", "auto"),
            quantization=options.get("quantization", "none"),
        )

    def writers(self, verb: str, run_dir: Path) -> list[Callback]:  # noqa: ARG002
        return [AnswerWriter(run_dir)]

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        kept = {"dtype": self.backbone.dtype, "quantization": self.backbone.quantization}
        return {**described, "backbone": described["backbone"] | kept}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        self.preset = getattr(datamodule, "preset", self.preset)
        self.counts = ChoiceCounts(getattr(datamodule, "tasks", ()))
        tokenizer = getattr(datamodule, "tokenizer_name", self.backbone.name)
        if tokenizer != self.backbone.name:
            rank_zero_warn(
                f"The data are tokenized as for {tokenizer!r}, but the backbone is {self.backbone.name!r}. Where their "
                "vocabularies differ, the model sees nonsense."
            )
        if self.mode == "generate":
            if self.preset == "cloze":
                raise RepLoRAError(
                    "evaluation: generate looks for a numbered answer in the text, and the preset 'cloze' has none. "
                    "Set --model.evaluation likelihood, or --data.preset clean."
                )
            self.tokenizer = load_tokenizer(tokenizer, self.revision)
        if hasattr(datamodule, "token_limits"):
            self._check_tokens(*datamodule.token_limits())

    def _check_tokens(self, largest: int, longest: int) -> None:
        """Check that the model has an embedding for every token and positions for every text.

        Raises:
            RepLoRAError: It has not.
        """
        model: Any = self.model
        rows = len(model.get_input_embeddings().weight)
        if largest >= rows:
            raise RepLoRAError(
                f"The tokenizer gives token ids up to {largest:,}, but {self.backbone.name} has {rows:,} embeddings. "
                "Give the tokenizer that the model was trained with; a padding token that was added to it later must "
                "be one of the model's own, such as the end token (pad_token in tokenizer_config.json)."
            )
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or longest
        if longest > positions:
            raise RepLoRAError(
                f"The longest text has {longest:,} tokens, but {self.backbone.name} has {positions:,} positions. Lower "
                "--data.cutoff, leave the tasks of such long questions out (--data.tasks, --data.test_tasks), or take "
                "a backbone with more positions."
            )

    @property
    def mode(self) -> Evaluation:
        """How questions are answered: `generate` or `likelihood`."""
        if self.evaluation != "auto":
            return self.evaluation
        return "generate" if self.preset == "llm_adapters" else "likelihood"

    def measured(self, verb: str) -> dict[str, Any]:
        return self._results.get(verb, {})

    def on_before_batch_transfer(self, batch: list[ChoiceItem] | TextBatch, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Look at labels and mask while they are in host memory: to ask the device makes the step wait for it."""
        return batch if isinstance(batch, list) else with_counts(batch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Questions are lists of token ids, which become tensors when the model evaluates them."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    # --- training

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) -> logits (B, T, vocabulary)."""
        return self._logits(input_ids, attention_mask, first=0)

    def on_train_epoch_start(self) -> None:
        self._train_seconds, self._train_tokens = 0.0, 0

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._clock = time.perf_counter()

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        counted = with_counts(batch)
        loss, count = self._loss(counted)
        self.check_finite(loss, batch_idx)
        tokens = counted["tokens"]
        self._train_tokens += tokens
        self.train_loss.update(loss.detach(), count)
        self.tokens.update(tokens)
        self.loss_tokens.update(count)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=1)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/tokens", self.tokens, on_step=False, on_epoch=True)
        self.log("train/loss_tokens", self.loss_tokens, on_step=False, on_epoch=True)
        self.log("train/learning_rate", rate, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: TextBatch, batch_idx: int) -> None:  # noqa: ARG002
        if self.trainer.is_last_batch:
            self._read_losses()  # waits for the steps that the device has not finished: they are part of the time
        self._train_seconds += time.perf_counter() - self._clock

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        rate = self._train_tokens * self.trainer.world_size / max(self._train_seconds, 1e-9)
        self._results["fit"] = {"tokens_per_second": round(rate, 1)}

    def _loss(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy of the tokens with a loss, and their number, both ()."""
        labels = batch["labels"]
        first = with_counts(batch)["first"]
        logits = self._logits(batch["input_ids"], batch["attention_mask"], first)[:, :-1]
        targets = labels[:, first + 1 :]
        total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="sum")
        count = (labels[:, 1:] != NO_LOSS).sum()
        return total / count.clamp(min=1), count

    def _logits(self, input_ids: Tensor, attention_mask: Tensor, first: int) -> Tensor:
        """Logits (B, T - first, vocabulary) of the columns from `first` on."""
        kept = input_ids.shape[1] - first
        options: dict[str, Any] = {}
        if takes(self.model, "position_ids"):  # with padding on the left the first token is still at 0
            options["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if takes(self.model, "logits_to_keep"):
            options["logits_to_keep"] = kept
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
        ).logits
        return logits[:, -kept:]

    # --- evaluation

    def on_validation_epoch_start(self) -> None:
        self._start_counting()

    def on_test_epoch_start(self) -> None:
        self._start_counting()

    def validation_step(self, batch: list[ChoiceItem] | TextBatch, batch_idx: int) -> None:  # noqa: ARG002
        if isinstance(batch, list):
            self._count(self._answers(batch))
        else:
            self.val_loss.update(*self._loss(batch))
            self.log("val/loss", self.val_loss, on_epoch=True, prog_bar=True)

    def test_step(self, batch: list[ChoiceItem], batch_idx: int) -> dict[str, list[Answer]]:  # noqa: ARG002
        answers = self._answers(batch)
        self._count(answers)
        return {"answers": answers}

    def predict_step(self, batch: list[ChoiceItem], batch_idx: int) -> dict[str, list[Answer]]:  # noqa: ARG002
        return {"answers": self._answers(batch)}

    def on_validation_epoch_end(self) -> None:
        self._log_counts("val", "validate")

    def on_test_epoch_end(self) -> None:
        self._log_counts("test", "test")

    def _answers(self, batch: list[ChoiceItem]) -> list[Answer]:
        """The model's answers, without those to the padding of distributed evaluation (index -1)."""
        started = time.perf_counter()
        answers = self._write(batch) if self.mode == "generate" else self._compare(batch)
        self._seconds += time.perf_counter() - started
        real = [answer for answer in answers if answer["index"] >= 0]
        self._processed += len(real)
        return real

    def _compare(self, batch: list[ChoiceItem]) -> list[Answer]:
        """The most likely option of each question."""
        scores = option_log_likelihoods(
            self.model, [item.prompt_ids for item in batch], [item.option_ids for item in batch]
        )
        answers = []
        for item, few in zip(batch, scores, strict=True):
            by_length = [score / length for score, length in zip(few, item.option_lengths, strict=True)]
            best, best_norm = _argmax(few), _argmax(by_length)
            answer = _answer(item, item.options[best])
            answer["log_likelihoods"] = [round(score, 4) for score in few]
            answer["predicted_norm"] = item.options[best_norm]
            answer["right"], answer["right_norm"] = best == item.answer, best_norm == item.answer
            answers.append(answer)
        return answers

    def _write(self, batch: list[ChoiceItem]) -> list[Answer]:
        """The first answer in the text that the model generates for each question."""
        beams = self.num_beams or (4 if self.preset == "llm_adapters" else 1)
        written = generate(
            self.model,
            [item.prompt_ids for item in batch],
            end_ids=self.backbone.end_ids,
            pad_id=self.backbone.pad_id,
            num_beams=beams,
            max_new_tokens=self.max_new_tokens,
            in_step=isinstance(self.trainer.strategy, ShardedBackboneStrategy),
        )
        answers = []
        for item, tokens in zip(batch, written, strict=True):
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            # LLM-Adapters reads what stands between the first and the second of these words.
            answer = _answer(item, parse_answer(item.task, text.split(RESPONSE)[0].strip()))
            answer["text"] = text
            answer["right"] = answer["predicted"] == answer["answer"]
            answers.append(answer)
        return answers

    def _start_counting(self) -> None:
        self.counts.reset()
        self._seconds, self._processed = 0.0, 0

    def _count(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.counts.update(
                answer["task"],
                {
                    "items": 1,
                    "right": answer["right"],
                    "right_norm": bool(answer["right_norm"]),
                    "unparsed": not answer["predicted"],
                },
            )

    def _log_counts(self, stage: str, verb: str) -> None:
        counts = self.counts.compute()
        if not counts:
            return
        names: dict[str, Counted] = {"accuracy": "right", "unparsed": "unparsed"}
        if self.mode == "likelihood":
            names = {"acc": "right", "acc_norm": "right_norm"} if self.preset == "cloze" else {"acc": "right"}
        found = accuracies(counts, names)
        for task, shares in found["tasks"].items():
            self.log_dict({f"{stage}/{name}/{task}": shares[name] for name in names})
        self.log_dict({f"{stage}/{name}": found["mean"][name] for name in names}, prog_bar=True)
        rate = self._processed * self.trainer.world_size / max(self._seconds, 1e-9)
        self._results[verb] = {"evaluation": self.mode, **found, "items_per_second": round(rate, 2)}


def _answer(item: ChoiceItem, predicted: str) -> Answer:
    return {
        "task": item.task,
        "index": item.index,
        "prompt": item.prompt,
        "options": item.options,
        "answer": item.options[item.answer],
        "predicted": predicted,
        "predicted_norm": None,
        "log_likelihoods": None,
        "option_lengths": item.option_lengths,
        "text": None,
        "right": False,
        "right_norm": None,
    }


def _argmax(numbers: list[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)
