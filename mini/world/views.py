"""Sampling of views: constrained lab photos of one sitting, or unconstrained photos in the wild."""

from dataclasses import fields

import numpy as np

from mini.world.backgrounds import BACKGROUNDS, STUDIO, light_tint
from mini.world.identity import View
from utils.errors import UserError
from utils.seeding import derive_seed

PORTRAIT_MAX_YAW = 20.0
SIDE_MIN_YAW = 25.0
LAB_YAWS = (-45.0, -30.0, -15.0, 0.0, 0.0, 15.0, 30.0, 45.0)
CLOTHING = ("t-shirt", "v-neck", "shirt", "suit", "hoodie", "striped")
LAB_CLOTH = (0.30, 0.32, 0.36)
EXPRESSIONS = {
    "neutral": dict(smile=(-0.08, 0.12), mouth_open=(0.0, 0.03), brow_raise=(-0.1, 0.1)),
    "smile": dict(smile=(0.45, 0.9), mouth_open=(0.0, 0.1), brow_raise=(0.0, 0.3)),
    "laugh": dict(smile=(0.75, 1.0), mouth_open=(0.4, 0.85), brow_raise=(0.1, 0.5)),
    "surprise": dict(smile=(-0.1, 0.1), mouth_open=(0.5, 1.0), brow_raise=(0.6, 1.0)),
    "sad": dict(smile=(-0.6, -0.3), mouth_open=(0.0, 0.05), brow_raise=(-0.3, 0.4)),
    "speaking": dict(smile=(-0.1, 0.3), mouth_open=(0.25, 0.6), brow_raise=(-0.1, 0.3)),
}


def sample_view(seed, setting="wild", side=None, **overrides):
    """A photo situation.

    Args:
        seed: any integer; the same seed gives the same view.
        setting: "lab" (studio, fixed light and clothing, yaw from a few steps) or "wild".
        side: True for |yaw| in 25..60, False for |yaw| <= 20, None for either (half and half when wild).
        overrides: any field of View by name, such as background="forest" or yaw=10.0.
    Returns:
        View.
    Raises:
        UserError: an unknown setting, field or background.
    """
    if setting not in ("lab", "wild"):
        raise UserError(f"setting: {setting!r} is unknown; use 'lab' or 'wild'")
    unknown = set(overrides) - {field.name for field in fields(View)}
    if unknown:
        raise UserError(f"sample_view: no view field named {sorted(unknown)[0]!r}; see identity.View")
    background = overrides.get("background", STUDIO)
    if background not in (*BACKGROUNDS, STUDIO):
        known = ", ".join((*BACKGROUNDS, STUDIO))
        raise UserError(f"background: {background!r} is unknown; use one of {known}")
    rng = np.random.default_rng(derive_seed("view", setting, int(seed)))
    values = _lab(rng, side) if setting == "lab" else _wild(rng, side, overrides.get("background"))
    values.update(seed=int(seed), setting=setting, **overrides)
    return View(**values)


def _expression(rng, name, amount=1.0):
    drawn = {key: float(rng.uniform(*span) * amount) for key, span in EXPRESSIONS[name].items()}
    return dict(expression=name, **drawn)


def _lab(rng, side):
    yaws = np.float64(LAB_YAWS)
    if side is not None:
        yaws = yaws[np.abs(yaws) >= SIDE_MIN_YAW] if side else yaws[np.abs(yaws) <= PORTRAIT_MAX_YAW]
    name = str(rng.choice(["neutral", "smile"], p=[0.75, 0.25]))
    return dict(
        yaw=float(rng.choice(yaws) + rng.uniform(-2.5, 2.5))
        if side is None or not side
        else float(np.sign(y := rng.choice(yaws)) * (abs(y) + rng.uniform(-2.5, 2.5))),
        pitch=float(rng.normal(0, 2.5)),
        roll=float(rng.normal(0, 1.5)),
        **_expression(rng, name, 0.8),
        gaze_x=float(rng.normal(0, 0.08)),
        gaze_y=float(rng.normal(0, 0.05)),
        eye_open=float(rng.uniform(0.88, 1.05)),
        head_size=float(rng.uniform(0.70, 0.75)),
        offset_x=float(rng.normal(0, 0.012)),
        offset_y=float(rng.normal(0.0, 0.012)),
        camera_distance=150.0,
        background=STUDIO,
        background_seed=int(rng.integers(1 << 31)),
        key_azimuth=float(-25 + rng.normal(0, 4)),
        key_elevation=float(32 + rng.normal(0, 3)),
        key_strength=float(rng.uniform(0.9, 1.02)),
        fill_strength=0.55,
        rim_strength=0.1,
        tint_r=1.0,
        tint_g=1.0,
        tint_b=1.0,
        exposure=float(rng.uniform(0.97, 1.03)),
        clothing="t-shirt",
        cloth_r=LAB_CLOTH[0],
        cloth_g=LAB_CLOTH[1],
        cloth_b=LAB_CLOTH[2],
        hair_shift=0.0,
        sensor_noise=0.006,
        softness=0.0,
    )


def _wild_yaw(rng, side):
    side = bool(rng.random() < 0.5) if side is None else side
    if side:
        return float(rng.choice([-1, 1]) * rng.uniform(SIDE_MIN_YAW, 60.0))
    return float(np.clip(rng.normal(0, 9.0), -PORTRAIT_MAX_YAW, PORTRAIT_MAX_YAW))


def _wild_expression(rng):
    name = str(rng.choice(list(EXPRESSIONS), p=[0.36, 0.27, 0.1, 0.07, 0.07, 0.13]))
    blink = rng.random() < 0.02
    return dict(
        _expression(rng, name),
        gaze_x=float(rng.normal(0, 0.3)),
        gaze_y=float(rng.normal(0, 0.12)),
        eye_open=0.12 if blink else float(rng.uniform(0.75, 1.12)),
    )


def _wild(rng, side, background):
    background = background or str(rng.choice(BACKGROUNDS))
    tint, level = light_tint(background, rng)
    cloth = np.clip(rng.uniform(0.06, 0.9) * (1 + rng.normal(0, 0.45, 3)), 0.03, 0.95)
    return dict(
        yaw=_wild_yaw(rng, side),
        pitch=float(np.clip(rng.normal(0, 7.0), -20, 20)),
        roll=float(np.clip(rng.normal(0, 6.0), -20, 20)),
        **_wild_expression(rng),
        head_size=float(rng.uniform(0.60, 0.80)),
        offset_x=float(np.clip(rng.normal(0, 0.045), -0.08, 0.08)),
        offset_y=float(np.clip(rng.normal(0.0, 0.03), -0.06, 0.06)),
        camera_distance=float(rng.uniform(55, 150)),
        background=background,
        background_seed=int(rng.integers(1 << 31)),
        key_azimuth=float(rng.uniform(-70, 70)),
        key_elevation=float(rng.uniform(5, 60)),
        key_strength=float(rng.uniform(0.7, 1.15)),
        fill_strength=float(rng.uniform(0.3, 0.7)),
        rim_strength=float(rng.uniform(0, 0.7)),
        tint_r=float(tint[0]),
        tint_g=float(tint[1]),
        tint_b=float(tint[2]),
        exposure=float(level * rng.uniform(0.85, 1.15)),
        clothing=str(rng.choice(CLOTHING)),
        cloth_r=float(cloth[0]),
        cloth_g=float(cloth[1]),
        cloth_b=float(cloth[2]),
        hair_shift=float(rng.normal(0, 0.3)),
        sensor_noise=float(rng.uniform(0.004, 0.018)),
        softness=float(max(0.0, rng.uniform(-0.5, 0.5))),
    )
