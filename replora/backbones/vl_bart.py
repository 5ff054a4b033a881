"""VL-BART: BART whose encoder reads a text and, behind it, the features of images or of a video.

The model of VL-Adapter (Sung et al. 2022, arXiv 2112.06825, github.com/ylsung/VL_adapter), which DoRA's multimodal rows
use as well. Text and features become one sequence of the encoder:

    text     x_i = LayerNorm(token_i + position_i)
    visual   v_j = LayerNorm(W f_j) + LayerNorm(P box_j) + image_order + e_(V-1-j)
    encoder  dropout([x_1 .. x_n ; v_1 .. v_m])

Visual tokens have neither positions nor the layer norm of the text. e_(V-1-j) is the row of the shared token table that
belongs to the added token `<vis_extra_id_j>`; j restarts at each image. Padding of the text is masked, visual tokens
never are, not even the zeros that fill up a short video.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replora.adapters.fingerprint import fingerprint
from replora.backbones.backbone import Backbone, BackboneError, file_sha256
from replora.backbones.bart_nano import BART_NANO, bart_nano_config, bart_nano_tokenizer
from replora.backbones.language import load_tokenizer, source_of
from replora.datasets.common.hub import check_hub

try:
    from transformers import BartConfig, BartForConditionalGeneration
    from transformers.masking_utils import create_bidirectional_mask
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.bart.modeling_bart import BartEncoder
except ImportError as error:
    raise BackboneError(f'VL-BART needs transformers 5 or newer ({error}): pip install "replora[vl]"') from error

BART_BASE = "facebook/bart-base"
# Its configuration on the hub, so that its shapes are known without a network.
BART_BASE_SHAPE: dict[str, Any] = {
    "vocab_size": 50265,
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "max_position_embeddings": 1024,
}

# In the order in which VL-T5 and VL-Adapter add them: the last row of the table is <vis_extra_id_0>.
ADDED_TOKENS = [f"<{kind}_{i}>" for kind in ("extra_id", "vis_extra_id") for i in reversed(range(100))]
MOST_VISUAL_TOKENS = 100  # of one image: as many rows as there are for their order
MOST_IMAGES = 2
VISUAL_EMBEDDING = "model.encoder.visual_embedding"


class VLBartConfig(BartConfig):  # type: ignore[misc]
    """BART's configuration and what the visual tokens need.

    `feature_size` is the width of the features; `pooled_side` s reduces a square grid to s x s tokens by adaptive
    max-pooling before anything else happens, 0 leaves features as they are.
    """

    model_type = "vl_bart"
    feature_size: int = 2048
    pooled_side: int = 0


class VisualEmbedding(nn.Module):
    """Features and boxes of images -> tokens as wide as BART's.

    Args:
        feature_size: Width of the features.
        width: Width of BART's hidden states.
    """

    def __init__(self, feature_size: int, width: int) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(feature_size, width), nn.LayerNorm(width))
        self.box = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width))
        self.image_order = nn.Embedding(MOST_IMAGES, width)

    def forward(self, features: Tensor, boxes: Tensor | None, order_rows: Tensor) -> Tensor:
        """Tokens (B, images * n, width), those of the second image behind those of the first.

        Args:
            features: (B, images, n, feature_size).
            boxes: (B, images, n, 4) as x1, x2, y1, y2 in [0, 1]; None is a box of zeros each, as features of a grid
                have in VL-Adapter, which makes the box's part a learned constant.
            order_rows: (n, width), what tells the n tokens of an image apart.
        """
        if boxes is None:
            boxes = features.new_zeros(*features.shape[:3], 4)
        x1, x2, y1, y2 = boxes.unbind(-1)
        area = (y2 - y1) * (x2 - x1)
        image = self.image_order.weight[: features.shape[1], None]  # (images, 1, width)
        tokens = self.feature(features) + self.box(torch.cat([boxes, area[..., None]], -1)) + image + order_rows
        return cast(Tensor, tokens.flatten(1, 2))


class VLBartEncoder(BartEncoder):  # type: ignore[misc]
    """BART's encoder on text and visual tokens."""

    def __init__(self, config: VLBartConfig) -> None:
        super().__init__(config)
        self.visual_embedding = VisualEmbedding(config.feature_size, config.d_model)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: Tensor | None = None,
        boxes: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Hidden states (B, T + visual tokens, width); without features those of BART's own encoder.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 at padding; by default what is not the padding token.
            features: (B, images, n, feature_size), one or two images a row.
            boxes: (B, images, n, 4) or None; cut to the tokens that pooling leaves, as VL-Adapter cuts them.
            kwargs: Further keyword arguments of the layers.
        """
        if attention_mask is None:
            attention_mask = (input_ids != self.padding_idx).long()
        hidden = self.layernorm_embedding(self.embed_tokens(input_ids) + self.embed_positions(input_ids))
        if features is not None:
            features = _pooled(features, self.config.pooled_side)
            images, n = features.shape[1:3]
            _check_image_count(images, n)
            boxes = None if boxes is None else boxes[:, :, :n]
            order_rows = self.embed_tokens.weight[-n:].flip(0)
            visual = self.visual_embedding(features, boxes, order_rows).to(hidden.dtype)
            hidden = torch.cat([hidden, visual], dim=1)
            attention_mask = cover(attention_mask, hidden)
        hidden = F.dropout(hidden, self.dropout, self.training)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden)


class VLBart(BartForConditionalGeneration):  # type: ignore[misc]
    """BART for text behind text and features; `generate` takes `encoder_outputs` or the same arguments."""

    config_class = VLBartConfig

    def __init__(self, config: VLBartConfig) -> None:
        super().__init__(config)
        self.model.encoder = VLBartEncoder(config)
        self.post_init()

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small input with which injection verifies that every target affects the output."""
        n = max(self.config.pooled_side, 2) ** 2
        features = torch.randn(1, 1, n, self.config.feature_size, generator=torch.Generator().manual_seed(0))
        ids = torch.tensor([[0, 4, 5, 6, 2]])
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids, "features": features}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        features: Tensor | None = None,
        boxes: Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """BART's own output; `logits` are (B, L, vocabulary).

        Args:
            input_ids: (B, T); not needed with `encoder_outputs`.
            attention_mask: (B, T) of the text; the visual tokens are attended to whatever it says.
            features: Visual features, as in the encoder.
            boxes: Boxes of the features, as in the encoder.
            encoder_outputs: What the encoder gave before, instead of the four above.
            kwargs: `decoder_input_ids` or `labels`, and what else BART takes.
        """
        if encoder_outputs is None:
            if attention_mask is None and input_ids is not None:
                attention_mask = (input_ids != self.config.pad_token_id).long()
            encoder_outputs = self.model.encoder(input_ids, attention_mask, features, boxes)
        if attention_mask is not None:
            attention_mask = cover(attention_mask, encoder_outputs[0])
        return super().forward(attention_mask=attention_mask, encoder_outputs=encoder_outputs, **kwargs)


def cover(attention_mask: Tensor, hidden: Tensor) -> Tensor:
    """The mask (B, T) of a text, lengthened by ones to that of its hidden states (B, T + visual tokens, width)."""
    return F.pad(attention_mask, (0, hidden.shape[1] - attention_mask.shape[1]), value=1)


def _check_image_count(images: int, n: int) -> None:
    if n > MOST_VISUAL_TOKENS:
        raise BackboneError(
            f"features: {n} visual tokens an image, but only {MOST_VISUAL_TOKENS} have rows for their order. Pool "
            "them: --model.pooled_side 10 or less."
        )
    if images > MOST_IMAGES:
        raise BackboneError(f"features: {images} images a text, but only {MOST_IMAGES} have rows for their order.")


def _pooled(features: Tensor, side: int) -> Tensor:
    """(B, images, h * h, D) -> (B, images, side * side, D), each image a square grid, row by row."""
    if side == 0:
        return features
    B, images, n, D = features.shape
    h = round(n**0.5)
    if h * h != n:
        raise BackboneError(
            f"pooled_side: {n} features an image are no square grid, so they cannot be pooled to {side} x {side}. "
            "Set --model.pooled_side 0."
        )
    grid = features.reshape(B * images, h, h, D).permute(0, 3, 1, 2)
    return F.adaptive_max_pool2d(grid, side).flatten(2).transpose(1, 2).reshape(B, images, side * side, D)


def build_vl_bart(
    name: str = BART_BASE,
    *,
    pretrained: bool = True,
    revision: str | None = None,
    feature_size: int = 2048,
    pooled_side: int = 6,
    dropout: float = 0.1,
    visual_embedding: bool = True,
) -> Backbone:
    """BART with a new visual embedding, and 200 new rows in its token table.

    The new rows stay frozen under every method but full fine-tuning, and they tell the visual tokens apart; so they are
    drawn from N(0, 0.02), as VL-Adapter's were, by a generator of its own: equal in every run.

    Args:
        name: `facebook/bart-base`, another BART of the hub, a folder as transformers saves it, or `bart_nano`, a small
            one of random weights for demonstrations.
        pretrained: Whether to load BART's weights; otherwise they are random. `bart_nano` has none.
        revision: Branch, tag or commit of the hub repository.
        feature_size: Width of the features: 2048 of CLIP RN101's grid, 512 of its ViT-B/32.
        pooled_side: Side of the pooled grid, as in `VLBartConfig`.
        dropout: Everywhere in BART: hidden states, attention, activations.
        visual_embedding: Whether the visual embedding trains as a head; otherwise its random weights are part of the
            backbone.

    Raises:
        BackboneError: There is no such model, or it is no BART.
    """
    from transformers import AutoConfig

    own = {
        "feature_size": feature_size,
        "pooled_side": pooled_side,
        "dropout": dropout,
        "attention_dropout": dropout,
        "activation_dropout": dropout,
    }
    weights, sha256 = "random", None
    if name == BART_NANO or (name == BART_BASE and not pretrained):
        shape = bart_nano_config() if name == BART_NANO else BART_BASE_SHAPE
        model = VLBart(VLBartConfig(**shape, **own))
    else:
        source = source_of(name)
        try:
            check_hub(source, revision)
            saved = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False).to_dict()
            if saved.get("model_type") != "bart":
                raise BackboneError(f"it is a {saved.get('model_type')!r}, not a 'bart'")
            kept = {key: value for key, value in saved.items() if key in _bart_options()}
            config = VLBartConfig(**(kept | own))
            if pretrained:
                model = _load(source, config, revision)
                weights = f"{name}@{revision}" if revision else name
                files = list(Path(source).glob("*.safetensors"))
                sha256 = file_sha256(files[0]) if len(files) == 1 else None
            else:
                model = VLBart(config)
        except Exception as error:  # the hub's client, safetensors and transformers raise their own errors
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise BackboneError(
                f"The BART {name!r} could not be loaded ({lines[0]}). It may be {BART_BASE}, a folder as transformers' "
                f"save_pretrained writes it, or {BART_NANO}; without a network a folder or {BART_NANO}."
            ) from error
    _add_rows(model)
    _set_generation(model)
    model.train()
    heads = (VISUAL_EMBEDDING,) if visual_embedding else ()
    return Backbone(model, name, heads, weights, sha256, fingerprint(model, heads))


def load_vl_tokenizer(name: str = BART_BASE, revision: str | None = None) -> Any:
    """BART's tokenizer with the 200 added tokens, padding on the right.

    Args:
        name: Folder or Hugging Face name of a BART, as in `build_vl_bart`.
        revision: Branch, tag or commit of the hub repository.

    Raises:
        BackboneError: There is no such tokenizer, or it cannot be had.
    """
    tokenizer = bart_nano_tokenizer() if name == BART_NANO else load_tokenizer(name, revision)
    tokenizer.padding_side = "right"
    tokenizer.add_tokens(ADDED_TOKENS, special_tokens=True)
    return tokenizer


def _load(source: str, config: VLBartConfig, revision: str | None) -> VLBart:
    """BART's weights in a VL-BART, whose visual embedding alone stays random."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # else it reports that the visual embedding is missing
    try:
        model, info = VLBart.from_pretrained(source, config=config, revision=revision, output_loading_info=True)
    finally:
        logging.set_verbosity(before)
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(VISUAL_EMBEDDING)):
        raise BackboneError(f"its files lack {len(missing)} of BART's weights, such as {missing[0]}")
    return cast(VLBart, model)


def _bart_options() -> set[str]:
    """What describes a BART, without what a configuration says of files and generation."""
    return {field.name for field in fields(BartConfig)} - {
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "transformers_version",
    }


def _add_rows(model: VLBart) -> None:
    """The rows of `ADDED_TOKENS` at the end of the shared table."""
    rows = model.config.vocab_size
    # transformers would draw them around the mean of the others by default.
    model.resize_token_embeddings(rows + len(ADDED_TOKENS), mean_resizing=False)
    table = model.model.shared.weight
    if not table.is_meta:
        drawn = torch.randn(len(ADDED_TOKENS), table.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            table[rows:] = model.config.init_std * drawn


def _set_generation(model: VLBart) -> None:
    """Nothing is taken over from a model's own options: `lightning_modules.vision_language` passes all of them."""
    from transformers import GenerationConfig

    c = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=c.bos_token_id,
        eos_token_id=c.eos_token_id,
        pad_token_id=c.pad_token_id,
        decoder_start_token_id=c.decoder_start_token_id,
    )
