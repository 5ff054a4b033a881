"""diffusers: a small UNet learns to remove noise from handwritten digits, given which digit it is.

    pip install diffusers
    python examples/diffusion.py              # a minute on two cores, without a network
    python examples/diffusion.py --quick      # seconds

The UNet is a random one, so that nothing is downloaded; `UNet2DConditionModel.from_pretrained` gives others.
"""

from __future__ import annotations

import argparse

import peft
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from sklearn.datasets import load_digits
from torch.nn import functional as F

import replora


def random_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=10,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--out", default="runs/diffusion", help="folder of the adapter")
    options = parser.parse_args(arguments)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    prompts = F.one_hot(torch.tensor(digits.target))[:, None].float()
    unet, scheduler = random_unet(), DDPMScheduler()
    unet.add_adapter(peft.LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "conv1", "conv2"]))
    replora.reparameterize(unet)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=5e-3, weight_decay=0)
    for step in range(4 if options.quick else 300):
        chosen = torch.randint(len(images), (32,))
        noise, at = torch.randn(32, 1, 8, 8), torch.randint(scheduler.config.num_train_timesteps, (32,))
        noisy = scheduler.add_noise(images[chosen], noise, at)
        loss = F.mse_loss(unet(noisy, at, prompts[chosen]).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (2 if options.quick else 50) == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    unet.save_lora_adapter(options.out)  # plain LoRA, and the generators beside it
    plain = random_unet()
    plain.load_lora_adapter(options.out, prefix=None, use_safetensors=True)  # needs no replora
    with torch.no_grad():
        outputs = [model(images[:8], 1, prompts[:8]).sample for model in (plain, unet)]
        difference = (outputs[0] - outputs[1]).abs().max().item()
    print(f"{options.out}: plain LoRA, whose outputs differ by {difference}")


if __name__ == "__main__":
    main()
