from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import replora
from lightning_modules import AnswerWriter, ResultsWriter, causal_language_model
from replora.datasets.text.prompts import collate
from replora.errors import RepLoRAError
from replora.evaluation import wilson_interval
from replora.results import read_results
from tests.lightning_modules.helpers import StopBefore, StopError, trainer
from tests.lightning_modules.tiny_texts import TASKS, TinyTexts, language_module
from tests.tiny_llama import byte_tokenizer, write_tiny_llama

# High rank and rate, so that a few steps teach the tiny model all questions.
STRONG = {
    "adapter": replora.RepLoRAConfig(rank=16, factors="none", targets=["q", "k", "v", "up", "down"]),
    "optimizer": lambda params: torch.optim.AdamW(params, lr=0.02),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture
def batch(folder):
    data = TinyTexts(str(folder))
    return data.collate(data.items)


def test_loss_is_the_mean_over_labeled_tokens(folder, batch):
    module = language_module(folder).eval()
    loss, count = module._loss(batch)
    terms = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        real = ids[mask.bool()]
        with torch.no_grad():
            log_p = module.model(real[None]).logits[0].log_softmax(-1)
        for place in range(1, len(real)):
            if labels[mask.bool()][place] != -100:
                terms.append(-log_p[place - 1, real[place]].item())
    assert count.item() == len(terms) == 2 * (1 + 2 + 2 + 4)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_loss_on_every_token(folder, batch):
    """As under `llm_adapters`: the labels are the tokens."""
    module = language_module(folder).eval()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss, count = module._loss({**batch, "labels": labels})
    logits = module(batch["input_ids"], batch["attention_mask"])
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert count.item() == (labels[:, 1:] != -100).sum().item()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_first_token_is_predicted_from_padding_or_not_at_all(folder):
    """Under `llm_adapters`, as the collator of transformers and its models have it."""
    module = language_module(folder).eval()
    batch = collate([(0, [5, 6, 7], 0), (1, [8, 9], 0)], 258)  # the second row has one column of padding
    loss, count = module._loss(batch)
    assert count.item() == 2 + 2
    theirs = module.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-3)


def test_dropout_of_the_adapter_acts_in_training(folder, batch):
    adapter = replora.RepLoRAConfig(rank=4, factors="none", dropout=0.5, init="normal002")
    module = language_module(folder, adapter=adapter)
    assert module._loss(batch)[0] != module._loss(batch)[0]
    module.eval()
    assert module._loss(batch)[0] == module._loss(batch)[0]


def test_a_batch_without_labels_costs_nothing_and_moves_nothing(folder, batch):
    module = language_module(folder)
    loss, count = module._loss({**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert (loss.item(), count.item()) == (0, 0)
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_a_batch_of_padding_alone_costs_nothing_and_reaches_every_parameter(folder):
    """One token a row: the last batch of a process that has no text left."""
    module = language_module(folder)
    loss, count = module._loss(collate([(-1, [2], 1)], 2, 1))
    assert (loss.item(), count.item()) == (0, 0)
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_it_learns_and_its_results_say_how_well(folder, tmp_path):
    module, data = language_module(folder, **STRONG), TinyTexts(str(folder), padding=3)
    callbacks = (ResultsWriter(tmp_path), AnswerWriter(tmp_path))
    before = trainer(tmp_path / "before").test(module, data, verbose=False)[0]
    fit = trainer(tmp_path / "fit", 30, callbacks, check_val_every_n_epoch=30)
    fit.fit(module, data)
    after = fit.test(module, data, verbose=False)[0]
    assert before["test/acc"] < 0.8
    assert after["test/acc"] == after["test/acc/boolq"] == after["test/acc/ARC-Easy"] == 1
    content = read_results(tmp_path)
    test = content["test"]
    assert test["evaluation"] == "likelihood"
    low, high = wilson_interval(4, 4)
    expected = {"items": 4, "acc": 1.0, "acc_interval": [round(low, 6), round(high, 6)]}
    assert {key: test["tasks"]["boolq"][key] for key in expected} == expected  # three padding questions are not counted
    assert test["mean"]["acc"] == 1
    assert test["items_per_second"] > 0
    assert content["fit"]["tokens_per_second"] > 0
    assert content["fit"]["metrics"]["train/tokens"] == sum(
        len(i.prompt_ids) + len(i.options[i.answer]) for i in data.items
    )
    assert content["fit"]["metrics"]["train/loss_tokens"] == 18
    assert content["fit"]["metrics"]["val/acc"] == 1
    assert content["backbone"]["dtype"] == "float32"

    answers = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(a["task"], a["index"]) for a in answers] == sorted((TASKS[i % 2], i) for i in range(8))
    for answer in answers:
        best = max(range(4), key=answer["log_likelihoods"].__getitem__)
        by_length = [a / b for a, b in zip(answer["log_likelihoods"], answer["option_lengths"], strict=True)]
        assert answer["predicted_norm"] == answer["options"][max(range(4), key=by_length.__getitem__)]
        assert answer["right"]
        assert answer["predicted"] == answer["options"][best] == answer["answer"]


@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_tokens_per_second_are_those_of_training_whatever_is_validated(folder, tmp_path, monkeypatch, interval):
    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))  # each batch takes one second
    monkeypatch.setattr(causal_language_model, "time", clock)
    module, data = language_module(folder, **STRONG), TinyTexts(str(folder), padding=3)
    fit = trainer(tmp_path, 1, (ResultsWriter(tmp_path),), val_check_interval=interval)
    fit.fit(module, data)
    content = read_results(tmp_path)["fit"]
    expected = content["metrics"]["train/tokens"] / fit.num_training_batches
    assert content["tokens_per_second"] == pytest.approx(expected, abs=0.1)


def test_acc_norm_divides_by_the_characters_of_an_option(folder, monkeypatch):
    module, data = language_module(folder), TinyTexts(str(folder))
    scores = [[-2.0, -3.0, -9.0, -9.0]] * 8  # of "a", "bb", "cc", "dddd": per character -2, -1.5, -4.5, -2.25
    monkeypatch.setattr(causal_language_model, "option_log_likelihoods", lambda *_: scores)
    answers = module._compare(data.items)
    assert [(a["predicted"], a["predicted_norm"]) for a in answers] == [("a", "bb")] * 8
    assert [(a["right"], a["right_norm"]) for a in answers[:3]] == [(True, False), (False, True), (False, False)]


@pytest.mark.parametrize("preset", ["llm_adapters", "clean"])
def test_written_answers_are_parsed_and_missing_ones_counted(folder, tmp_path, monkeypatch, preset):
    texts = ["true", "the correct answer is answer2", "I cannot tell", "answer4 or answer1", "false"]
    texts += ["  answer3\n### Response:\n answer2", "nothing", "answer9"]
    asked = {}

    def written(_model, prompts, **options):
        asked.update(options)
        return [byte_tokenizer()(texts.pop(0))["input_ids"] for _ in prompts]

    monkeypatch.setattr(causal_language_model, "generate", written)
    module = language_module(folder, evaluation="generate")
    data = TinyTexts(str(folder), preset)
    measured = trainer(tmp_path, callbacks=(ResultsWriter(tmp_path),)).test(module, data, verbose=False)[0]
    # boolq gets texts 0, 2, 4, 6; its options here are answer1 ... answer4, so true and false are parsed and wrong.
    assert measured["test/accuracy/boolq"] == 0
    assert measured["test/unparsed/boolq"] == 0.5
    assert measured["test/accuracy/ARC-Easy"] == 0.5  # texts 1, 3, 5, 7: answer2, answer4, answer3 for answer2, answer9
    assert measured["test/unparsed/ARC-Easy"] == 0.25
    assert measured["test/accuracy"] == 0.25
    assert asked["num_beams"] == (4 if preset == "llm_adapters" else 1)
    assert read_results(tmp_path)["test"]["evaluation"] == "generate"


def test_generation_runs_to_the_end(folder, tmp_path):
    module, data = language_module(folder), TinyTexts(str(folder), "llm_adapters")
    fit = trainer(tmp_path, callbacks=(AnswerWriter(tmp_path),))
    measured = fit.test(module, data, verbose=False)[0]
    assert module.mode == "generate"
    assert 0 <= measured["test/accuracy"] <= 1
    answers = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 8
    assert all(isinstance(answer["text"], str) for answer in answers)


def test_cloze_has_no_answer_to_parse(folder, tmp_path):
    with pytest.raises(RepLoRAError, match="preset 'cloze' has none"):
        trainer(tmp_path).test(language_module(folder, evaluation="generate"), TinyTexts(str(folder)))


def test_predictions_without_a_test(folder, tmp_path):
    fit = trainer(tmp_path, callbacks=(AnswerWriter(tmp_path),))
    fit.predict(language_module(folder), TinyTexts(str(folder), padding=1), return_predictions=False)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 8


def test_another_tokenizer_is_told(folder, tmp_path):
    data = TinyTexts("elsewhere")
    with pytest.warns(UserWarning, match="tokenized as for 'elsewhere'"):
        trainer(tmp_path).test(language_module(folder), data, verbose=False)


def test_gradient_checkpointing_computes_twice_and_changes_no_gradient(folder, batch):
    gradients, passes = [], []
    for checkpointing in (False, True):
        module = language_module(folder, gradient_checkpointing=checkpointing, adapter=STRONG["adapter"])
        calls = []
        module.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        module._loss(batch)[0].backward()
        passes.append(len(calls))
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.requires_grad})
    assert passes == [1, 2]
    assert all(gradient is not None for gradient in gradients[0].values())
    assert any(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_adapter_is_in_float32_on_a_bfloat16_backbone(folder, tmp_path):
    module = language_module(folder, dtype="bf16")
    trainer(tmp_path, limit_val_batches=0).fit(module, TinyTexts(str(folder)))
    trained = {p.dtype for p in module.parameters() if p.requires_grad}
    frozen = {p.dtype for p in module.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    assert module.describe()["backbone"]["dtype"] == "bfloat16"
    assert math.isfinite(module.trainer.callback_metrics["train/loss"])


def test_resumed_run_equals_the_uninterrupted_one(folder, tmp_path):
    whole = trainer(tmp_path / "whole", 3)
    whole.fit(language_module(folder), TinyTexts(str(folder)))
    with pytest.raises(StopError):
        trainer(tmp_path / "parts", 3, (StopBefore(2),)).fit(language_module(folder), TinyTexts(str(folder)))
    resumed = trainer(tmp_path / "parts", 3)
    resumed.fit(language_module(folder), TinyTexts(str(folder)), ckpt_path=tmp_path / "parts" / "last.ckpt")
    first, second = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "parts")
    )
    assert first.keys() == second.keys()
    assert all(".replora." in name for name in first)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("options", [{"num_beams": 0}, {"max_new_tokens": 0}, {"evaluation": "likelihod"}])
def test_options_are_checked(folder, options):
    with pytest.raises(RepLoRAError, match=next(iter(options))):
        language_module(folder, **options)
