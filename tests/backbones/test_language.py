from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import replora
from replora.backbones.backbone import BackboneError
from replora.backbones.language import LLAMA_SHAPES, as_backbone, build_language_backbone, load_tokenizer, source_of
from replora.config_files import packaged_configs
from tests.tiny_llama import END, PAD, tiny_llama, write_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


def test_a_local_folder(folder):
    built = build_language_backbone(str(folder))
    state = tiny_llama().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.model.state_dict().items())
    assert (built.weights, built.dtype, built.head_names) == (str(folder), "float32", ())
    assert (built.end_ids, built.pad_id) == ((END,), PAD)
    assert len(built.sha256) == 64
    assert built.model.config._attn_implementation == "sdpa"
    assert built.model.training  # dropout of the adapter and gradient checkpointing depend on it


def test_random_weights_of_the_folders_shape(folder):
    torch.manual_seed(1)
    built = build_language_backbone(str(folder), pretrained=False, dtype="bf16")
    assert (built.weights, built.sha256, built.dtype) == ("random", None, "bfloat16")
    assert built.fingerprint != build_language_backbone(str(folder), dtype="bf16").fingerprint


@pytest.mark.parametrize(("dtype", "expected"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_dtype_of_the_frozen_weights(folder, dtype, expected):
    model = build_language_backbone(str(folder), dtype=dtype).model
    assert {p.dtype for p in model.parameters()} == {expected}
    replora.inject(model, replora.RepLoRAConfig(rank=2))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_output_layer_gets_one_block_of_memory(folder):
    """Else PyTorch copies the frozen vocabulary for every row of a batch: ten times slower for SmolLM2."""
    model = build_language_backbone(str(folder)).model
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(torch.zeros(3, 8, dtype=torch.long), logits_to_keep=4)
    assert seen[0].shape == (3, 4, 32)
    assert seen[0].is_contiguous()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="pip install bitsandbytes")
def test_a_backbone_in_8_bits_trains_and_cannot_be_merged(tmp_path):
    write_tiny_llama(tmp_path, hidden_size=64, intermediate_size=128)
    model = build_language_backbone(str(tmp_path), quantization="8bit", dtype="fp32").model
    replora.inject(model, replora.RepLoRAConfig(rank=2))
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.int8, torch.float32}
    model(torch.arange(6)[None]).logits.square().mean().backward()
    assert all(bank.mlp_B.V[0].grad.any() for bank in model.replora.banks)
    with pytest.raises(replora.RepLoRAError, match=r"quantized \(torch\.int8\)"):
        replora.merge(model)


def test_sampling_options_of_a_model_are_put_away():
    model = tiny_llama()
    model.generation_config.update(do_sample=True, temperature=0.6, eos_token_id=[3, 7], pad_token_id=None)
    model.config.pad_token_id = -1  # as in LLaMA's first configurations
    built = as_backbone(model, "mine")
    options = built.model.generation_config
    assert (built.end_ids, built.pad_id) == ((3, 7), 3)
    assert (options.do_sample, options.temperature, options.eos_token_id) in [
        (False, None, [3, 7]),
        (False, 1.0, [3, 7]),
    ]


def test_tokenizer_of_a_folder(folder):
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer("Grüße")["input_ids"]) == "Grüße"
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", PAD)


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    write_tiny_llama(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    options = json.loads(file.read_text())
    options.pop("pad_token")
    file.write_text(json.dumps(options))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END


def test_what_cannot_be_had(folder, tmp_path):
    with pytest.raises(BackboneError, match="there is no folder '/nowhere/llama'"):
        build_language_backbone("/nowhere/llama")
    with pytest.raises(BackboneError, match=r"holds no config\.json"):
        source_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(BackboneError, match=r"could not be loaded .* hub id of a causal language model"):
        build_language_backbone(str(tmp_path))
    with pytest.raises(BackboneError, match=r"The tokenizer of .* could not be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(BackboneError, match="dtype: 'bf17' is not known"):
        build_language_backbone(str(folder), dtype="bf17")


def test_quantization_says_what_it_needs(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(BackboneError, match=r"quantization: 4bit needs bitsandbytes .*pip install bitsandbytes"):
        build_language_backbone(str(folder), quantization="4bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackboneError, match="4bit trains on a GPU alone"):
        build_language_backbone(str(folder), quantization="4bit")
    with pytest.raises(BackboneError, match="random ones do not load"):
        build_language_backbone(str(folder), pretrained=False, quantization="8bit")


# Deployed parameters of the packaged recipes: LoRA of rank 32 on q, k, v, up and down has the numbers of LLM-Adapters'
# runs, and RepLoRA deploys the same; DoRA has a magnitude for each output row besides, and 89,190,400 is its 13B's.
# The backbones' own 6,738,415,616 and 13,015,864,320 are those of the released models.
@pytest.mark.parametrize(
    ("shape", "configs", "adapter"),
    [
        ("7b", ["commonsense.yaml"], 56_098_816),
        ("7b", ["commonsense.yaml", "recipe/commonsense_lora.yaml"], 56_098_816),
        ("13b", ["commonsense_13b.yaml"], 87_818_240),
        ("13b", ["commonsense_13b.yaml", "recipe/commonsense_lora.yaml"], 87_818_240),
    ],
)
def test_parameters_of_the_papers_llamas(shape, configs, adapter):
    config = packaged_adapter(configs)
    model = llama_without_memory(shape, config)
    counts = replora.parameter_counts(model)
    assert (counts.backbone, counts.adapter_deployed) == (BACKBONES[shape], adapter)
    assert (counts.adapter_trained == adapter) == (config.factors == "none")
    # Sharing groups: q, k and v of an attention module, up and down of an MLP.
    groups = {(bank.groups, len(bank.shapes)) for bank in model.replora.banks}
    layers = LLAMA_SHAPES[shape]["num_hidden_layers"]
    assert groups == {(layers, 3), (layers, 2)}


@pytest.mark.parametrize(
    ("shape", "rank", "adapter"), [("7b", 32, 56_975_360), ("7b", 16, 28_925_952), ("13b", 32, 89_190_400)]
)
def test_parameters_of_dora(shape, rank, adapter):
    """By the arithmetic of its rows: rank 32, and the half of it, called dagger in its tables."""
    config = replace(packaged_adapter(["commonsense.yaml", "recipe/commonsense_dora.yaml"]), rank=rank)
    assert replora.parameter_counts(llama_without_memory(shape, config)).adapter_trained == adapter


BACKBONES = {"7b": 6_738_415_616, "13b": 13_015_864_320}


def packaged_adapter(configs):
    """The method of packaged configurations, the last one winning."""
    contents = [yaml.safe_load(packaged_configs()[name].read_text(encoding="utf-8")) for name in configs]
    adapter = contents[-1]["model"]["init_args"]["adapter"]
    return getattr(replora, adapter["class_path"].rpartition(".")[2])(**adapter["init_args"])


def llama_without_memory(shape, config):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_SHAPES[shape]))
        return replora.inject(model, config)


# --- folders that are not what they seem

SMALL = {
    **dict.fromkeys(["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "n_heads", "n_head"], 2),
    **dict(hidden_size=32, intermediate_size=48, vocab_size=60, max_position_embeddings=64),  # noqa: C408
}
HEADS = {"qwen3": {"head_dim": 16}, "gemma": {"head_dim": 16}}
CAUSAL = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt_neox", "opt", "olmo2", "stablelm"]
ENCODERS = ["bert", "roberta", "electra", "camembert", "xlm-roberta", "rembert", "roformer", "megatron-bert"]


def written(folder, kind):
    config = AutoConfig.for_model(kind, **SMALL | HEADS.get(kind, {}), pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", [*CAUSAL, "gpt2", "bloom", "falcon", "mpt", "mamba"])
def test_causal_families_pass(kind, tmp_path):
    assert build_language_backbone(written(tmp_path, kind)).fingerprint


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_no_causal_language_model(kind, pretrained, tmp_path):
    with pytest.raises(BackboneError, match="is no causal language model"):
        build_language_backbone(written(tmp_path, kind), pretrained=pretrained)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("lost", ["first", "last", "base"])
def test_weights_that_are_missing_are_named(kind, lost, tmp_path):
    written(tmp_path, kind)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    if lost == "base":  # as saved from LlamaModel, whose names lack the first part and which has no output layer
        AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
        if AutoConfig.from_pretrained(tmp_path).tie_word_embeddings:
            assert build_language_backbone(str(tmp_path)).fingerprint
            return
    else:
        matrices = sorted(name for name in state if "layers" in name and name.endswith("weight"))
        del state[matrices[0 if lost == "first" else -1]]
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"its files lack [12] of the weights of"):
        build_language_backbone(str(tmp_path))


def test_weights_that_give_no_numbers_are_refused(tmp_path):
    written(tmp_path, CAUSAL[0])
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state[min(name for name in state if "layers" in name)].fill_(float("nan"))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="logits that are not numbers"):
        build_language_backbone(str(tmp_path))


def test_special_tokens_that_a_folder_leaves_empty(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    options = json.loads(file.read_text())
    whole = load_tokenizer(str(folder))
    file.write_text(json.dumps(options | {"bos_token": "", "eos_token": "", "unk_token": "", "pad_token": ""}))
    empty = load_tokenizer(str(tmp_path))
    assert (empty.bos_token_id, empty.eos_token_id, empty.unk_token_id) == (
        whole.bos_token_id,
        whole.eos_token_id,
        whole.unk_token_id,
    )
    assert empty.pad_token_id == empty.eos_token_id
    file.write_text(json.dumps({k: v for k, v in options.items() if k not in ("eos_token", "pad_token")}))
    with pytest.raises(BackboneError, match="neither a padding nor an end token"):
        load_tokenizer(str(tmp_path))
