"""Why there is no sentence: for one picture, or for any."""

from __future__ import annotations

from lorapipe_engine.errors import InputError, LoraError


class NoSentence(InputError):
    """This picture gets no sentence; others may."""


class Unavailable(NoSentence):
    """The server could not answer in time or at all; when it says so again and again, nothing else will come."""


class Hopeless(LoraError):
    """No picture would get a sentence, so the run ends here; with another status where something was done."""

    exit_code = 2
