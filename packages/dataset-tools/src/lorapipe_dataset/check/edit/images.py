"""The pictures of the folder for the page: small ones made when they are asked for, and the files themselves.

No link is followed out of the folder, also not one that has come into a picture's place since it was found.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from lorapipe_dataset.check.edit.shelf import Item
from lorapipe_dataset.check.pictures.look import thumbnail_of
from lorapipe_engine.changes.place import NotRegular, open_place
from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.links import check_inside
from lorapipe_engine.pictures.layout import IMAGE_SUFFIXES

SIDE = 320  # pixels of a small picture's longer side
KEPT_BYTES = 64 << 20  # of small pictures in memory
MOST_BYTES = 512 << 20  # of a picture's file
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
    ".jxl": "image/jxl",
}


class Images:
    """Pictures' bytes, the small ones kept as long as there is room."""

    def __init__(self) -> None:
        self._small: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def small(self, item: Item) -> bytes | None:
        """A JPEG of a picture; None where it cannot be read."""
        key = item.id, item.image
        with self._lock:
            if key in self._small:
                self._small.move_to_end(key)
                return self._small[key]
        data = read_image(item.picture.path, item.root)
        small = None if data is None else thumbnail_of(data, SIDE)
        if small is not None and item.image:
            self._keep(key, small)
        return small

    def whole(self, item: Item) -> tuple[str, bytes] | None:
        """The type and bytes of a picture's file; None where it cannot be read."""
        data = read_image(item.picture.path, item.root)
        return None if data is None else (TYPES[item.picture.path.suffix.lower()], data)

    def _keep(self, key: tuple[int, str], data: bytes) -> None:
        with self._lock:
            self._bytes += len(data) - len(self._small.get(key, b""))
            self._small[key] = data
            while self._bytes > KEPT_BYTES:
                _, gone = self._small.popitem(last=False)
                self._bytes -= len(gone)


def read_image(path: Path, root: Path) -> bytes | None:
    """A picture's file below ``root``; None for one that cannot be read, is a link out of it, or to no picture."""
    try:
        return _read(path, root)
    except NotRegular:
        pass
    except (LoraError, OSError):
        return None
    try:
        # A link: to a picture in the folder, whose own path has none.
        real = Path(check_inside(path, root))
        return _read(real, root.resolve()) if real.suffix.lower() in IMAGE_SUFFIXES else None
    except (LoraError, OSError):
        return None


def _read(path: Path, root: Path) -> bytes | None:
    with open_place(path.parent, root) as place:
        held = place.read(path.name, MOST_BYTES)
    return None if held is None else held[0]
