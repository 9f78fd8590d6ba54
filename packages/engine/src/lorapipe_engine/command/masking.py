"""Keys and tokens: kept out of everything that is written or said.

An option with ``secret=True`` is never shown, nor is its value anywhere else; so are the values of the environment's
own variables for keys, and what stands for a password in an address.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

MASK = "***"
# Of Weights & Biases, of the hub, and of the server that lora-tag asks for sentences.
VARIABLES = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "LORA_TAG_CAPTION_KEY",
)
_SHORTEST = 8  # letters; anything shorter may be a part of plain words
# The user of an address, a key in its question, and what the hub's own tokens look like. As texts: a help, which
# says nothing of the user's, does not wait for them to be compiled.
_PATTERNS = (
    (r"(?<=://)[^\s/@'\"]+(?=@)", MASK),
    (r"(?i)([?&](?:[\w-]*token|api_?key|key|password|secret|signature)=)[^&\s'\"#]+", rf"\1{MASK}"),
    (r"\bhf_[A-Za-z0-9]{16,}", MASK),
)
_KNOWN: set[str] = set()


def remember_secrets(values: Iterable[str]) -> None:
    """Mask these values from now on, and take them out of the process's own words, which libraries write down."""
    for value in values:
        _KNOWN.add(value)
        sys.argv[1:] = [word.replace(value, MASK) if value else word for word in sys.argv[1:]]


def masked(text: str) -> str:
    """A text with every secret in it that is known or looks like one replaced by ``***``."""
    known = {*_KNOWN, *(os.environ.get(name, "") for name in VARIABLES)}
    for value in sorted((value for value in known if len(value) >= _SHORTEST), key=len, reverse=True):
        text = text.replace(value, MASK)
    for pattern, mask in _PATTERNS:
        text = re.sub(pattern, mask, text)
    return text
