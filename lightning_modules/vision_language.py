"""Question answering about images and videos, and captioning, with an adapted VL-BART."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

import replora
from lightning_modules.base import AdaptedModule
from lightning_modules.callbacks.submission_writer import SubmissionWriter
from lightning_modules.schedule import WarmupLinear
from replora import AdapterConfig, LinearProbeConfig, RepLoRAConfig
from replora.adapters.container import adapters_of
from replora.adapters.extra_trainable import BACKBONE_PARTS, DEFAULT_PARTS, PARTS, Part, train_parts
from replora.backbones.backbone import Backbone
from replora.backbones.vl_answers import answer, generation_options
from replora.datasets.samples import NO_LOSS
from replora.datasets.vision_language.tasks import VL_TASKS, VLBatch, vl_task
from replora.errors import RepLoRAError, nearest
from replora.former_names import FORMER_NAMES
from replora.metrics import score_answers
from replora.metrics.caption_tokenizer import TokenizerName
from replora.metrics.caption_tokenizer import caption_tokenizer as caption_tokenizer_of
from replora.metrics.weighted_mean import WeightedMean

if TYPE_CHECKING:
    from datamodules import VisionLanguageDataModule

DEFAULT_ADAPTER = RepLoRAConfig(rank=128, alpha=32, dropout=0.1, targets=("q", "v"))
DEFAULT_SCHEDULE = WarmupLinear(warmup_fraction=0.1)


class VisionLanguage(AdaptedModule):
    """VL-BART with an adapter, trained on several tasks together in batches of one task each.

    Batches are `VLBatch`es of `replora.datasets.vision_language.tasks`. The loss is the cross-entropy of the answer's
    tokens: averaged over each sample's tokens, times the sample's weight, averaged over the samples; for COCO captions
    the mean of all tokens. The averages are those of the batch of all processes together, so that two processes with
    half the batch size train as one does. Logged are its mean over an epoch, `train/loss`, and that of each task,
    `train/loss/coco`.

    Answers are written as VL-Adapter's: at most 20 tokens, greedily for VQA and GQA, by five beams for captions and
    videos, no trigram twice. For NLVR2 the more likely of `true` and `false` is taken. Logged for each task are its
    metrics (`val/accuracy/vqa`, `val/cider/coco`, ...; `replora.metrics.score_answers`), and as `val/score` the plain
    mean of each task's published metric. Accuracies are in [0, 1], and CIDEr is a hundredth of what tables show.

    Args:
        backbone: `facebook/bart-base`, a folder that transformers saved it to, or `bart_nano`, a small one of random
            weights. The data's tokenizer is the one of this name.
        pretrained: Whether to load BART's weights; otherwise they are random. `bart_nano` has none.
        revision: Branch, tag or commit of the hub repository.
        feature_size: Width of the data's features: 2048 for the grid of CLIP RN101, 512 for CLIP ViT-B/32.
        pooled_side: Side, in tokens, to which the square grid of each image is pooled (0 to 10); 0 does not pool.
        dropout: Dropout probability throughout BART, in [0, 1).
        adapter: Adaptation method.
        also_train: What trains beside the adapter and is counted apart from it: `visual_embedding`, which is new, and
            BART's `biases` and `layer_norm_weights`. A linear probe allows the first alone.
        optimizer: Optimizer. As in VL-Adapter, weight decay spares only biases (and RepLoRA's diagonals).
        schedule: Learning-rate schedule.
        caption_tokenizer: Tokenizer of captions before they are scored: `ptb_java` as in published scores,
            `approximate` without Java, or `auto` for the first that this machine can run. The results name it.
        num_beams: Number of beams (>= 1) for every generated answer. Default: those of VL-Adapter.

    Raises:
        RepLoRAError: An option is out of its range, or the backbone or its weights are not available.
    """

    def __init__(
        self,
        backbone: str = "facebook/bart-base",
        pretrained: bool = True,
        revision: str | None = None,
        feature_size: int = 2048,
        pooled_side: int = 6,
        dropout: float = 0.1,
        adapter: AdapterConfig = DEFAULT_ADAPTER,
        also_train: Sequence[Part] = DEFAULT_PARTS,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, eps=1e-6),
        schedule: WarmupLinear = DEFAULT_SCHEDULE,
        caption_tokenizer: TokenizerName = "auto",
        num_beams: int | None = None,
    ) -> None:
        # Here, as transformers takes seconds to import.
        from replora.backbones.vl_bart import build_vl_bart, load_vl_tokenizer

        _check(feature_size, pooled_side, dropout, also_train, num_beams)
        if isinstance(adapter, LinearProbeConfig) and (more := [part for part in also_train if part in BACKBONE_PARTS]):
            raise RepLoRAError(
                f"also_train: {', '.join(more)} of the backbone would train, but a linear probe trains the head alone. "
                'Set --model.also_train "[visual_embedding]", or choose --config adapter/bitfit.yaml.'
            )
        built = build_vl_bart(
            backbone,
            pretrained=pretrained,
            revision=revision,
            feature_size=feature_size,
            pooled_side=pooled_side,
            dropout=dropout,
            visual_embedding="visual_embedding" in also_train,
        )
        if not built.head_names:
            rank_zero_warn("also_train: without visual_embedding the features pass through random weights that stay.")
        super().__init__(built, adapter, optimizer, schedule)
        heads = replora.parameter_counts(self.model).head
        self.extra_counts = {"visual_embedding": heads, **train_parts(self.model, also_train)}
        self.parameter_count = sum(parameter.numel() for parameter in self.model.parameters())
        self.feature_size = feature_size
        self.num_beams = num_beams
        self.caption_tokenizer = caption_tokenizer_of(caption_tokenizer)
        self.tokenizer = load_vl_tokenizer(backbone, revision)
        self.train_loss = WeightedMean()
        self.task_losses = nn.ModuleDict({name: WeightedMean() for name in VL_TASKS})
        self.answers: dict[str, dict[int, str]] = {}  # task -> index of the record -> last answer
        self._results: dict[str, dict[str, Any]] = {}

    @classmethod
    def build_backbone(
        cls,
        options: dict[str, Any],
        data: dict[str, Any],  # noqa: ARG003
        checkpoint: Path | None,
    ) -> Backbone:
        """As of `AdaptedModule`, with the adapter injected: its file holds parts of BART beside adapter and head."""
        from replora.backbones.vl_bart import build_vl_bart  # transformers takes seconds to import

        parts = options.get("also_train", DEFAULT_PARTS)
        taken = ("revision", "pretrained", "feature_size", "pooled_side", "dropout")
        built = build_vl_bart(
            str(checkpoint or options["backbone"]),
            visual_embedding="visual_embedding" in parts,
            **{name: options[name] for name in taken if name in options},
        )
        replora.inject(built.model, _adapter_of(options["adapter"]), also_train=built.head_names)
        train_parts(built.model, parts)
        return built

    def writers(self, verb: str, run_dir: Path) -> list[Callback]:  # noqa: ARG002
        return [SubmissionWriter(run_dir)]

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        counts = described["parameters"]
        return described | {
            "extra_parameters": self.extra_counts,
            # Of all parameters, the added ones included, as the published tables count.
            "trained_percent": round(100 * (counts["adapter_trained"] + counts["head"]) / self.parameter_count, 3),
        }

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"pooled_side": self._config.pooled_side}

    def measured(self, verb: str) -> dict[str, Any]:
        return self._results.get(verb, {})

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def datamodule(self) -> VisionLanguageDataModule:
        return cast("VisionLanguageDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.datamodule
        if data.feature_size != self.feature_size:
            raise RepLoRAError(
                f"feature_size: the data's features have the width {data.feature_size}, but the model was built for "
                f"{self.feature_size}. Give both the same (--model.feature_size, --data.feature_size)."
            )
        if data.tokenizer_name != self.backbone.name:
            rank_zero_warn(
                f"The data are tokenized as for {data.tokenizer_name!r}, but the backbone is {self.backbone.name!r}."
            )

    # --- training

    def forward(self, batch: VLBatch) -> Tensor:
        """Logits (B, L, vocabulary) of the answer's tokens, each from those before it."""
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            features=batch["features"],
            decoder_input_ids=self._shifted(batch["labels"]),
            use_cache=False,
        )
        return cast(Tensor, output.logits)

    def training_step(self, batch: VLBatch, batch_idx: int) -> Tensor:
        loss, weight = self._loss(batch)
        self.check_finite(loss, batch_idx)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        task_loss = cast(WeightedMean, self.task_losses[batch["task"]])
        for mean in (self.train_loss, task_loss):
            mean.update(loss.detach(), weight)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=1)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=1)
        self.log(f"train/loss/{batch['task']}", task_loss, on_step=False, on_epoch=True, batch_size=1)
        self.log("train/learning_rate", rate, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        not_decayed = {id(p) for bank in adapters_of(self.model).factor_banks() for p in bank.no_weight_decay()}
        groups: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[id(parameter) in not_decayed or "bias" in name].append(parameter)
        decayed, rest = groups
        both: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
        return [group for group in both if group["params"]]

    def _loss(self, batch: VLBatch) -> tuple[Tensor, Tensor]:
        """The loss of this process, whose mean over processes is that of the global batch, and its weight in a mean
        over batches: the size of the global batch divided by the number of processes."""
        labels = batch["labels"]
        logits = self(batch)
        by_token = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=NO_LOSS, reduction="none"
        ).view_as(labels)
        tokens = (labels != NO_LOSS).sum(1)  # (B,)
        if vl_task(batch["task"]).mean_over == "tokens":
            total, count = by_token.sum(), tokens.sum()
        else:
            by_sample = by_token.sum(1) / tokens.clamp(min=1)
            total, count = (by_sample * batch["weight"]).sum(), (batch["index"] >= 0).sum()
        world = self.trainer.world_size
        everywhere = count.float()
        if world > 1:
            torch.distributed.all_reduce(everywhere)
        return total * world / everywhere.clamp(min=1), everywhere / world

    def _shifted(self, labels: Tensor) -> Tensor:
        """The decoder's input: the start token, then the labels without the last."""
        config = self._config
        start = labels.new_full((len(labels), 1), config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1]], 1).masked_fill_(
            F.pad(labels[:, :-1] == NO_LOSS, (1, 0)), config.pad_token_id
        )

    # --- evaluation

    def on_validation_epoch_start(self) -> None:
        self.answers = {}
        self.trainer.validate_loop.verbose = False  # Lightning's table repeats all metrics for each task's loader

    def on_test_epoch_start(self) -> None:
        self.answers = {}
        self.trainer.test_loop.verbose = False

    def on_predict_epoch_start(self) -> None:
        self.answers = {}

    def validation_step(self, batch: VLBatch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        self._keep(batch)

    def test_step(self, batch: VLBatch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        self._keep(batch)

    def predict_step(self, batch: VLBatch, batch_idx: int, dataloader_idx: int = 0) -> list[str]:  # noqa: ARG002
        return self._keep(batch)

    def on_validation_epoch_end(self) -> None:
        self._gather()
        if not self.trainer.sanity_checking:
            self._score("val", "validate")

    def on_test_epoch_end(self) -> None:
        self._gather()
        self._score("test", "test")

    def on_predict_epoch_end(self) -> None:
        self._gather()

    def _keep(self, batch: VLBatch) -> list[str]:
        """Answer a batch and store the answers by record, without padding."""
        texts = answer(self.model, self.tokenizer, batch, self.num_beams)
        said = self.answers.setdefault(batch["task"], {})
        said |= {i: text for i, text in zip(batch["index"].tolist(), texts, strict=True) if i >= 0}
        return texts

    def _gather(self) -> None:
        """Gather all answers in every process, so that all compute the same scores."""
        if self.trainer.world_size == 1:
            return
        everywhere: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(everywhere, self.answers)
        self.answers = {}
        for part in everywhere:
            for task, said in part.items():
                self.answers.setdefault(task, {}).update(said)

    def _score(self, stage: str, verb: str) -> None:
        split = self.datamodule.split_of(verb)
        published: list[float] = []
        counts: dict[str, int] = {}
        lines: list[str] = []
        for name, part in self.datamodule.parts(split).items():
            task, said = vl_task(name), self.answers.get(name, {})
            scores = score_answers(task, part.records, said, self.caption_tokenizer)
            if scores:
                logged = {f"{stage}/{metric}/{name}": value for metric, value in scores.items()}
                self.log_dict(logged, sync_dist=True)  # equal on all processes, which Lightning cannot know
                published.append(scores[task.metric])
                counts[name] = len(said)
                lines.append(f"{name} {', '.join(f'{metric} {value:.4f}' for metric, value in scores.items())}")
        if published:
            rank_zero_info(f"{split}: {'; '.join(lines)}; score {sum(published) / len(published):.4f}")
            self.log(f"{stage}/score", sum(published) / len(published), prog_bar=True, sync_dist=True)
        found: dict[str, Any] = {"split": split, "answers": counts}
        if any(vl_task(name).kind == "caption" for name in counts):
            found["caption_tokenizer"] = self.caption_tokenizer.name
        found["generation"] = {
            name: generation_options(self._config, vl_task(name), self.num_beams)
            for name in counts
            if vl_task(name).kind != "nlvr2"
        }
        self._results[verb] = found
        if stage == "val":  # what a fit saw last
            self._results["fit"] = found


def _adapter_of(options: dict[str, Any]) -> AdapterConfig:
    """{class_path, init_args} -> a configuration of this package: the file of a run cannot make other code run."""
    given = options["class_path"].rpartition(".")[2]
    name = FORMER_NAMES.get(given, given)
    cls = getattr(replora, name) if name in replora.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, AdapterConfig)):
        known = [key for key in replora.__all__ if key.endswith("Config")]
        raise RepLoRAError(f"The run's method {options['class_path']!r} is not known. {nearest(name, known)}")
    config: AdapterConfig = cls(**(options.get("init_args") or {}))
    return config


def _check(
    feature_size: int, pooled_side: int, dropout: float, also_train: Sequence[str], num_beams: int | None
) -> None:
    for option, value, least in (("feature_size", feature_size, 1), ("pooled_side", pooled_side, 0)):
        if value < least:
            raise RepLoRAError(f"{option}: {value} is out of range. It must be at least {least}.")
    if pooled_side > 10:
        raise RepLoRAError(f"pooled_side: {pooled_side} is out of range. It must be at most 10: 100 tokens an image.")
    if not 0 <= dropout < 1:
        raise RepLoRAError(f"dropout: {dropout} is out of range. It must be a probability in [0, 1).")
    if num_beams is not None and num_beams < 1:
        raise RepLoRAError(f"num_beams: {num_beams} is out of range. It must be at least 1.")
    for part in also_train:
        if part not in PARTS:
            raise RepLoRAError(f"also_train: {part!r} is not known. {nearest(part, PARTS)}")
