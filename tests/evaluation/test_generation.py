from __future__ import annotations

import pytest
import torch

import replora
from replora.evaluation import generate
from tests.tiny_llama import END, PAD, VOCABULARY, tiny_llama

torch.set_num_threads(1)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3 + 5 * i,), generator=generator).tolist() for i in range(count)]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_gives_what_each_prompt_gives_alone(beams):
    model = replora.inject(tiny_llama(), replora.RepLoRAConfig(rank=2, factors="none"))
    options = {"end_ids": [END], "pad_id": PAD, "num_beams": beams, "max_new_tokens": 12}
    together = generate(model, prompts(6), **options)
    assert together == [generate(model, [prompt], **options)[0] for prompt in prompts(6)]
    assert len({tuple(text) for text in together}) > 1


def test_greedy_is_the_likeliest_token_each_time():
    model, prompt = tiny_llama(), prompts(2)[1]
    (written,) = generate(model, [prompt], end_ids=[], pad_id=PAD, max_new_tokens=5)
    tokens = list(prompt)
    for token in written:
        with torch.no_grad():
            assert model(torch.tensor([tokens])).logits[0, -1].argmax().item() == token
        tokens.append(token)
    assert len(written) == 5


def test_ends_at_an_end_token():
    model, prompt = tiny_llama(), prompts(1)[0]
    (whole,) = generate(model, [prompt], end_ids=[], pad_id=PAD, max_new_tokens=8)
    (cut,) = generate(model, [prompt], end_ids=[whole[3]], pad_id=PAD, max_new_tokens=8)
    assert cut == whole[: whole.index(whole[3])]


def test_a_model_that_recommends_sampling_does_not_sample():
    model = tiny_llama()
    expected = generate(model, prompts(3), end_ids=[END], pad_id=PAD, num_beams=4, max_new_tokens=8)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=VOCABULARY)
    for seed in range(3):
        torch.manual_seed(seed)
        assert generate(model, prompts(3), end_ids=[END], pad_id=PAD, num_beams=4, max_new_tokens=8) == expected
