from __future__ import annotations

import pytest
import torch

import replora
from replora.evaluation import option_log_likelihoods
from replora.evaluation.likelihood import _row_by_row
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
