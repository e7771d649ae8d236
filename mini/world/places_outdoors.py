"""How the places under the sky are drawn: a handful of shapes that tell each apart at 128 pixels."""

import numpy as np


def forest(s):
    s.gradient((0.45, 0.58, 0.33), (0.16, 0.26, 0.11))
    s.leaves(
        [(0.20, 0.38, 0.12), (0.30, 0.50, 0.16), (0.12, 0.25, 0.08), (0.62, 0.75, 0.38)], 70, -0.05, 0.8, 0.06
    )
    s.gradient((0.28, 0.30, 0.12), (0.22, 0.17, 0.09), s.between(0.72, 0.82), 1.0)
    for _ in range(int(s.rng.integers(6, 11))):
        x, wide, lean = s.between(-0.02, 1.02), s.between(0.012, 0.05), s.between(-0.03, 0.03)
        foot = s.between(0.78, 0.98)
        s.poly(
            [(x - wide + lean, -0.02), (x + wide * 0.8 + lean, -0.02), (x + wide, foot), (x - wide, foot)],
            (0.22, 0.15, 0.09),
            0.15,
        )
        s.poly(
            [
                (x + lean, -0.02),
                (x + wide * 0.7 + lean, -0.02),
                (x + wide * 0.8, foot),
                (x + wide * 0.2, foot),
            ],
            (0.36, 0.27, 0.17),
            0.1,
        )
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
                corner = [
                    (
                        x0 + (x1 - x0) * m,
                        (top[0] + (top[1] - top[0]) * m) * (1 - n) + (foot[0] + (foot[1] - foot[0]) * m) * n,
                    )
                    for m, n in ((p, upper), (q, upper), (q, lower), (p, lower))
                ]
                s.poly(corner, (0.25, 0.32, 0.40) if s.rng.random() < 0.75 else (0.9, 0.85, 0.6), 0.15)


def city_street(s):
    horizon = s.between(0.5, 0.6)
    s.gradient((0.55, 0.70, 0.88), (0.85, 0.88, 0.90), 0, horizon)
    s.gradient((0.38, 0.38, 0.40), (0.27, 0.27, 0.29), horizon, 1)
    tones = [
        (0.62, 0.45, 0.36),
        (0.70, 0.65, 0.56),
        (0.52, 0.54, 0.58),
        (0.78, 0.72, 0.62),
        (0.45, 0.33, 0.28),
    ]
    _facade(s, -1, horizon, s.between(0.5, 0.62), tones)
    _facade(s, 1, horizon, s.between(0.5, 0.62), tones)
    s.poly(
        [(0.0, horizon + 0.4), (0.44, horizon + 0.02), (0.47, horizon + 0.02), (0.15, 1.0), (0, 1)],
        (0.60, 0.58, 0.55),
    )
    s.poly(
        [(1.0, horizon + 0.4), (0.56, horizon + 0.02), (0.53, horizon + 0.02), (0.85, 1.0), (1, 1)],
        (0.60, 0.58, 0.55),
    )
    for x, y, wide in (
        (s.between(0.12, 0.25), s.between(0.8, 0.88), 0.12),
        (s.between(0.76, 0.9), s.between(0.75, 0.85), 0.11),
    ):
        paint = [
            (0.75, 0.12, 0.1),
            (0.95, 0.78, 0.1),
            (0.15, 0.25, 0.55),
            (0.9, 0.9, 0.9),
            (0.08, 0.08, 0.09),
        ][s.rng.integers(5)]
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
            s.disc(
                x + s.between(-0.1, 0.1),
                y + s.between(-0.012, 0.012),
                s.between(0.03, 0.07),
                (0.98, 0.98, 0.99),
                0.02,
                0.4,
            )
    s.gradient((0.10, 0.42, 0.66), (0.25, 0.72, 0.75), horizon, shore)
    s.gradient((0.88, 0.77, 0.55), (0.93, 0.84, 0.64), shore, 1)
    wave = np.linspace(-0.02, 1.02, 12)
    for y, thick in ((shore, 0.025), (shore - 0.07, 0.012), (shore - 0.13, 0.008)):
        s.line(
            np.stack([wave, y + 0.012 * np.sin(wave * 9 + s.between(0, 6))], -1),
            (0.97, 0.98, 0.98),
            thick,
            0.02,
        )
    side = s.rng.choice([0.14, 0.86]) + s.between(-0.06, 0.06)
    if s.rng.random() < 0.5:
        _palm(s, side)
    else:
        hue = [(0.9, 0.2, 0.15), (0.95, 0.75, 0.1), (0.1, 0.4, 0.75)][s.rng.integers(3)]
        s.line([(side, 0.45), (side, 0.9)], (0.9, 0.9, 0.88), 0.015)
        for k in range(4):
            s.poly(
                [(side, 0.4), (side - 0.18 + 0.09 * k, 0.55), (side - 0.09 + 0.09 * k, 0.55)],
                hue if k % 2 else (0.97, 0.97, 0.95),
                0.03,
            )


def _palm(s, x):
    top = (x + s.between(-0.07, 0.07), s.between(0.15, 0.26))
    s.line([(x, 0.95), (x + 0.3 * (top[0] - x), 0.6), top], (0.42, 0.30, 0.18), 0.035)
    for angle in np.linspace(0.1, 2 * np.pi, 9):
        tip = (top[0] + 0.2 * np.cos(angle), top[1] + 0.07 + 0.11 * np.sin(angle))
        mid = (top[0] + 0.11 * np.cos(angle), top[1] - 0.02 + 0.08 * np.sin(angle))
        s.line([top, mid, tip], (0.14, 0.42, 0.15), 0.028, 0.15)


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
            s.poly(
                [
                    (x + 0.065 * k, 0.82),
                    (x + 0.03 + 0.065 * k, 0.76),
                    (x + 0.06 + 0.065 * k, 0.76),
                    (x + 0.03 + 0.065 * k, 0.82),
                ],
                (0.92, 0.30, 0.08),
                0.03,
            )
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
