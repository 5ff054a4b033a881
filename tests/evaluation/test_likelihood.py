from __future__ import annotations

import pytest
import torch

import replora
from replora.evaluation import option_log_likelihoods
from replora.evaluation.likelihood import _packs, _row_by_row
from tests.tiny_llama import VOCABULARY, tiny_llama

torch.set_num_threads(1)


def questions(count: int, seed: int = 0) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts and options of different lengths and numbers."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    prompts = [tokens(1, 30) for _ in range(count)]
    return prompts, [[tokens(1, 8) for _ in range(2 + i % 4)] for i in range(count)]


def one_by_one(model, prompts, options):
    """The definition: a pass for each option alone."""
    scores = []
    for prompt, few in zip(prompts, options, strict=True):
        scores.append([])
        for option in few:
            with torch.no_grad():
                log_p = model(torch.tensor([[*prompt, *option]])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(option) - 1)
            scores[-1].append(sum(log_p[place, token].item() for place, token in zip(places, option, strict=True)))
    return scores


@pytest.fixture
def adapted():
    model = replora.inject(tiny_llama(), replora.RepLoRAConfig(rank=2, hidden=8, targets=["q", "v", "up"]))
    with torch.no_grad():
        for parameter in model.replora.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def test_options_of_a_prompt_score_as_alone(adapted):
    prompts, options = questions(7)
    together = option_log_likelihoods(adapted, prompts, options)
    for found, expected in zip(together, one_by_one(adapted, prompts, options), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    spread = [max(few) - min(few) for few in together]
    assert min(spread) > 0.01  # the comparison is one of numbers that differ


def test_the_other_questions_of_a_batch_do_not_matter(adapted):
    prompts, options = questions(5)
    whole = option_log_likelihoods(adapted, prompts, options)
    alone = [option_log_likelihoods(adapted, [p], [few])[0] for p, few in zip(prompts, options, strict=True)]
    for found, expected in zip(whole, alone, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_model_without_position_ids_gets_a_row_for_each_option():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    model = BloomForCausalLM(config).eval()
    prompts, options = questions(4)
    found = option_log_likelihoods(model, prompts, options)
    for few, expected in zip(found, one_by_one(model, prompts, options), strict=True):
        assert few == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_both_ways_agree(adapted):
    prompts, options = questions(3, seed=1)
    with torch.inference_mode():
        rows = _row_by_row(adapted, prompts, options)
    for few, expected in zip(option_log_likelihoods(adapted, prompts, options), rows, strict=True):
        assert few == pytest.approx(expected, rel=1e-5, abs=1e-5)


_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
# Options may not share a row, for a reason of its own in each; prompt and option have up to 36 tokens.
_APART = {
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Qwen3Next": {"layer_types": ["linear_attention", "full_attention"], **_LINEAR, **_EXPERTS},
    "FalconH1": _MAMBA,
    "Mistral": {"sliding_window": 8},
    "Gemma3": {"sliding_window": 8, "head_dim": 8},
    "Falcon": {"alibi": True},
}


def tiny(family: str, **options):
    import transformers

    text = "Text" if family in ("Gemma3", "Llama4") else ""  # of models that see as well
    config = getattr(transformers, f"{family}{text}Config", None)
    if config is None:
        pytest.skip(f"this version of transformers has no {family}")
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config(**{**_TINY, **options})).eval()


@pytest.mark.parametrize("family", _APART)
def test_where_options_would_see_each_other_each_gets_a_row(family):
    model = tiny(family, **_APART[family])
    prompts, options = questions(4)
    found = option_log_likelihoods(model, prompts, options)
    for few, expected in zip(found, one_by_one(model, prompts, options), strict=True):
        assert few == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_window_matters_where_a_row_is_longer():
    model = tiny("Mistral", sliding_window=8)
    assert _packs(model, 8)
    assert not _packs(model, 9)
    assert _packs(tiny("Mistral", sliding_window=None), 1000)
    # A window that no layer uses.
    assert _packs(tiny("Qwen2", sliding_window=8, use_sliding_window=False), 1000)
    prompts, options = [[5, 6, 7, 8, 9]], [[[1, 2, 3], [4], [7, 7]]]
    found = option_log_likelihoods(model, prompts, options)  # 11 tokens in one row
    assert found[0] == pytest.approx(one_by_one(model, prompts, options)[0], rel=1e-5, abs=1e-5)


# The families of docs/commonsense.md: those that need nothing more, and the others with what they need.
_PLAIN = [
    *("Llama", "Llama4", "Mixtral", "Ministral3", "Qwen2", "Qwen2Moe", "Qwen3Moe", "Phi", "Olmo", "Olmo2", "Olmo3"),
    *("StableLm", "Cohere", "Granite", "SmolLM3", "Starcoder2", "Glm4", "Exaone4", "Nemotron", "BitNet", "MiniMax"),
]
_KNOWN = (
    {family: {} for family in _PLAIN}
    | _APART
    | {
        "Qwen3": {"head_dim": 8},
        "Gemma": {"head_dim": 8},
        "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "GPTJ": _GPTJ,
    }
)


@pytest.mark.parametrize("family", sorted(_KNOWN.keys() | {"Phi3", "GPTNeoX", "Falcon"}))
def test_families_with_query_and_value(family):
    model = tiny(family, **_KNOWN.get(family, {}))
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=8))
    prompts, options = questions(3)
    found = option_log_likelihoods(model.eval(), prompts, options)
    for few, expected in zip(found, one_by_one(model, prompts, options), strict=True):
        assert few == pytest.approx(expected, rel=1e-4, abs=1e-4)
