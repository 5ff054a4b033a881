from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import replora
from replora.adapters.extra_trainable import train_parts
from replora.backbones.backbone import BackboneError
from replora.backbones.bart_nano import bart_nano_tokenizer, bart_nano_words
from replora.backbones.vl_bart import (
    ADDED_TOKENS,
    BART_NANO,
    VISUAL_EMBEDDING,
    VLBart,
    VLBartConfig,
    build_vl_bart,
    load_vl_tokenizer,
)
from replora.errors import RepLoRAError
from tests.tiny_bart import tiny_bart, write_tiny_bart

LORA = replora.RepLoRAConfig(rank=128, alpha=32, factors="none", targets=["q", "v"])
DORA = replora.PeftMethodConfig(method="dora", rank=128, targets=["q", "v"])
WIDTH, FEATURES = 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bart(tmp_path_factory.mktemp("tiny_bart"))


@pytest.fixture
def model(folder):
    torch.manual_seed(3)
    return build_vl_bart(str(folder), feature_size=FEATURES, pooled_side=0).model.eval()


def tokens(*rows):
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[1] * (length - len(row))] for row in rows])
    return ids, (ids != 1).long()


# --- the sizes of the paper's tables


@pytest.mark.parametrize(
    ("method", "feature_size", "parts", "trained", "all_parameters", "percent"),
    [
        pytest.param(LORA, 2048, ["biases"], 8_786_688, 148_234_752, 5.928, id="LoRA, images"),
        pytest.param(DORA, 2048, ["biases", "layer_norm_weights"], 8_838_912, 148_262_400, 5.962, id="DoRA, images"),
        pytest.param(LORA, 512, ["biases"], 7_607_040, 147_055_104, 5.173, id="LoRA, videos"),
        pytest.param(DORA, 512, ["biases"], 7_634_688, 147_082_752, 5.191, id="DoRA, videos"),
    ],
)
def test_parameters_that_vl_adapter_and_dora_published(method, feature_size, parts, trained, all_parameters, percent):
    with torch.device("meta"):
        built = build_vl_bart(pretrained=False, feature_size=feature_size)
        model = replora.inject(built.model, method, also_train=built.head_names)
    extra = train_parts(model, parts)
    counts = replora.parameter_counts(model)
    assert len(model.replora.targets) == 36  # q and v of six layers, and of six layers with two attentions each
    assert extra["biases"] == 125_952
    assert extra.get("layer_norm_weights", 24_576) == 24_576
    assert counts.adapter_trained == 7_077_888 + (27_648 if method is DORA else 0)
    assert counts.adapter_trained + counts.head == trained
    assert counts.backbone + counts.adapter_trained + counts.head == all_parameters
    assert round(100 * trained / all_parameters, 3) == percent
    assert sum(p.numel() for p in model.parameters()) == all_parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_the_visual_embedding_owns_no_table_of_tokens():
    with torch.device("meta"):
        model = build_vl_bart(pretrained=False).model
    assert sum(p.numel() for p in model.get_submodule(VISUAL_EMBEDDING).parameters()) == 1_582_848
    assert sum(p.numel() for p in model.parameters()) == 139_420_416 + 200 * 768 + 1_582_848


# --- the encoder, by hand


def by_hand(model, ids, mask, features, boxes=None):
    """The equations at the head of the module, token by token."""
    encoder = model.model.encoder
    vision = encoder.visual_embedding
    table = model.model.shared.weight
    positions = encoder.embed_positions.weight[2:]  # BART's table begins with two rows that are not used
    rows = []
    for b in range(len(ids)):
        text = [encoder.layernorm_embedding(table[token] + positions[i]) for i, token in enumerate(ids[b])]
        visual = []
        for image in range(features.shape[1]):
            for j in range(features.shape[2]):
                box = torch.zeros(5)
                if boxes is not None:
                    x1, x2, y1, y2 = boxes[b, image, j]
                    box = torch.stack([x1, x2, y1, y2, (x2 - x1) * (y2 - y1)])
                seen = vision.feature[1](vision.feature[0](features[b, image, j]))
                where = vision.box[1](vision.box[0](box))
                visual.append(seen + where + vision.image_order.weight[image] + table[len(table) - 1 - j])
        rows.append(torch.stack([*text, *visual]))
    hidden = torch.stack(rows)
    seen = torch.cat([mask, torch.ones(len(ids), features.shape[1] * features.shape[2])], 1).bool()
    for layer in encoder.layers:
        hidden = layer(hidden, torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None, None])
    return hidden


@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_text_and_images_by_hand(model, images):
    ids, mask = tokens([0, 10, 11, 12, 2], [0, 20, 2])
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, images, 4, FEATURES, generator=generator)
    boxes = torch.rand(2, images, 4, 4, generator=generator)
    encoder = model.model.encoder
    for given in (None, boxes):
        found = encoder(ids, mask, features, given)[0]
        assert found.shape == (2, 5 + images * 4, WIDTH)
        torch.testing.assert_close(found, by_hand(model, ids, mask, features, given), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_is_not_attended_to_and_zero_frames_are(model):
    ids, mask = tokens([0, 10, 11, 12, 2], [0, 20, 2])
    features = torch.randn(2, 1, 4, FEATURES, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[2, 0, 30], [2, 0, 31]])
    logits = model(ids, mask, features, decoder_input_ids=targets).logits
    alone = model(ids[1:, :3], mask[1:, :3], features[1:], decoder_input_ids=targets[1:]).logits
    torch.testing.assert_close(logits[1:], alone, rtol=1e-4, atol=1e-4)
    padded = torch.cat([features, torch.zeros(2, 1, 1, FEATURES)], 2)
    assert (model(ids, mask, padded, decoder_input_ids=targets).logits - logits).abs().max() > 1e-3


@torch.no_grad()
def test_without_features_it_is_bart(model):
    ids, mask = tokens([0, 10, 11, 12, 2], [0, 20, 2])
    targets = torch.tensor([[2, 0, 30], [2, 0, 31]])
    own = tiny_bart()
    expected = own(ids, mask, decoder_input_ids=targets).logits
    torch.testing.assert_close(
        model(ids, mask, decoder_input_ids=targets).logits[..., :260], expected, rtol=1e-4, atol=1e-4
    )
    hidden = own.model.encoder(ids, mask).last_hidden_state
    torch.testing.assert_close(model.model.encoder(ids, mask)[0], hidden, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_grid_is_pooled_first_of_all(model):
    features = torch.randn(1, 2, 49, FEATURES, generator=torch.Generator().manual_seed(0))
    ids, mask = tokens([0, 10, 2])
    expected = [
        F.adaptive_max_pool2d(image.reshape(7, 7, FEATURES).permute(2, 0, 1), (6, 6)).flatten(1).T
        for image in features[0]
    ]
    unpooled = model.model.encoder(ids, mask, torch.stack(expected)[None])[0]
    model.config.pooled_side = 6
    found = model.model.encoder(ids, mask, features)[0]
    assert found.shape[1] == 3 + 72
    torch.testing.assert_close(found, unpooled)
    # Cells 7/6 wide overlap: the first one covers the first two rows and columns.
    assert expected[0][0, 0] == features[0, 0, [0, 1, 7, 8], 0].max()
    with pytest.raises(BackboneError, match="no square grid"):
        model.model.encoder(ids, mask, features[:, :, :48])


@torch.no_grad()
def test_tokens_and_images_without_a_row_for_their_order_are_refused(model):
    ids, mask = tokens([0, 10, 2])
    assert model.model.encoder(ids, mask, torch.zeros(1, 2, 100, FEATURES))[0].shape[1] == 203
    with pytest.raises(BackboneError, match="121 visual tokens an image, but only 100"):
        model.model.encoder(ids, mask, torch.zeros(1, 1, 121, FEATURES))
    with pytest.raises(BackboneError, match="3 images a text, but only 2"):
        model.model.encoder(ids, mask, torch.zeros(1, 3, 4, FEATURES))
    model.config.pooled_side = 6
    assert model.model.encoder(ids, mask, torch.zeros(1, 1, 121, FEATURES))[0].shape[1] == 39, "pooled first"


@torch.no_grad()
def test_writing_sees_the_features(model):
    ids, mask = tokens([0, 10, 11, 12, 2], [0, 20, 2])
    features = 3 * torch.randn(2, 1, 4, FEATURES, generator=torch.Generator().manual_seed(0))
    options = {"num_beams": 3, "max_length": 8, "do_sample": False}
    written = model.generate(input_ids=ids, attention_mask=mask, features=features, **options)
    encoded = model.get_encoder()(ids, mask, features)
    cover = torch.cat([mask, torch.ones(2, 4, dtype=torch.long)], 1)
    from_encoded = model.generate(encoder_outputs=encoded, attention_mask=cover, **options)
    assert torch.equal(written, from_encoded)
    # Greedy search by hand: the likeliest next token of the whole forward pass, again and again.
    row = [2]
    for _ in range(4):
        logits = model(ids[1:], mask[1:], features[1:], decoder_input_ids=torch.tensor([row])).logits
        row.append(int(logits[0, -1].argmax()))
    encoded = model.get_encoder()(ids, mask, features)  # generate has repeated the one above for its beams
    greedy = model.generate(encoder_outputs=encoded, attention_mask=cover, max_length=5, num_beams=1, do_sample=False)
    assert greedy[1].tolist() == row[:5]


# --- building it


def test_added_tokens_and_rows(folder):
    built = build_vl_bart(str(folder), feature_size=FEATURES)
    tokenizer = load_vl_tokenizer(str(folder))
    model = built.model
    assert len(ADDED_TOKENS) == 200
    assert tokenizer.convert_tokens_to_ids(["<extra_id_99>", "<vis_extra_id_99>", "<vis_extra_id_0>"]) == [
        260,
        360,
        459,
    ]
    assert model.model.shared.weight.shape == (460, WIDTH)
    assert model.lm_head.weight is model.model.shared.weight
    assert model.model.encoder.embed_tokens.weight is model.model.shared.weight
    assert model.final_logits_bias.shape == (1, 460)
    new = model.model.shared.weight[260:]
    assert new.std().item() == pytest.approx(0.3, rel=0.05)  # the tiny one's init_std; not the mean of the others
    torch.manual_seed(99)
    again = build_vl_bart(str(folder), feature_size=FEATURES)
    assert torch.equal(again.model.model.shared.weight, model.model.shared.weight), "they do not depend on the seed"
    assert again.fingerprint == built.fingerprint
    assert (built.weights, built.head_names, len(built.sha256)) == (str(folder), (VISUAL_EMBEDDING,), 64)
    for config in (model.config.dropout, model.config.attention_dropout, model.config.activation_dropout):
        assert config == 0.1


def test_weights_of_the_folder_are_loaded(folder):
    state = build_vl_bart(str(folder), feature_size=FEATURES).model.state_dict()
    for name, tensor in tiny_bart().state_dict().items():
        assert torch.equal(state[name][: len(tensor)] if name != "final_logits_bias" else tensor, tensor), name


def test_what_is_no_bart_is_refused(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="'bert', not a 'bart'"):
        build_vl_bart(str(tmp_path))
    with pytest.raises(BackboneError, match="no folder"):
        build_vl_bart("./nowhere")


def test_bart_nano_knows_its_words():
    tokenizer = bart_nano_tokenizer()
    ids = tokenizer(" ".join(bart_nano_words()), add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer("vqa: what color is the circle ?").input_ids[0] == 0
    assert tokenizer.decode(tokenizer("a red circle").input_ids, skip_special_tokens=True) == "a red circle"
    built = build_vl_bart(BART_NANO, feature_size=4, pooled_side=0)
    assert len(load_vl_tokenizer(BART_NANO)) == built.model.config.vocab_size
    assert built.weights == "random"


# --- what trains beside the adapter


def small():
    torch.manual_seed(0)
    config = VLBartConfig(**{**tiny_bart().config.to_diff_dict(), "feature_size": FEATURES, "pooled_side": 0})
    return VLBart(config)


@pytest.mark.parametrize("method", [replora.RepLoRAConfig(rank=2, hidden=4), replora.PeftMethodConfig(rank=2)])
def test_parts_train_and_are_saved(tmp_path, method):
    model = replora.inject(small(), method, also_train=[VISUAL_EMBEDDING])
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    counts = train_parts(model, ["biases", "layer_norm_weights"])
    added = {name for name, p in model.named_parameters() if p.requires_grad} - before
    assert added
    assert all(name.endswith("bias") or "norm" in name for name in added)
    assert not any(name.startswith("replora.") or "visual_embedding" in name for name in added)
    assert sum(counts.values()) == sum(model.get_parameter(name).numel() for name in added)
    assert train_parts(model, ["biases"]) == {"biases": 0}, "nothing counts twice"
    with torch.no_grad():
        for name in added:
            model.get_parameter(name).add_(1)
    replora.save_adapter(model, tmp_path / "a.safetensors")
    other = replora.inject(small(), method, also_train=[VISUAL_EMBEDDING])
    train_parts(other, ["biases", "layer_norm_weights"])
    replora.load_adapter(other, tmp_path / "a.safetensors")
    for name in added:
        assert torch.equal(other.get_parameter(name), model.get_parameter(name))


def test_full_fine_tuning_has_no_further_parts():
    model = replora.inject(small(), replora.FullConfig(), also_train=[VISUAL_EMBEDDING])
    assert train_parts(model, ["biases", "layer_norm_weights"]) == {"biases": 0, "layer_norm_weights": 0}
    with pytest.raises(RepLoRAError, match="Did you mean 'biases'"):
        train_parts(model, ["bias"])


def test_merged_is_unmerged():
    torch.manual_seed(0)
    model = replora.inject(small(), replora.RepLoRAConfig(rank=2, factors="none"), also_train=[VISUAL_EMBEDDING]).eval()
    assert model.replora.targets_verified, "with an example of text and features"
    with torch.no_grad():
        for parameter in model.replora.banks.parameters():
            parameter.normal_()
        unmerged = model(**model.dummy_inputs).logits
        with replora.merged(model):
            torch.testing.assert_close(model(**model.dummy_inputs).logits, unmerged, rtol=1e-3, atol=1e-3)
