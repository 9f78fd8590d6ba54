"""What each network algorithm takes in the place of the demo's recipe: its words for lora-train, and its rates."""

from __future__ import annotations

from collections.abc import Mapping

Options = Mapping[str, str | None]
RATES = ("2.5e-3", "2e-3")  # the recipe's: UNet, text encoder


def _options(
    algorithm: str, args: str = "", dim: str = "32", rates: tuple[str, str] = RATES
) -> dict[str, str | None]:
    return {
        "algorithm": algorithm,
        "network_args": args,
        "network_dim": dim,
        "unet_lr": rates[0],
        "text_encoder_lr": rates[1],
    }


# Ranks are those of the recipe (conv 8), but LoHa's and LoKr's, whose changes have a higher rank than their dim says.
# Rates go with the size of a parameter's effect: what scales or turns whole layers takes higher ones, a whole change,
# of which every value moves by the rate, a lower one. Each is the best of two or three (docs/networks.md).
ALGORITHMS: Mapping[str, Options] = {
    "lora": _options("lora", "conv_dim=8"),
    "lora, no convolutions": _options("lora"),
    "dora": _options("lora", "conv_dim=8 dora_wd=True"),
    "dora, by outputs": _options("lora", "conv_dim=8 dora_wd=True wd_on_output=True"),
    "dylora": _options("dylora", "conv_dim=32 unit=4"),
    "lora_fa": _options("lora_fa", "conv_dim=8", rates=("7.5e-3", "6e-3")),
    "loha": _options("loha", "preset=full conv_dim=8", dim="8", rates=("1e-2", "8e-3")),
    "lokr": _options("lokr", "preset=full factor=4 conv_dim=8", dim="16", rates=("7.5e-3", "6e-3")),
    "ia3": _options("ia3", dim="1", rates=("1.5e-1", "1.2e-1")),
    "norm layers": _options("lora", "conv_dim=8 train_norm=True"),
    "full": _options("full", "preset=full", dim="1", rates=("5e-4", "4e-4")),
    "oft": _options("oft", "preset=full conv_dim=8", dim="8", rates=("1e-2", "8e-3")),
    "boft": _options("boft", "preset=full", dim="8"),
}
