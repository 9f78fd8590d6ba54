"""Train the pieces of the demo base on the drawn world: judge, VAE, text encoder and UNet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from lorapipe_demo.judge import HEADS, JudgeNetwork

Say = Callable[[str], None]
SCALE = 0.18215  # what Stable Diffusion programs multiply latents with


def make_vae() -> AutoencoderKL:
    """64 x 64 pixels to 16 x 16 latents of 4 channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=SCALE,
    )


def make_unet() -> UNet2DConditionModel:
    """The SD 1.x layout with three levels of 64, 96 and 96 channels."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 96),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=8,
    )


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    """A CLIP text model of width 128 and four layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=4,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def to_pixels(pixels: Tensor) -> Tensor:
    """(B, 64, 64, 3) uint8 to (B, 3, 64, 64) in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def rate_at(done: float, top: float, warm: float = 0.03) -> float:
    """Warm-up, then a half cosine to zero; ``done`` is the share of the time that is over."""
    return top * min(1.0, done / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train_vae(pixels: Tensor, seconds: float, batch: int, say: Say) -> AutoencoderKL:
    """Sharp and smooth enough: absolute and squared error, and a light pull of the latents towards a normal."""
    device = pixels.device
    vae = make_vae().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    start, step, loss = time.monotonic(), 0, torch.zeros(())
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(done, 2e-3)
        rows = to_pixels(pixels[torch.randint(len(pixels), (batch,), device=device)])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            posterior = vae.encode(rows).latent_dist
            rebuilt = vae.decode(posterior.sample()).sample
        difference = rebuilt.float() - rows
        spread = posterior.kl().mean() / posterior.mean[0].numel()
        edges = F.l1_loss(rebuilt.float().diff(dim=3), rows.diff(dim=3)) + F.l1_loss(
            rebuilt.float().diff(dim=2), rows.diff(dim=2)
        )
        loss = difference.abs().mean() + difference.square().mean() + 0.5 * edges + 2e-3 * spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0:
            say(f"vae step {step}: loss {loss.item():.4f}, error {difference.abs().mean().item():.4f}")
    say(f"vae: {step} steps, loss {loss.item():.4f}")
    return vae.eval()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pixels: Tensor, batch: int = 1000) -> Tensor:
    """Mean latents of every picture, (N, 4, 16, 16) float32, not scaled."""
    return torch.cat([vae.encode(to_pixels(rows)).latent_dist.mean for rows in pixels.split(batch)])


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, spread: float) -> None:
    """Make latents times 0.18215 have a deviation of one, by scaling the two 1 x 1 convolutions around them."""
    factor = 1 / (SCALE * spread)
    channels = vae.config.latent_channels
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2 * math.log(factor)
    vae.post_quant_conv.weight /= factor


def train_judge(
    pixels: Tensor, answers: Tensor, vae: AutoencoderKL, seconds: float, batch: int, say: Say
) -> JudgeNetwork:
    """On pictures as drawn, and as a VAE, blur and noise leave them."""
    device = pixels.device
    judge = JudgeNetwork().to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    start, step, loss = time.monotonic(), 0, torch.zeros(())
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(done, 2e-3)
        pick = torch.randint(len(pixels), (batch,), device=device)
        rows = degrade(to_pixels(pixels[pick]), vae)
        scores = judge(rows)
        loss = torch.stack([F.cross_entropy(scores[n], answers[pick, i]) for i, n in enumerate(HEADS)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    say(f"judge: {step} steps, loss {loss.item():.4f}")
    return judge.eval()


@torch.no_grad()
def degrade(rows: Tensor, vae: AutoencoderKL) -> Tensor:
    """A third through the VAE, a third blurred, all a little noisy, shifted in brightness and moved a pixel or two."""
    third = len(rows) // 3
    if third:
        noisy = vae.encode(rows[:third]).latent_dist.mean
        noisy = noisy + 0.1 * noisy.std() * torch.randn_like(noisy)
        rows[:third] = vae.decode(noisy).sample.clamp(-1, 1)
        blurred = F.avg_pool2d(F.pad(rows[third : 2 * third], (1, 1, 1, 1), mode="replicate"), 3, 1)
        mix = torch.rand(len(blurred), 1, 1, 1, device=rows.device)
        rows[third : 2 * third] = torch.lerp(rows[third : 2 * third], blurred, mix)
    rows = rows + 0.06 * torch.rand(len(rows), 1, 1, 1, device=rows.device) * torch.randn_like(rows)
    rows = rows * (1 + 0.1 * torch.randn(len(rows), 1, 1, 1, device=rows.device))
    rows = rows + 0.05 * torch.randn(len(rows), 3, 1, 1, device=rows.device)
    shift = torch.randint(-2, 3, (2,)).tolist()
    return torch.roll(rows, shift, (2, 3))


class Denoiser(torch.nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text = make_text_encoder(vocabulary)
        self.unet = make_unet()

    def encode(self, ids: Tensor, second_last: Tensor) -> Tensor:
        """Text states (B, 77, 128): the second to last layer where asked for (clip skip 2), else the last."""
        inner = getattr(self.text, "text_model", self.text)
        out = self.text(ids, output_hidden_states=True)
        skipped = inner.final_layer_norm(out.hidden_states[-2])
        return torch.where(second_last[:, None, None], skipped, out.last_hidden_state)

    def forward(self, noisy: Tensor, steps: Tensor, ids: Tensor, second_last: Tensor) -> Tensor:
        return self.unet(noisy, steps, self.encode(ids, second_last)).sample


class DenoiserTrainer:
    """One step as a function of nothing but tensors, replayed as a CUDA graph where there is a GPU.

    ``prediction``: "epsilon", "v" or "flow", what the UNet learns to answer.
    """

    def __init__(
        self,
        latents: Tensor,
        ids: Tensor,
        empty: Tensor,
        vocabulary: int,
        batch: int,
        prediction: str = "epsilon",
    ) -> None:
        self.prediction = prediction
        self.latents, self.ids, self.empty, self.batch = latents, ids, empty, batch
        self.device = latents.device
        self.model = Denoiser(vocabulary).to(self.device)
        self.average = deepcopy(self.model).requires_grad_(False)
        self.rate = torch.zeros((), device=self.device)
        self.decay = torch.zeros((), device=self.device)
        self.loss = torch.zeros((), device=self.device)
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
            capturable=on_gpu,
        )
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=self.device) ** 2
        self.alpha_bar = torch.cumprod(1 - beta, 0)

    def step(self) -> None:
        """One update."""
        device, count = self.device, self.batch
        pick = torch.randint(len(self.latents), (count,), device=device)
        variant = torch.randint(self.ids.shape[1], (count,), device=device)
        ids = self.ids[pick, variant].long()
        ids = torch.where(torch.rand(count, 1, device=device) < 0.1, self.empty, ids)
        clean = self.latents[pick].float()
        noise = torch.randn_like(clean)
        noisy, steps, target, weight = self.shown(clean, noise)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            second_last = torch.rand(count, device=device) < 0.7
            predicted = self.model(noisy, steps, ids, second_last)
        loss = ((predicted.float() - target).square().mean(dim=(1, 2, 3)) * weight).mean()
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        mean = list(self.average.parameters())
        ahead = torch._foreach_sub([p.detach() for p in self.model.parameters()], mean)
        torch._foreach_mul_(ahead, 1 - self.decay)
        torch._foreach_add_(mean, ahead)
        self.loss.copy_(loss.detach())

    def shown(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the UNet is shown and when, what it should answer, and the weight of each row."""
        count = len(clean)
        if self.prediction == "flow":
            share = torch.sigmoid(torch.randn(count, device=self.device))
            sigma = share.view(-1, 1, 1, 1)
            return (1 - sigma) * clean + sigma * noise, 1000 * share, noise - clean, torch.ones_like(share)
        steps = torch.randint(0, 1000, (count,), device=self.device)
        bar = self.alpha_bar[steps].view(-1, 1, 1, 1)
        snr = bar.view(-1) / (1 - bar.view(-1))
        is_v = self.prediction == "v"
        target = bar.sqrt() * noise - (1 - bar).sqrt() * clean if is_v else noise
        weight = snr.clamp(max=5) / (snr + 1 if is_v else snr)
        return bar.sqrt() * clean + (1 - bar).sqrt() * noise, steps, target, weight

    def capture(self) -> Callable[[], None]:
        """The step as a graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def train(self, seconds: float, top: float, say: Say) -> Denoiser:
        """Train for a time; returns the averaged weights."""
        start = time.monotonic()
        run: Callable[[], None] = self.step
        if self.device.type == "cuda":
            try:
                run = self.capture()
            except RuntimeError as error:
                say(f"no graph: {error}")
        say(f"capture took {time.monotonic() - start:.1f} s")
        step = 0
        while (done := (time.monotonic() - start) / seconds) < 1:
            self.rate.fill_(rate_at(done, top))
            self.decay.fill_(min(0.9995, (1 + step) / (10 + step)))
            run()
            step += 1
            if step % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()
            if step % 1000 == 0:
                say(
                    f"unet step {step}: loss {self.loss.item():.4f}, {(time.monotonic() - start) / step * 1000:.1f} ms"
                )
        say(f"unet: {step} steps of {self.batch}, loss {self.loss.item():.4f}")
        return self.average.eval()
