"""``lora-inspect``: look into networks. Every command is a module of its own."""

from __future__ import annotations

from lorapipe_engine.command.group import tool_group

EXAMPLES = """
lora-inspect zeros mina.safetensors
lora-inspect zeros run/*.safetensors --json
lora-inspect norms mina.safetensors --blocks
lora-inspect meta mina.safetensors --tags
lora-inspect diff before.safetensors after.safetensors
lora-inspect curves out/
lora-inspect delta mina.safetensors --base base.safetensors -o delta.safetensors
lora-resize mina.safetensors --new-rank 32 -o - | lora-inspect zeros -
"""
COMMANDS = {
    "zeros": ("lorapipe_inspect.commands.zeros:command", "Count zeros, dead modules, subnormals, NaN."),
    "keys": ("lorapipe_inspect.commands.keys:command", "List tensors with types and shapes, or modules."),
    "meta": ("lorapipe_inspect.commands.meta:command", "Read metadata, count tags, write a changed copy."),
    "norms": ("lorapipe_inspect.commands.norms:command", "How strongly every module and block was changed."),
    "ranks": ("lorapipe_inspect.commands.ranks:command", "Ranks, alphas, and how much of them is in use."),
    "hash": ("lorapipe_inspect.commands.hash:command", "SHA-256, AutoV2, AutoV3 and legacy hashes."),
    "diff": (
        "lorapipe_inspect.commands.diff:command",
        "Compare two networks: keys, metadata, what they change.",
    ),
    "compat": ("lorapipe_inspect.commands.compat:command", "Which programs read the file, and how."),
    "delta": ("lorapipe_inspect.commands.delta:command", "Write the dense change of every module."),
    "curves": ("lorapipe_inspect.commands.curves:command", "Draw rate, loss, validation, norms of runs."),
    "check": ("lorapipe_inspect.commands.check:command", "Everything at once: is this file sound?"),
}

lora_inspect = tool_group(
    "lora-inspect",
    COMMANDS,
    about="Look into LoRA networks and what runs recorded: files, folders or standard input.",
    examples=EXAMPLES,
)


def main() -> None:
    """Entry point of ``lora-inspect``."""
    lora_inspect.main()
