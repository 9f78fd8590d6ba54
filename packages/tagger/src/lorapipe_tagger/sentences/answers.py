"""From a server's answer to a sentence, or why it is none."""

from __future__ import annotations

import re
from typing import Any

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.text import hidden_letter, one_line
from lorapipe_engine.pictures.captions import KEEP_MARK
from lorapipe_tagger.sentences.address import OPTION
from lorapipe_tagger.sentences.endpoint import Reply, said
from lorapipe_tagger.sentences.failures import Hopeless, NoSentence

_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_REFUSAL = re.compile(
    r"(I['\u2019]m|I am|we['\u2019]re) (so |very )?(sorry|unable|not able)\b|sorry,|"
    r"I (can['\u2019]t|cannot|can not|won['\u2019]t)\b|"
    r"as an AI\b",
    re.IGNORECASE,
)
_SHOWN = 80


def first_model(reply: Reply) -> str:
    """The name that a list of models has first. Raises Hopeless."""
    try:
        return str(_json_of(reply)["data"][0]["id"])
    except (NoSentence, KeyError, IndexError, TypeError):
        raise Hopeless(f"{OPTION}: the server names no model; give --caption-model NAME") from None


def read_answer(reply: Reply, tokens: int) -> tuple[str, int]:
    """The sentence, in one line, and how many tokens the server counted for it (0: it says nothing).

    Raises NoSentence for an answer that is none, Hopeless for a page, which no question would change.
    """
    value = _json_of(reply)
    try:
        choice = value["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        words = one_line(said(value)) or "it has no choices[0].message"
        raise NoSentence(
            f"no sentence: not an answer as OpenAI's chat completions have it ({words})"
        ) from None
    ending = choice.get("finish_reason")
    if ending == "length":
        raise NoSentence(
            f"no sentence: cut off after {tokens} tokens; give --caption-tokens {2 * tokens}, or ask for less"
        )
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if refusal or ending == "content_filter":
        raise NoSentence(
            f"no sentence: the model refuses ({_start(refusal or ending)}); write this one yourself"
        )
    text = _text_of(message)
    line = " ".join(_THOUGHT.sub("", text, count=1).split())
    if not line:
        raise NoSentence(
            "no sentence: the answer is empty; see the server's log, or another --caption-prompt"
        )
    if "<think>" in line:
        raise NoSentence("no sentence: only thoughts came; give --caption-tokens more, or turn thinking off")
    if _REFUSAL.match(line):
        raise NoSentence(
            f"no sentence: the model refuses ({_start(line)}); write this one yourself, or another --caption-prompt"
        )
    if hidden_letter(line):
        raise NoSentence("no sentence: the answer has control or directional characters")
    if KEEP_MARK in line:
        raise NoSentence(f"no sentence: the answer has {KEEP_MARK}, which training takes for a mark")
    return line, _count_of(value)


def _json_of(reply: Reply) -> Any:
    if reply.is_page:
        raise Hopeless(
            f"{OPTION}: the answer is an HTML page, not JSON; is the address right, which mostly ends with /v1?"
        )
    try:
        return parse_json(reply.body.decode("utf-8"))
    except (NoJson, UnicodeDecodeError):
        raise NoSentence(
            f"no sentence: the answer is no JSON ({_start(reply.words) or 'nothing'}); is the address right?"
        ) from None


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = " ".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _count_of(value: Any) -> int:
    usage = value.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def _start(text: object) -> str:
    line = one_line(text)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
