"""Programs that train a reparameterized model and know nothing of it: transformers' Trainer, TRL, accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

import replora
from tests.adapters.peft_lora.test_reparameterize import build, output, train, wrapped

ROWS = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(16)]
FILE = "replora_generators.safetensors"
# Those before 5.23 resume without the adapter `default` where there are others, of plain LoRA as well.
READS_ALL_ADAPTERS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)


def trainer_of(model: nn.Module, folder: Path, **options: Any) -> Trainer:
    named = {name: options.pop(name) for name in ("callbacks", "optimizers") if name in options}
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_steps": 6,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **defaults | options)
    return Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], **named)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    one, two = state(model), state(other)
    assert one.keys() == two.keys()
    differ = [name for name, tensor in one.items() if not torch.equal(tensor, two[name])]
    assert not differ


def with_dora() -> nn.Module:
    return wrapped(use_dora=True, lora_dropout=0.1)


def with_embedding() -> nn.Module:
    return wrapped(("embed_tokens", "q_proj", "gate_proj"), modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("make", "options"), [(wrapped, {"hidden": 2}), (with_dora, {"activation": "relu"}), (with_embedding, {})]
)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(make, options, tmp_path: Path) -> None:
    whole = replora.reparameterize(make(), **options)
    trainer_of(whole, tmp_path, save_strategy="steps", save_steps=3).train()
    resumed = replora.reparameterize(make(), **options)
    torch.manual_seed(5)
    trainer_of(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(resumed, whole)


def test_the_best_checkpoint_comes_back(tmp_path: Path) -> None:
    model = replora.reparameterize(wrapped())
    trainer = trainer_of(
        model,
        tmp_path,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first one
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    saved = peft.PeftModel.from_pretrained(build(), tmp_path / "checkpoint-2", is_trainable=True)
    assert_equal(model, replora.reparameterize(saved, generators=tmp_path / "checkpoint-2"))


def test_what_is_pushed_to_the_hub_is_plain_lora_and_the_generators(tmp_path: Path) -> None:
    model = replora.reparameterize(wrapped())
    trainer = trainer_of(model, tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", FILE, "training_args.bin"}
    stock = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert torch.equal(output(stock), output(model.eval()))


def test_the_trainer_decays_matrices_only(tmp_path: Path) -> None:
    """By its own rule, which goes by names: the parameters that the paper's equations have as diagonals are spared."""
    model = replora.reparameterize(wrapped(("q_proj", "v_proj", "embed_tokens")))
    optimizer = trainer_of(model, tmp_path).create_optimizer()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    vectors = {id(p) for bank in model.replora["default"].factor_banks() for p in bank.no_weight_decay()}
    assert {key for key, value in decay.items() if value == 0} == vectors
    assert set(decay) == {id(p) for p in model.parameters() if p.requires_grad}


# --- the callback


def frozen() -> nn.Module:
    model = replora.reparameterize(wrapped())
    model.requires_grad_(False)
    return model


def optimizer_from_before() -> tuple[nn.Module, Any]:
    model = wrapped()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    return replora.reparameterize(model), (optimizer, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrapped, r"not reparameterized\. Call replora\.reparameterize\(model\)"),
        (frozen, r"'default' is frozen\. .*is_trainable=True"),
        (optimizer_from_before, r"lacks 10 of the 10 parameters .* made before replora\.reparameterize"),
    ],
)
def test_the_callback_refuses_what_would_train_nothing(make: Any, message: str, tmp_path: Path) -> None:
    model = make()
    model, optimizers = model if isinstance(model, tuple) else (model, (None, None))
    trainer = trainer_of(model, tmp_path, callbacks=[replora.RepLoRACallback()], optimizers=optimizers)
    with pytest.raises(replora.RepLoRAError, match=message):
        trainer.train()


def test_the_callback_warns_of_decayed_diagonals_and_says_what_trains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = replora.reparameterize(wrapped())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.3)
    callbacks = [replora.RepLoRACallback()]
    with caplog.at_level(logging.INFO, "transformers"):
        with pytest.warns(UserWarning, match=r"weight decay of 0\.3 pulls the diagonals"):
            trainer_of(model, tmp_path, callbacks=callbacks, optimizers=(optimizer, None), max_steps=1).train()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        deployed = sum(p.numel() for p in replora.materialize(model).parameters() if p.requires_grad)
    assert f"{trained:,} parameters of 'default' train. They deploy as {deployed:,}" in caplog.text


def test_the_callback_writes_generators_that_no_one_else_has_written(tmp_path: Path) -> None:
    class Plain(Trainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
            from safetensors.torch import save_file

            folder = Path(str(output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(peft.get_peft_model_state_dict(self.model), folder / "adapter_model.safetensors")
            self.model.peft_config["default"].save_pretrained(folder)

    model = replora.reparameterize(wrapped())
    arguments = trainer_of(model, tmp_path, save_strategy="steps", save_steps=3).args
    Plain(model, arguments, train_dataset=ROWS, callbacks=[replora.RepLoRACallback()]).train()
    again = peft.PeftModel.from_pretrained(build(), tmp_path / "checkpoint-6", is_trainable=True)
    assert_equal(replora.reparameterize(again, generators=tmp_path / "checkpoint-6"), model)


# --- accelerate and TRL


def test_a_state_of_accelerate_is_complete(tmp_path: Path) -> None:
    from accelerate import Accelerator

    def start() -> tuple[Any, nn.Module, Any]:
        model, accelerator = replora.reparameterize(wrapped()), Accelerator(cpu=True)
        return accelerator, *accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2))

    def steps(accelerator: Any, model: nn.Module, optimizer: Any) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            accelerator.backward(model(input_ids=ROWS[0]["input_ids"][None], labels=ROWS[0]["labels"][None]).loss)
            optimizer.step()

    whole = start()
    steps(*whole)
    whole[0].save_state(tmp_path)
    steps(*whole)
    resumed = start()
    steps(*resumed)
    resumed[0].load_state(tmp_path)
    steps(*resumed)
    assert_equal(resumed[1], whole[1])


def words() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(90))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def trl_trainer(kind: str, model: nn.Module, folder: Path, rows: list[dict[str, str]], **options: Any) -> Trainer:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    named = {"peft_config": options.pop("peft_config", None)}
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **options,
    )
    return getattr(trl, f"{kind}Trainer")(
        model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words(),
        callbacks=[replora.RepLoRACallback()],
        **named,
    )


def test_the_reference_of_dpo_is_the_adapter_as_it_was(tmp_path: Path) -> None:
    """TRL copies the adapter by the names of parameters into one named `ref`; the names of RepLoRA's are others."""
    train(replora.reparameterize(wrapped())).save_pretrained(tmp_path / "sft")
    rows = [{"prompt": "w1 w2 w3", "chosen": " w4 w5", "rejected": " w6 w7"}] * 8

    def start(**options: Any) -> Trainer:
        model = peft.PeftModel.from_pretrained(build(), tmp_path / "sft", is_trainable=True)
        replora.reparameterize(model, generators=tmp_path / "sft")
        return trl_trainer("DPO", model, tmp_path / "dpo", rows, **options)

    trainer = start(save_strategy="steps", save_steps=2)
    model, expected = trainer.model, output(peft.PeftModel.from_pretrained(build(), tmp_path / "sft").eval())
    trainer.train()
    assert not torch.equal(output(model.eval()), expected)
    resumed = start(save_strategy="no")
    if READS_ALL_ADAPTERS:
        resumed.train(resume_from_checkpoint=str(tmp_path / "dpo" / "checkpoint-2"))
        assert_equal(resumed.model, model)
    model.set_adapter("ref")
    assert torch.equal(output(model), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers, "__version__", "5.22.2")
        with pytest.warns(UserWarning, match=r"transformers 5.22.2 does not read .*'default'.* after 2 steps"):
            start(save_strategy="no").train(resume_from_checkpoint=str(tmp_path / "dpo" / "checkpoint-2"))


def test_an_adapter_that_the_trainer_made_is_reparameterized_afterwards(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = trl_trainer("SFT", build(), tmp_path, [{"text": "w1 w2 w3 w4"}] * 8, peft_config=config)
    replora.reparameterize(trainer.model)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / FILE).is_file()
    assert not torch.equal(output(trainer.model.eval()), output(build()))


def rounded() -> nn.Module:
    """As TRL rounds what trains where the base is quantized; in bfloat16 1 + 0.001 is 1."""
    model = replora.reparameterize(wrapped())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def test_generators_that_a_trainer_has_rounded_train_in_float32(tmp_path: Path) -> None:
    model = rounded()
    trainer_of(model, tmp_path, callbacks=[replora.RepLoRACallback()], learning_rate=1e-3, max_steps=2).train()
    moved = model.replora["default"].banks[0].mlp_B.bias_diagonal
    assert moved.dtype == torch.float32
    assert not torch.equal(moved, torch.ones_like(moved))
    late = trainer_of(rounded(), tmp_path, max_steps=1)
    late.add_callback(replora.RepLoRACallback())
    with pytest.warns(UserWarning, match=r"train in torch.bfloat16.* when it is made"):
        late.train()
