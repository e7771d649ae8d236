"""stub"""
from dataclasses import dataclass
import cv2
import numpy as np
from mini.identity import sample_identity, Identity, View
from mini.views import sample_view

@dataclass(frozen=True)
class Rendering:
    image: np.ndarray
    landmarks: np.ndarray
    yaw: float
    pitch: float
    roll: float
    box: np.ndarray
    attributes: dict

def render(identity, view, size=128):
    image = np.full((size, size, 3), 90, np.uint8)
    c = (int(size * (.5 - view.yaw / 300)), size // 2)
    skin = tuple(int(255 * v) for v in identity.skin)
    cv2.ellipse(image, c, (int(size * .22), int(size * .3)), view.roll, 0, 360, skin, -1, cv2.LINE_AA)
    lm = np.float32([[-.1, -.02], [.1, -.02], [-view.yaw / 400, .08], [-.08, .16], [.08, .16]]) * size + np.float32(c)
    for p in lm:
        cv2.circle(image, tuple(int(v) for v in p), 2, (40, 20, 20), -1)
    box = np.float32([c[0] - .22 * size, c[1] - .25 * size, c[0] + .22 * size, c[1] + .3 * size])
    return Rendering(image, lm, view.yaw, view.pitch, view.roll, box, describe(identity, view))

def describe(identity, view):
    return dict(gender=identity.gender, age=identity.age, background=view.background, yaw=view.yaw,
                pose="side-portrait" if abs(view.yaw) >= 25 else "portrait", expression=view.expression,
                glasses=identity.glasses, beard=identity.beard, setting=view.setting)

def render_background(name, seed, size=128):
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
