"""How the places under a roof are drawn: a handful of shapes that tell each apart at 128 pixels."""

import numpy as np


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
            hue = [
                (0.75, 0.2, 0.18),
                (0.2, 0.35, 0.65),
                (0.2, 0.5, 0.35),
                (0.9, 0.8, 0.4),
                (0.25, 0.25, 0.28),
                (0.9, 0.9, 0.9),
            ]
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
            s.poly(
                [at(a + 0.02, 0.09), at(b - 0.02, 0.09), at(b - 0.02, 0.53), at(a + 0.02, 0.53)],
                (0.62, 0.80, 0.90),
                0.12,
            )
            s.poly(
                [at(a + 0.02, 0.38), at(b - 0.02, 0.38), at(b - 0.02, 0.53), at(a + 0.02, 0.53)],
                (0.40, 0.50, 0.42),
                0.15,
            )
        s.poly([at(0, 0.64), at(1, 0.64), at(1, 1.3), at(0, 1.3)], (0.35, 0.36, 0.38))
        for k in (0.66, 0.33, 0.0):
            x, y = at(k, 0.72)
            wide = 0.17 * (1 - 0.55 * k)
            s.rect(x - side * wide * 0.1, y - wide * 0.35, x - side * wide, y + wide * 2, hue, 0.1)
            s.rect(
                x - side * wide * 0.25,
                y - wide * 0.75,
                x - side * wide * 0.85,
                y - wide * 0.25,
                np.asarray(hue) * 0.75,
                0.1,
            )
        for k in (0.15, 0.55):
            x = at(k, 0)[0] - side * 0.1
            s.line([(x, 0), (x, 1)], pole, 0.018)
    s.line([(0.0, 0.06), (0.36, 0.22)], pole, 0.016)
    s.line([(1.0, 0.06), (0.64, 0.22)], pole, 0.016)
    s.rect(0.4, 0.0, 0.6, 0.16, (1.0, 1.0, 0.96), 0.02)


def laboratory(s):
    s.gradient((0.86, 0.92, 0.95), (0.74, 0.83, 0.88))
    s.rect(0.0, 0.0, 1.0, 0.07, (0.97, 0.99, 1.0), 0.01)
    hues = [
        (0.1, 0.55, 0.9),
        (0.1, 0.75, 0.4),
        (0.95, 0.6, 0.1),
        (0.85, 0.15, 0.3),
        (0.6, 0.25, 0.8),
        (0.95, 0.9, 0.3),
    ]
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
        s.poly(
            [
                (x - 0.012, foot - tall),
                (x + 0.012, foot - tall),
                (x + 0.012, foot - tall * 0.6),
                (x + 0.042, foot),
                (x - 0.042, foot),
                (x - 0.012, foot - tall * 0.6),
            ],
            (0.88, 0.94, 0.97),
            0.02,
        )
        s.poly(
            [
                (x - 0.022, foot - tall * 0.42),
                (x + 0.022, foot - tall * 0.42),
                (x + 0.04, foot),
                (x - 0.04, foot),
            ],
            hue,
            0.1,
        )
    else:
        s.rect(x - 0.026, foot - tall * 0.8, x + 0.026, foot, hue, 0.1)
        s.rect(x - 0.014, foot - tall, x + 0.014, foot - tall * 0.8, (0.95, 0.95, 0.95), 0.05)


def factory(s):
    s.gradient((0.20, 0.20, 0.21), (0.34, 0.32, 0.29))
    for x in np.arange(-0.1, 1.1, 0.2):
        s.line([(x, 0.0), (x + 0.1, 0.14), (x + 0.2, 0.0)], (0.42, 0.40, 0.37), 0.016)
    s.line([(0, 0.14), (1, 0.14)], (0.45, 0.42, 0.38), 0.022)
    for y, hue in ((0.22, (0.62, 0.62, 0.62)), (0.29, (0.70, 0.42, 0.20)), (0.35, (0.25, 0.45, 0.55))):
        s.line(
            [(0, y), (s.between(0.2, 0.8), y), (s.between(0.2, 0.8), y + s.between(-0.05, 0.3))],
            hue,
            s.between(0.018, 0.035),
        )
    s.gradient((0.42, 0.40, 0.37), (0.50, 0.48, 0.44), 0.76, 1)
    for x in (s.between(0.06, 0.18), s.between(0.8, 0.95)):
        hue = [(0.16, 0.42, 0.28), (0.25, 0.38, 0.55), (0.55, 0.56, 0.55), (0.75, 0.45, 0.10)][
            s.rng.integers(4)
        ]
        top = s.between(0.42, 0.52)
        s.rect(x - 0.17, top, x + 0.17, 0.86, hue)
        s.rect(x - 0.12, top + 0.06, x + 0.04, top + 0.2, (0.10, 0.10, 0.11))
        s.disc(x + 0.1, top + 0.1, 0.035, (0.75, 0.73, 0.70))
        s.disc(x + 0.1, top + 0.1, 0.018, (0.15, 0.15, 0.15))
        for k in range(9):
            s.poly(
                [
                    (x - 0.17 + 0.038 * k, 0.80),
                    (x - 0.15 + 0.038 * k, 0.80),
                    (x - 0.165 + 0.038 * k, 0.86),
                    (x - 0.185 + 0.038 * k, 0.86),
                ],
                (0.95, 0.78, 0.08),
                0.02,
            )
    for x in (s.between(0.1, 0.3), s.between(0.7, 0.9)):
        s.poly([(x - 0.03, 0.12), (x + 0.03, 0.12), (x + 0.06, 0.18), (x - 0.06, 0.18)], (0.3, 0.3, 0.3))
        s.glow(x, 0.19, 0.05, (1.0, 0.85, 0.5), 0.9)
    s.line([(0.0, 0.93), (1.0, 0.9)], (0.95, 0.78, 0.10), 0.022)


def hospital(s):
    s.gradient((0.84, 0.93, 0.90), (0.78, 0.88, 0.86))
    s.rect(0, 0.70, 1, 0.73, (0.50, 0.72, 0.70))
    s.gradient((0.74, 0.78, 0.78), (0.80, 0.83, 0.83), 0.84, 1)
    left = s.rng.random() < 0.5
    curtain, other = (0.0, 0.82) if left else (0.72, 0.18)
    for k in range(8):
        s.rect(
            curtain + 0.035 * k,
            0.1,
            curtain + 0.035 * (k + 1),
            0.82,
            (0.35, 0.66, 0.72) if k % 2 else (0.46, 0.76, 0.80),
            0.03,
        )
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
        s.line(
            [(other - 0.22 + 0.088 * k, 0.66), (other - 0.22 + 0.088 * k, 0.78)], (0.62, 0.66, 0.68), 0.009
        )
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
        s.poly(
            [(x - 0.008, -0.02), (x + 0.008, -0.02), (aim + wide, 1.0), (aim - wide, 1.0)],
            np.asarray(hue) * 0.42,
            0.2,
        )
        base += s.pixels
    s.pixels = np.minimum(base, 255).astype(np.uint8)
    for _ in range(int(s.rng.integers(8, 16))):
        s.glow(
            s.between(0, 1),
            s.between(0, 0.7),
            s.between(0.015, 0.04),
            hues[s.rng.integers(5)],
            s.between(0.4, 0.9),
        )
    if s.rng.random() < 0.6:
        x = s.rng.choice([0.15, 0.85])
        s.disc(x, 0.14, 0.075, (0.62, 0.62, 0.72))
        for _ in range(22):
            a, r = s.between(0, 6.28), s.between(0, 0.065)
            s.rect(
                x + r * np.cos(a),
                0.14 + r * np.sin(a),
                x + r * np.cos(a) + 0.016,
                0.156 + r * np.sin(a),
                (0.95, 0.9, 1.0),
                0.3,
            )
    for x in np.arange(0.0, 1.05, 0.13):
        y = s.between(0.68, 0.78)
        s.disc(x, y, 0.042, (0.03, 0.01, 0.05), squash=1.2)
        s.poly(
            [(x - 0.1, 1), (x - 0.07, y + 0.09), (x, y + 0.05), (x + 0.07, y + 0.09), (x + 0.1, 1)],
            (0.03, 0.01, 0.05),
        )
        if s.rng.random() < 0.4:
            s.line([(x + 0.06, y + 0.1), (x + 0.09, y - 0.12)], (0.03, 0.01, 0.05), 0.03)
