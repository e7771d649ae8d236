"""A small drawing surface for the places: shapes in fractions of the picture, colours that vary."""

import cv2
import numpy as np


class Sketch:
    """A uint8 RGB picture addressed in fractions of its size, colours in [0, 1], with a random stream."""

    def __init__(self, size, rng):
        self.size, self.rng = size, rng
        self.pixels = np.zeros((size, size, 3), np.uint8)

    def tone(self, colour, spread=0.06):
        """A colour near the given one, as OpenCV takes it."""
        gain, *shift = self.rng.standard_normal(4).tolist()
        gain = 1 + spread * gain
        moved = [part * gain + spread / 3 * move for part, move in zip(colour, shift, strict=True)]
        return tuple(min(max(float(value) * 255, 0.0), 255.0) for value in moved)

    def between(self, low, high):
        return float(self.rng.uniform(low, high))

    def _fixed(self, points):
        return (np.asarray(points, np.float64) * self.size * 16).round().astype(np.int32).reshape(-1, 1, 2)

    def gradient(self, top, bottom, y0=0.0, y1=1.0):
        """Fill rows y0 to y1 from one colour to another."""
        rows = slice(round(max(y0, 0) * self.size), round(min(y1, 1) * self.size))
        part = np.linspace(0, 1, max(rows.stop - rows.start, 1))[:, None]
        band = np.float32(self.tone(top, 0.04)) * (1 - part) + np.float32(self.tone(bottom, 0.04)) * part
        self.pixels[rows] = band[: rows.stop - rows.start, None]

    def poly(self, points, colour, spread=0.06):
        cv2.fillPoly(self.pixels, [self._fixed(points)], self.tone(colour, spread), cv2.LINE_AA, shift=4)

    def rect(self, x0, y0, x1, y1, colour, spread=0.06):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, spread)

    def line(self, points, colour, thick=0.01, spread=0.05):
        cv2.polylines(
            self.pixels,
            [self._fixed(points)],
            False,
            self.tone(colour, spread),
            max(1, round(thick * self.size)),
            cv2.LINE_AA,
            shift=4,
        )

    def disc(self, x, y, radius, colour, spread=0.06, squash=1.0):
        axes = (max(1, round(radius * self.size * 16)), max(1, round(radius * squash * self.size * 16)))
        cv2.ellipse(
            self.pixels,
            (round(x * self.size * 16), round(y * self.size * 16)),
            axes,
            0,
            0,
            360,
            self.tone(colour, spread),
            -1,
            cv2.LINE_AA,
            shift=4,
        )

    def glow(self, x, y, radius, colour, strength=0.7):
        """Add soft light."""
        axis = np.arange(self.size, dtype=np.float32) / self.size
        across, down = (np.exp(-((axis - middle) ** 2) / (2 * radius**2)) for middle in (x, y))
        soft = down[:, None] * across[None] * np.float32(strength)
        lit = self.pixels + soft[..., None] * (np.float32(colour) * 255)
        self.pixels = np.minimum(lit, 255).astype(np.uint8)

    def leaves(self, colours, count, y0, y1, radius):
        for _ in range(count):
            colour = colours[self.rng.integers(len(colours))]
            self.disc(
                self.between(0, 1),
                self.between(y0, y1),
                radius * self.between(0.5, 1.4),
                colour,
                0.15,
                self.between(0.6, 1.2),
            )
