"""Sentences for pictures: asked for, remembered, counted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.command.tool import say
from lorapipe_tagger.sentences.address import Address
from lorapipe_tagger.sentences.answers import first_model, read_answer
from lorapipe_tagger.sentences.endpoint import Endpoint
from lorapipe_tagger.sentences.failures import Hopeless, Unavailable
from lorapipe_tagger.sentences.known import KnownSentences
from lorapipe_tagger.sentences.picture import picture_address
from lorapipe_tagger.sentences.prompts import fill_prompt, places_in
from lorapipe_tagger.settings import CaptionStyle

MOST_IN_A_ROW = 5  # questions that a server could not answer before the run ends
CLIP_TOKENS = 75


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How sentences are asked for. ``model`` None: the first that the server names."""

    address: Address
    prompt: str
    style: CaptionStyle
    model: str | None
    tokens: int
    jobs: int
    seconds: float
    retries: int
    key: str | None = field(repr=False)
    max_pixels: int

    @property
    def needs_tags(self) -> bool:
        """Whether tags have a place: in the caption or in the question."""
        return self.style != "sentence" or "tags" in places_in(self.prompt)

    def words(self, path: Path, tags: Sequence[str], trigger: str) -> str:
        """The question in words. ``tags``: those of the picture, without the trigger."""
        return fill_prompt(self.prompt, tags=", ".join(tags), trigger=trigger, name=path.stem)


class Sentences:
    """Asks a server for sentences, from several threads. ``cache``: the file of sentences that came before."""

    def __init__(self, asking: Asking, cache: Path | None) -> None:
        self.asking = asking
        self.model = asking.model or ""
        self._endpoint = Endpoint(
            asking.address, key=asking.key, seconds=asking.seconds, retries=asking.retries
        )
        self._cache = KnownSentences(cache) if cache else None
        self._lock = threading.Lock()
        self._asked = self._remembered = self._long = self._in_a_row = 0

    def begin(self) -> None:
        """Find the model's name, before any other work. Raises Hopeless."""
        if not self.model:
            try:
                self.model = first_model(self._endpoint.ask("GET", self.asking.address.models))
            except Unavailable as error:
                raise Hopeless(f"{self.asking.address.shown}: {error}") from error
        say(f"lora-tag: sentences by {self.model} at {self.asking.address.shown}")

    def stop(self) -> None:
        """End what is being asked."""
        self._endpoint.stop()

    def close(self) -> None:
        """Close the file of sentences."""
        if self._cache:
            self._cache.close()

    def line(self) -> str:
        """What came, for the user."""
        cached = f", {self._remembered} from the cache" if self._remembered else ""
        return f"lora-tag: sentences: {self._asked} asked for{cached}"

    def note(self) -> str | None:
        """A line on sentences that training would cut, or None."""
        if not self._long:
            return None
        return (
            f"lora-tag: note: {self._long} of the sentences have more than {CLIP_TOKENS} words; training reads "
            f"{CLIP_TOKENS} tokens unless --max_token_length says 150 or 225"
        )

    def of(self, path: Path, tags: Sequence[str], trigger: str) -> str:
        """The sentence for a picture. Raises NoSentence for this picture, Hopeless for all."""
        question = {
            "model": self.model,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": self.asking.words(path, tags, trigger)},
                        {
                            "type": "image_url",
                            "image_url": {"url": picture_address(path, max_pixels=self.asking.max_pixels)},
                        },
                    ],
                }
            ],
            "max_tokens": self.asking.tokens,
            "stream": False,
        }
        body = json.dumps(question).encode()
        key = hashlib.sha256(f"{self.asking.address.shown}\n".encode() + body).digest()
        sentence = self._cache.get(key) if self._cache else None
        if sentence is None:
            sentence = self._ask(path, body)
            if self._cache:
                self._cache.put(key, sentence)
        else:
            with self._lock:
                self._remembered += 1
        with self._lock:
            self._long += len(sentence.split()) > CLIP_TOKENS
        return sentence

    def _ask(self, path: Path, body: bytes) -> str:
        with self._lock:
            self._asked += 1
        try:
            reply = self._endpoint.ask("POST", self.asking.address.chat, body)
        except Unavailable as error:
            with self._lock:
                self._in_a_row += 1
                if self._in_a_row >= MOST_IN_A_ROW:
                    raise Hopeless(
                        f"{self.asking.address.shown}: {self._in_a_row} pictures in a row got no answer; the last: "
                        f"{path}: {error}"
                    ) from error
            raise
        with self._lock:
            self._in_a_row = 0
        sentence, count = read_answer(reply, self.asking.tokens)
        if count > self.asking.tokens:
            say(
                f"lora-tag: note: {path}: an answer of {count} tokens, more than --caption-tokens "
                f"{self.asking.tokens} allows"
            )
        return sentence
