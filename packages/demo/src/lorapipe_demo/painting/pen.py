"""A pen on a large canvas: coordinates run 0..64 on both axes, strokes are smooth once the picture is shrunk."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from lorapipe_demo.painting.colours import INK, Colour

SIZE = 64
SCALE = 4  # canvas pixels for one picture pixel
Point = tuple[float, float]


class Pen:
    """Draws shapes with an outline. ``at`` moves everything that follows, ``zoom`` scales it around (32, 32)."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), "white")
        self._draw = ImageDraw.Draw(self.image)
        self.dx = self.dy = 0.0
        self.zoom = 1.0

    def _at(self, point: Point) -> tuple[float, float]:
        x = (point[0] - 32) * self.zoom + 32 + self.dx
        y = (point[1] - 32) * self.zoom + 32 + self.dy
        return x * SCALE, y * SCALE

    def _width(self, line: float) -> int:
        return max(1, round(line * SCALE * self.zoom))

    def oval(
        self, centre: Point, rx: float, ry: float, fill: Colour, line: Colour | None = INK, width: float = 0.6
    ) -> None:
        """An ellipse."""
        x, y = centre
        box = [*self._at((x - rx, y - ry)), *self._at((x + rx, y + ry))]
        self._draw.ellipse(box, fill=fill, outline=line, width=self._width(width) if line else 0)

    def shape(
        self, points: Sequence[Point], fill: Colour, line: Colour | None = INK, width: float = 0.6
    ) -> None:
        """A polygon."""
        corners = [self._at(point) for point in points]
        self._draw.polygon(corners, fill=fill)
        if line:
            self._draw.line(
                [*corners, corners[0], corners[1]], fill=line, width=self._width(width), joint="curve"
            )

    def box(
        self, left: float, top: float, right: float, bottom: float, fill: Colour, line: Colour | None = INK
    ) -> None:
        """A rectangle."""
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], fill, line)

    def stroke(self, points: Sequence[Point], colour: Colour = INK, width: float = 0.8) -> None:
        """A line through points."""
        self._draw.line([self._at(p) for p in points], fill=colour, width=self._width(width), joint="curve")

    def arc(
        self,
        centre: Point,
        rx: float,
        ry: float,
        start: float,
        end: float,
        colour: Colour = INK,
        width: float = 0.8,
    ) -> None:
        """A piece of an ellipse, from ``start`` to ``end`` in degrees clockwise from the right."""
        x, y = centre
        box = [*self._at((x - rx, y - ry)), *self._at((x + rx, y + ry))]
        self._draw.arc(box, start, end, fill=colour, width=self._width(width))

    def ground(self, top: Colour, bottom: Colour, from_y: float = 0, to_y: float = SIZE) -> None:
        """Fill rows from_y..to_y of the whole canvas with a vertical run of colours (not moved by ``at``)."""
        first, last = round(from_y * SCALE), round(to_y * SCALE)
        for row in range(first, last):
            t = (row - first) / max(1, last - first - 1)
            r, g, b = (round(a + (c - a) * t) for a, c in zip(top, bottom, strict=True))
            self._draw.line([(0, row), (SIZE * SCALE, row)], fill=(r, g, b))

    def finished(self) -> Image.Image:
        """The picture, 64 x 64."""
        return self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
