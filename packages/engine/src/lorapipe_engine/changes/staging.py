"""Many files of one folder replaced at once: all new ones are written, brought to the disk together, and take their
places one by one by an exchange of names, so that each is whole at any time and the old one is kept.

Beside a rename for each, the system has a third of the work: it need not give the file another name first, and does not
send each of thousands of small files to the disk by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from lorapipe_engine.changes.filebytes import write_new

if TYPE_CHECKING:
    from lorapipe_engine.changes.place import Place
    from lorapipe_engine.changes.swapping import Swapper


class Staging:
    """New files of a folder, by name, in ``place`` until they are exchanged."""

    def __init__(self, swapper: Swapper, place: Place) -> None:
        self._swapper = swapper
        self.place = place
        self._ready: set[str] = set()
        self._flush: _Flush | None = None

    def prepare(self, files: Iterable[tuple[str, bytes]], descriptor: int) -> None:
        """Write new files, and begin to bring them to the disk with all else; ``descriptor`` is open there.

        A name of which there is a file already, or that cannot be written, is not :meth:`ready`.
        """
        for name, data in files:
            try:
                self._ready.add(name)
                write_new(self.place, name, data)
            except FileExistsError:
                self._ready.discard(name)
            except OSError:
                self.drop(name)
        self._flush = _Flush(self._swapper, descriptor)

    def wait(self) -> None:
        """Wait until they are on the disk. Raises OSError."""
        if self._flush is not None:
            flush, self._flush = self._flush, None
            flush.join()
            if flush.error is not None:
                raise flush.error

    def ready(self, name: str) -> bool:
        """Whether there is a new file of that name that can take its place."""
        return name in self._ready

    def swap(self, name: str, folder: Place) -> None:
        """Put a new file into its place; the old one has the new one's name then. Raises OSError."""
        # From here on it may be the old file that has the name, which must not be dropped.
        self._ready.discard(name)
        self._swapper.swap(self.place, name, folder, name)

    def drop(self, name: str) -> None:
        """Take a new file away."""
        if name in self._ready:
            with suppress(OSError):
                self.place.unlink(name)
            self._ready.discard(name)

    def close(self) -> None:
        """Take away what never came to its place."""
        with suppress(OSError):
            self.wait()
        for name in tuple(self._ready):
            self.drop(name)


class _Flush(threading.Thread):
    """Waits for the disk while others work."""

    def __init__(self, swapper: Swapper, descriptor: int) -> None:
        super().__init__(daemon=True)
        self.error: OSError | None = None
        self._swapper = swapper
        self._descriptor = descriptor
        self.start()

    def run(self) -> None:
        try:
            self._swapper.flush(self._descriptor)
        except OSError as error:
            self.error = error
