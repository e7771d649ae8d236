"""How each of the ten places is drawn: a handful of shapes that tell it apart at 128 pixels."""

import cv2
import numpy as np


class Sketch:
    """A uint8 RGB picture addressed in fractions of its size, colours in [0, 1], with its own random stream."""

    def __init__(self, size, rng):
        self.size, self.rng = size, rng
        self.pixels = np.zeros((size, size, 3), np.uint8)

    def tone(self, colour, spread=0.06):
        """A colour near the given one, as OpenCV takes it."""
        gain, (red, green, blue) = 1 + self.rng.normal(0, spread), self.rng.normal(0, spread / 3, 3)
        moved = (colour[0] * gain + red, colour[1] * gain + green, colour[2] * gain + blue)
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
        self.pixels[rows] = band[:rows.stop - rows.start, None]

    def poly(self, points, colour, spread=0.06):
        cv2.fillPoly(self.pixels, [self._fixed(points)], self.tone(colour, spread), cv2.LINE_AA, shift=4)

    def rect(self, x0, y0, x1, y1, colour, spread=0.06):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, spread)

    def line(self, points, colour, thick=0.01, spread=0.05):
        cv2.polylines(self.pixels, [self._fixed(points)], False, self.tone(colour, spread),
                      max(1, round(thick * self.size)), cv2.LINE_AA, shift=4)

    def disc(self, x, y, radius, colour, spread=0.06, squash=1.0):
        axes = (max(1, round(radius * self.size * 16)), max(1, round(radius * squash * self.size * 16)))
        cv2.ellipse(self.pixels, (round(x * self.size * 16), round(y * self.size * 16)), axes, 0, 0, 360,
                    self.tone(colour, spread), -1, cv2.LINE_AA, shift=4)

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
            self.disc(self.between(0, 1), self.between(y0, y1), radius * self.between(0.5, 1.4), colour, 0.15, self.between(.6, 1.2))


def forest(s):
    s.gradient((0.45, 0.58, 0.33), (0.16, 0.26, 0.11))
    s.leaves([(0.20, 0.38, 0.12), (0.30, 0.50, 0.16), (0.12, 0.25, 0.08), (0.62, 0.75, 0.38)], 70, -0.05, 0.8, 0.06)
    s.gradient((0.28, 0.30, 0.12), (0.22, 0.17, 0.09), s.between(0.72, 0.82), 1.0)
    for _ in range(int(s.rng.integers(6, 11))):
        x, wide, lean = s.between(-0.02, 1.02), s.between(0.012, 0.05), s.between(-0.03, 0.03)
        foot = s.between(0.78, 0.98)
        s.poly([(x - wide + lean, -0.02), (x + wide * 0.8 + lean, -0.02), (x + wide, foot), (x - wide, foot)], (0.22, 0.15, 0.09), 0.15)
        s.poly([(x + lean, -0.02), (x + wide * 0.7 + lean, -0.02), (x + wide * 0.8, foot), (x + wide * .2, foot)], (0.36, 0.27, 0.17), 0.1)
    s.leaves([(0.24, 0.45, 0.12), (0.36, 0.58, 0.18), (0.14, 0.30, 0.09)], 45, -0.05, 0.28, 0.05)
    s.glow(s.between(0, 1), s.between(0, 0.3), 0.15, (1.0, 0.95, 0.6), 0.5)


def _facade(s, side, horizon, near, colour):
    """A row of houses along one side that runs to the vanishing point, with windows."""
    edge, inner, x = (0.0, 0.42, -1) if side < 0 else (1.0, 0.58, 1)
    cuts = np.sort(np.append(s.rng.uniform(0.15, 0.85, 2), [0, 1]))
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        x0, x1 = edge + (inner - edge) * a, edge + (inner - edge) * b
        roof = near * s.between(0.75, 1.1)
        top = [horizon - roof * (1 - 0.8 * part) for part in (a, b)]
        foot = [horizon + 0.4 * (1 - part) for part in (a, b)]
        tone = np.asarray(colour[s.rng.integers(len(colour))])
        s.poly([(x0, top[0]), (x1, top[1]), (x1, foot[1]), (x0, foot[0])], tone, 0.1)
        for row in np.linspace(0.08, 0.8, 5):
            for col in np.linspace(0.12, 0.78, 4):
                p, q = col, col + 0.13
                lower, upper = row + 0.09, row
                corner = [(x0 + (x1 - x0) * m, (top[0] + (top[1] - top[0]) * m) * (1 - n) + (foot[0] + (foot[1] - foot[0]) * m) * n)
                          for m, n in ((p, upper), (q, upper), (q, lower), (p, lower))]
                s.poly(corner, (0.25, 0.32, 0.40) if s.rng.random() < 0.75 else (0.9, 0.85, 0.6), 0.15)


def city_street(s):
    horizon = s.between(0.5, 0.6)
    s.gradient((0.55, 0.70, 0.88), (0.85, 0.88, 0.90), 0, horizon)
    s.gradient((0.38, 0.38, 0.40), (0.27, 0.27, 0.29), horizon, 1)
    tones = [(0.62, 0.45, 0.36), (0.70, 0.65, 0.56), (0.52, 0.54, 0.58), (0.78, 0.72, 0.62), (0.45, 0.33, 0.28)]
    _facade(s, -1, horizon, s.between(0.5, 0.62), tones)
    _facade(s, 1, horizon, s.between(0.5, 0.62), tones)
    s.poly([(0.0, horizon + 0.4), (0.44, horizon + 0.02), (0.47, horizon + 0.02), (0.15, 1.0), (0, 1)], (0.60, 0.58, 0.55))
    s.poly([(1.0, horizon + 0.4), (0.56, horizon + 0.02), (0.53, horizon + 0.02), (0.85, 1.0), (1, 1)], (0.60, 0.58, 0.55))
    for x, y, wide in ((s.between(0.12, 0.25), s.between(0.8, 0.88), 0.12), (s.between(0.76, 0.9), s.between(0.75, 0.85), 0.11)):
        paint = [(0.75, 0.12, 0.1), (0.95, 0.78, 0.1), (0.15, 0.25, 0.55), (0.9, 0.9, 0.9), (0.08, 0.08, 0.09)][s.rng.integers(5)]
        s.rect(x - wide, y - 0.05, x + wide, y + 0.04, paint)
        s.rect(x - wide * 0.65, y - 0.11, x + wide * 0.65, y - 0.04, np.asarray(paint) * 0.55 + 0.15)
        s.disc(x - wide * 0.65, y + 0.04, 0.03, (0.05, 0.05, 0.05))
        s.disc(x + wide * 0.65, y + 0.04, 0.03, (0.05, 0.05, 0.05))


def beach(s):
    horizon, shore = s.between(0.42, 0.54), s.between(0.66, 0.76)
    s.gradient((0.30, 0.58, 0.92), (0.78, 0.90, 0.97), 0, horizon)
    for _ in range(int(s.rng.integers(2, 6))):
        x, y = s.between(0, 1), s.between(0.05, horizon - 0.12)
        for _ in range(4):
            s.disc(x + s.between(-0.1, 0.1), y + s.between(-0.012, 0.012), s.between(0.03, 0.07), (0.98, 0.98, 0.99), 0.02, 0.4)
    s.gradient((0.10, 0.42, 0.66), (0.25, 0.72, 0.75), horizon, shore)
    s.gradient((0.88, 0.77, 0.55), (0.93, 0.84, 0.64), shore, 1)
    wave = np.linspace(-0.02, 1.02, 12)
    for y, thick in ((shore, 0.025), (shore - 0.07, 0.012), (shore - 0.13, 0.008)):
        s.line(np.stack([wave, y + 0.012 * np.sin(wave * 9 + s.between(0, 6))], -1), (0.97, 0.98, 0.98), thick, 0.02)
    side = s.rng.choice([0.14, 0.86]) + s.between(-0.06, 0.06)
    if s.rng.random() < 0.5:
        _palm(s, side)
    else:
        hue = [(0.9, 0.2, 0.15), (0.95, 0.75, 0.1), (0.1, 0.4, 0.75)][s.rng.integers(3)]
        s.line([(side, 0.45), (side, 0.9)], (0.9, 0.9, 0.88), 0.015)
        for k in range(4):
            s.poly([(side, 0.4), (side - 0.18 + 0.09 * k, 0.55), (side - 0.09 + 0.09 * k, 0.55)], hue if k % 2 else (0.97, 0.97, 0.95), 0.03)


def _palm(s, x):
    top = (x + s.between(-0.07, 0.07), s.between(0.15, 0.26))
    s.line([(x, 0.95), (x + 0.3 * (top[0] - x), 0.6), top], (0.42, 0.30, 0.18), 0.035)
    for angle in np.linspace(0.1, 2 * np.pi, 9):
        tip = (top[0] + 0.2 * np.cos(angle), top[1] + 0.07 + 0.11 * np.sin(angle))
        mid = (top[0] + 0.11 * np.cos(angle), top[1] - 0.02 + 0.08 * np.sin(angle))
        s.line([top, mid, tip], (0.14, 0.42, 0.15), 0.028, 0.15)


def office(s):
    s.gradient((0.86, 0.85, 0.81), (0.78, 0.76, 0.72))
    s.rect(0, 0, 1, 0.09, (0.94, 0.94, 0.93), 0.02)
    for x in (s.between(0.1, 0.2), s.between(0.75, 0.85)):
        s.rect(x - 0.1, 0.02, x + 0.1, 0.055, (1.0, 1.0, 0.97), 0.01)
    left = s.rng.random() < 0.5
    window, shelf = (0.02, 0.66) if left else (0.62, 0.02)
    s.rect(window, 0.14, window + 0.36, 0.56, (0.70, 0.84, 0.95))
    for y in np.arange(0.16, 0.56, 0.035):
        s.line([(window, y), (window + 0.36, y)], (0.93, 0.93, 0.92), 0.01)
    for row in range(3):
        y = 0.2 + 0.15 * row
        x = shelf + 0.01
        while x < shelf + 0.29:
            wide = s.between(0.018, 0.035)
            hue = [(0.75, 0.2, 0.18), (0.2, 0.35, 0.65), (0.2, 0.5, 0.35), (0.9, 0.8, 0.4), (0.25, 0.25, 0.28), (0.9, 0.9, 0.9)]
            s.rect(x, y + s.between(0, 0.03), x + wide, y + 0.11, hue[s.rng.integers(6)], 0.1)
            x += wide + 0.004
        s.rect(shelf, y + 0.11, shelf + 0.32, y + 0.13, (0.52, 0.37, 0.24))
    s.rect(0, s.between(0.74, 0.8), 1, 1.0, (0.60, 0.45, 0.30))
    for x in (s.between(0.08, 0.16), s.between(0.84, 0.92)):
        s.rect(x - 0.1, 0.6, x + 0.1, 0.75, (0.06, 0.06, 0.07))
        s.rect(x - 0.088, 0.612, x + 0.088, 0.735, (0.35, 0.55, 0.80), 0.15)
        s.rect(x - 0.02, 0.75, x + 0.02, 0.8, (0.15, 0.15, 0.16))


def bus(s):
    s.gradient((0.80, 0.80, 0.78), (0.42, 0.42, 0.44))
    s.rect(0.3, 0.16, 0.7, 0.62, (0.60, 0.70, 0.78))
    hue = [(0.12, 0.25, 0.60), (0.62, 0.12, 0.15), (0.10, 0.42, 0.40), (0.38, 0.18, 0.48)][s.rng.integers(4)]
    pole = [(0.95, 0.78, 0.08), (0.92, 0.42, 0.06), (0.78, 0.80, 0.82)][s.rng.integers(3)]
    for side in (-1, 1):
        def at(depth, y, side=side):
            scale = 1 - 0.62 * depth
            return 0.5 + side * 0.52 * scale, 0.42 + (y - 0.42) * scale
        s.poly([at(0, -0.3), at(1, -0.3), at(1, 0.62), at(0, 0.62)], (0.86, 0.86, 0.84))
        for k in range(3):
            a, b = k / 3 + 0.03, (k + 1) / 3 - 0.02
            s.poly([at(a, 0.06), at(b, 0.06), at(b, 0.56), at(a, 0.56)], (0.10, 0.11, 0.12))
            s.poly([at(a + .02, 0.09), at(b - .02, 0.09), at(b - .02, 0.53), at(a + .02, 0.53)], (0.62, 0.80, 0.90), 0.12)
            s.poly([at(a + .02, 0.38), at(b - .02, 0.38), at(b - .02, 0.53), at(a + .02, 0.53)], (0.40, 0.50, 0.42), 0.15)
        s.poly([at(0, 0.64), at(1, 0.64), at(1, 1.3), at(0, 1.3)], (0.35, 0.36, 0.38))
        for k in (0.66, 0.33, 0.0):
            x, y = at(k, 0.72)
            wide = 0.17 * (1 - 0.55 * k)
            s.rect(x - side * wide * 0.1, y - wide * 0.35, x - side * wide, y + wide * 2, hue, 0.1)
            s.rect(x - side * wide * 0.25, y - wide * 0.75, x - side * wide * 0.85, y - wide * 0.25, np.asarray(hue) * 0.75, 0.1)
        for k in (0.15, 0.55):
            x = at(k, 0)[0] - side * 0.1
            s.line([(x, 0), (x, 1)], pole, 0.018)
    s.line([(0.0, 0.06), (0.36, 0.22)], pole, 0.016)
    s.line([(1.0, 0.06), (0.64, 0.22)], pole, 0.016)
    s.rect(0.4, 0.0, 0.6, 0.16, (1.0, 1.0, 0.96), 0.02)


def laboratory(s):
    s.gradient((0.86, 0.92, 0.95), (0.74, 0.83, 0.88))
    s.rect(0.0, 0.0, 1.0, 0.07, (0.97, 0.99, 1.0), 0.01)
    hues = [(0.1, 0.55, 0.9), (0.1, 0.75, 0.4), (0.95, 0.6, 0.1), (0.85, 0.15, 0.3), (0.6, 0.25, 0.8), (0.95, 0.9, 0.3)]
    for y in (0.3, 0.52):
        s.rect(0, y, 1, y + 0.022, (0.55, 0.62, 0.67))
        for x in np.arange(0.04, 1.0, 0.085):
            if s.rng.random() < 0.85:
                _flask(s, x + s.between(-0.015, 0.015), y, s.between(0.10, 0.16), hues[s.rng.integers(6)])
    s.rect(0, s.between(0.74, 0.78), 1, 0.81, (0.97, 0.98, 0.98), 0.01)
    s.rect(0, 0.81, 1, 1, (0.62, 0.70, 0.76))
    x = s.rng.choice([0.13, 0.87]) + s.between(-0.03, 0.03)
    s.rect(x - 0.08, 0.74, x + 0.08, 0.77, (0.12, 0.13, 0.15))
    s.line([(x + 0.05, 0.75), (x + 0.06, 0.64), (x - 0.01, 0.6)], (0.2, 0.22, 0.25), 0.03)
    s.line([(x - 0.05, 0.55), (x, 0.69)], (0.12, 0.13, 0.15), 0.04)


def _flask(s, x, foot, tall, hue):
    if s.rng.random() < 0.5:
        s.poly([(x - 0.012, foot - tall), (x + 0.012, foot - tall), (x + 0.012, foot - tall * 0.6), (x + 0.042, foot), (x - 0.042, foot), (x - 0.012, foot - tall * 0.6)], (0.88, 0.94, 0.97), 0.02)
        s.poly([(x - 0.022, foot - tall * 0.42), (x + 0.022, foot - tall * 0.42), (x + 0.04, foot), (x - 0.04, foot)], hue, 0.1)
    else:
        s.rect(x - 0.026, foot - tall * 0.8, x + 0.026, foot, hue, 0.1)
        s.rect(x - 0.014, foot - tall, x + 0.014, foot - tall * 0.8, (0.95, 0.95, 0.95), 0.05)


def factory(s):
    s.gradient((0.20, 0.20, 0.21), (0.34, 0.32, 0.29))
    for x in np.arange(-0.1, 1.1, 0.2):
        s.line([(x, 0.0), (x + 0.1, 0.14), (x + 0.2, 0.0)], (0.42, 0.40, 0.37), 0.016)
    s.line([(0, 0.14), (1, 0.14)], (0.45, 0.42, 0.38), 0.022)
    for y, hue in ((0.22, (0.62, 0.62, 0.62)), (0.29, (0.70, 0.42, 0.20)), (0.35, (0.25, 0.45, 0.55))):
        s.line([(0, y), (s.between(0.2, 0.8), y), (s.between(0.2, 0.8), y + s.between(-0.05, 0.3))], hue, s.between(0.018, 0.035))
    s.gradient((0.42, 0.40, 0.37), (0.50, 0.48, 0.44), 0.76, 1)
    for x in (s.between(0.06, 0.18), s.between(0.8, 0.95)):
        hue = [(0.16, 0.42, 0.28), (0.25, 0.38, 0.55), (0.55, 0.56, 0.55), (0.75, 0.45, 0.10)][s.rng.integers(4)]
        top = s.between(0.42, 0.52)
        s.rect(x - 0.17, top, x + 0.17, 0.86, hue)
        s.rect(x - 0.12, top + 0.06, x + 0.04, top + 0.2, (0.10, 0.10, 0.11))
        s.disc(x + 0.1, top + 0.1, 0.035, (0.75, 0.73, 0.70))
        s.disc(x + 0.1, top + 0.1, 0.018, (0.15, 0.15, 0.15))
        for k in range(9):
            s.poly([(x - 0.17 + 0.038 * k, 0.80), (x - 0.15 + 0.038 * k, 0.80), (x - 0.165 + 0.038 * k, 0.86), (x - 0.185 + 0.038 * k, 0.86)], (0.95, 0.78, 0.08), 0.02)
    for x in (s.between(0.1, 0.3), s.between(0.7, 0.9)):
        s.poly([(x - 0.03, 0.12), (x + 0.03, 0.12), (x + 0.06, 0.18), (x - 0.06, 0.18)], (0.3, 0.3, 0.3))
        s.glow(x, 0.19, 0.05, (1.0, 0.85, 0.5), 0.9)
    s.line([(0.0, 0.93), (1.0, 0.9)], (0.95, 0.78, 0.10), 0.022)


def construction_site(s):
    s.gradient((0.56, 0.72, 0.88), (0.85, 0.87, 0.86))
    left, right = (0.0, s.between(0.36, 0.46)) if s.rng.random() < 0.5 else (s.between(0.56, 0.64), 1.0)
    for y in np.arange(s.between(0.14, 0.2), 0.8, 0.15):
        s.rect(left, y, right, y + 0.15, (0.30, 0.29, 0.28), 0.1)
        s.rect(left, y, right, y + 0.035, (0.70, 0.68, 0.64))
    for x in np.linspace(left + 0.01, right - 0.03, 4):
        s.rect(x, 0.14, x + 0.028, 0.8, (0.64, 0.62, 0.58))
    _crane(s, 0.86 if left == 0 else 0.14, 1 if left == 0 else -1)
    s.gradient((0.62, 0.48, 0.32), (0.50, 0.38, 0.25), s.between(0.74, 0.8), 1)
    for x in (0.02, 0.7):
        x += s.between(0, 0.04)
        s.rect(x, 0.76, x + 0.26, 0.82, (0.97, 0.97, 0.95), 0.02)
        for k in range(4):
            s.poly([(x + 0.065 * k, 0.82), (x + 0.03 + 0.065 * k, 0.76), (x + 0.06 + 0.065 * k, 0.76), (x + 0.03 + 0.065 * k, 0.82)], (0.92, 0.30, 0.08), 0.03)
    for x in (s.between(0.04, 0.16), s.between(0.84, 0.96)):
        s.poly([(x - 0.045, 0.97), (x + 0.045, 0.97), (x + 0.01, 0.85), (x - 0.01, 0.85)], (0.96, 0.42, 0.06))
        s.line([(x - 0.025, 0.92), (x + 0.025, 0.92)], (0.97, 0.97, 0.97), 0.018)


def _crane(s, x, way):
    hue, top = (0.96, 0.72, 0.06), s.between(0.12, 0.2)
    for shift in (-0.022, 0.022):
        s.line([(x + shift, top), (x + shift, 0.8)], hue, 0.012)
    for y in np.arange(top, 0.78, 0.055):
        s.line([(x - 0.022, y), (x + 0.022, y + 0.055)], hue, 0.008)
    end = x - way * 0.6
    s.line([(x + way * 0.14, top), (end, top)], hue, 0.02)
    s.line([(x + way * 0.12, top), (x, top - 0.09), (end, top)], hue, 0.009)
    s.line([(x - way * 0.3, top), (x - way * 0.3, top + 0.14)], (0.2, 0.2, 0.2), 0.008)


def hospital(s):
    s.gradient((0.84, 0.93, 0.90), (0.78, 0.88, 0.86))
    s.rect(0, 0.70, 1, 0.73, (0.50, 0.72, 0.70))
    s.gradient((0.74, 0.78, 0.78), (0.80, 0.83, 0.83), 0.84, 1)
    left = s.rng.random() < 0.5
    curtain, other = (0.0, 0.82) if left else (0.72, 0.18)
    for k in range(8):
        s.rect(curtain + 0.035 * k, 0.1, curtain + 0.035 * (k + 1), 0.82, (0.35, 0.66, 0.72) if k % 2 else (0.46, 0.76, 0.80), 0.03)
    s.line([(curtain, 0.1), (curtain + 0.28, 0.1)], (0.6, 0.62, 0.63), 0.015)
    s.rect(other - 0.11, 0.26, other + 0.11, 0.42, (0.12, 0.14, 0.16))
    wave = np.linspace(-0.09, 0.09, 13)
    beat = np.float64([0, 0, 0, -0.01, 0.05, -0.05, 0.01, 0, 0, -0.02, 0.045, -0.02, 0])
    s.line(np.stack([other + wave, 0.32 + beat], -1), (0.2, 0.95, 0.4), 0.01)
    s.line([(other - 0.09, 0.39), (other + 0.09, 0.385)], (0.95, 0.85, 0.2), 0.008)
    x = 0.4 if left else 0.6
    s.rect(x - 0.055, 0.055, x + 0.055, 0.165, (0.98, 0.98, 0.98), 0.01)
    s.rect(x - 0.017, 0.07, x + 0.017, 0.15, (0.85, 0.08, 0.10), 0.03)
    s.rect(x - 0.042, 0.094, x + 0.042, 0.126, (0.85, 0.08, 0.10), 0.03)
    s.rect(other - 0.22, 0.68, other + 0.22, 0.9, (0.97, 0.98, 0.99), 0.01)
    s.rect(other - 0.2, 0.62, other - 0.03, 0.71, (1.0, 1.0, 1.0), 0.01)
    s.line([(other - 0.22, 0.66), (other + 0.22, 0.66)], (0.62, 0.66, 0.68), 0.016)
    for k in range(6):
        s.line([(other - 0.22 + 0.088 * k, 0.66), (other - 0.22 + 0.088 * k, 0.78)], (0.62, 0.66, 0.68), 0.009)
    drip = other + (0.15 if left else -0.15)
    s.line([(drip, 0.16), (drip, 0.85)], (0.6, 0.62, 0.64), 0.012)
    s.rect(drip - 0.025, 0.17, drip + 0.025, 0.27, (0.80, 0.90, 0.96))


def night_club(s):
    s.gradient((0.07, 0.02, 0.13), (0.15, 0.03, 0.22))
    hues = [(0.95, 0.1, 0.65), (0.25, 0.2, 1.0), (0.1, 0.85, 0.95), (0.6, 0.1, 0.95), (0.1, 0.95, 0.4)]
    base = s.pixels.astype(np.float32)
    for x in s.rng.uniform(0, 1, 7):
        hue, aim, wide = hues[s.rng.integers(5)], x + s.between(-0.5, 0.5), s.between(0.05, 0.13)
        s.pixels = np.zeros_like(s.pixels)
        s.poly([(x - 0.008, -0.02), (x + 0.008, -0.02), (aim + wide, 1.0), (aim - wide, 1.0)], np.asarray(hue) * 0.42, 0.2)
        base += s.pixels
    s.pixels = np.minimum(base, 255).astype(np.uint8)
    for _ in range(int(s.rng.integers(8, 16))):
        s.glow(s.between(0, 1), s.between(0, 0.7), s.between(0.015, 0.04), hues[s.rng.integers(5)], s.between(0.4, 0.9))
    if s.rng.random() < 0.6:
        x = s.rng.choice([0.15, 0.85])
        s.disc(x, 0.14, 0.075, (0.62, 0.62, 0.72))
        for _ in range(22):
            a, r = s.between(0, 6.28), s.between(0, 0.065)
            s.rect(x + r * np.cos(a), 0.14 + r * np.sin(a), x + r * np.cos(a) + 0.016, 0.156 + r * np.sin(a), (0.95, 0.9, 1.0), 0.3)
    for x in np.arange(0.0, 1.05, 0.13):
        y = s.between(0.68, 0.78)
        s.disc(x, y, 0.042, (0.03, 0.01, 0.05), squash=1.2)
        s.poly([(x - 0.1, 1), (x - 0.07, y + 0.09), (x, y + 0.05), (x + 0.07, y + 0.09), (x + 0.1, 1)], (0.03, 0.01, 0.05))
        if s.rng.random() < 0.4:
            s.line([(x + 0.06, y + 0.1), (x + 0.09, y - 0.12)], (0.03, 0.01, 0.05), 0.03)


PLACES = {
    "forest": forest, "city street": city_street, "beach": beach, "office": office, "bus": bus,
    "laboratory": laboratory, "factory": factory, "construction site": construction_site, "hospital": hospital,
    "night club": night_club,
}
