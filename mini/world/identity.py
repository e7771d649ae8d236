"""Who is in the picture and how they are seen: the two frozen descriptions the renderer draws from.

Lengths are in centimetres on a head about 23 cm tall, angles in degrees, colours sRGB in [0, 1].
"""

from dataclasses import dataclass

import numpy as np

from utils.seeding import derive_seed

# Identity seeds below the first number are for training networks, from the second on for anything else.
TRAINING_PEOPLE, HELD_OUT = 100_000, 1_000_000
AGES = ("young", "middle-aged", "old")
SKIN_TONES = np.float32(
    [
        [0.97, 0.83, 0.75],
        [0.94, 0.76, 0.64],
        [0.89, 0.70, 0.55],
        [0.80, 0.60, 0.44],
        [0.68, 0.47, 0.33],
        [0.51, 0.34, 0.24],
        [0.37, 0.24, 0.18],
    ]
)
HAIR_COLOURS = np.float32(
    [
        [0.06, 0.05, 0.05],
        [0.16, 0.10, 0.07],
        [0.30, 0.18, 0.10],
        [0.46, 0.30, 0.16],
        [0.76, 0.58, 0.32],
        [0.88, 0.76, 0.52],
        [0.58, 0.22, 0.09],
    ]
)
EYE_COLOURS = np.float32(
    [
        [0.22, 0.13, 0.08],
        [0.36, 0.22, 0.12],
        [0.45, 0.38, 0.20],
        [0.32, 0.45, 0.30],
        [0.35, 0.52, 0.68],
        [0.48, 0.55, 0.60],
    ]
)
MALE_HAIR = ("bald", "buzz", "short", "side-part", "quiff", "curly", "receding", "shoulder")
FEMALE_HAIR = ("long", "long-fringe", "bob", "bun", "curly-long", "pixie", "side-part-long", "bob-fringe")


@dataclass(frozen=True)
class Identity:
    """A person: everything that stays the same from photo to photo.  Plain floats and strings."""

    seed: int
    gender: str
    age: str
    years: float
    face_width: float
    face_length: float
    jaw_width: float
    chin_width: float
    chin_length: float
    chin_forward: float
    cheekbone: float
    cheek_fullness: float
    brow_ridge: float
    forehead: float
    temple: float
    eye_size: float
    eye_tilt: float
    eye_spacing: float
    eye_depth: float
    eye_height: float
    lid_crease: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_darkness: float
    nose_bridge: float
    nose_hump: float
    nose_width: float
    nose_length: float
    nose_tip: float
    nose_wings: float
    mouth_width: float
    mouth_height: float
    upper_lip: float
    lower_lip: float
    lip_red: float
    ear_size: float
    ear_out: float
    skin_r: float
    skin_g: float
    skin_b: float
    hair_r: float
    hair_g: float
    hair_b: float
    eye_r: float
    eye_g: float
    eye_b: float
    hair_style: str
    hair_volume: float
    hair_line: float
    hair_part: float
    beard: str
    glasses: str
    glasses_darkness: float
    freckles: float
    moles: int
    wrinkles: float
    neck_width: float
    shoulder_width: float

    @property
    def skin(self):
        """sRGB skin tone, shape (3,), float32."""
        return np.float32([self.skin_r, self.skin_g, self.skin_b])

    @property
    def hair(self):
        """sRGB hair colour, shape (3,), float32."""
        return np.float32([self.hair_r, self.hair_g, self.hair_b])

    @property
    def eyes(self):
        """sRGB iris colour, shape (3,), float32."""
        return np.float32([self.eye_r, self.eye_g, self.eye_b])


@dataclass(frozen=True)
class View:
    """One photo of a person: pose, expression, camera, light, clothing and place.  Plain values."""

    seed: int
    setting: str
    yaw: float
    pitch: float
    roll: float
    expression: str
    smile: float
    mouth_open: float
    brow_raise: float
    gaze_x: float
    gaze_y: float
    eye_open: float
    head_size: float
    offset_x: float
    offset_y: float
    camera_distance: float
    background: str
    background_seed: int
    key_azimuth: float
    key_elevation: float
    key_strength: float
    fill_strength: float
    rim_strength: float
    tint_r: float
    tint_g: float
    tint_b: float
    exposure: float
    clothing: str
    cloth_r: float
    cloth_g: float
    cloth_b: float
    hair_shift: float
    sensor_noise: float
    softness: float


def _between(palette, position):
    """Linear interpolation along a colour list; position in [0, len - 1]."""
    low = int(np.clip(np.floor(position), 0, len(palette) - 2))
    part = float(np.clip(position - low, 0.0, 1.0))
    return palette[low] * (1 - part) + palette[low + 1] * part


def _colours(rng, years):
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    skin = np.clip(_between(SKIN_TONES, tone) * (1 + rng.normal(0, [0.01, 0.025, 0.035])), 0.05, 1)
    dark = tone > 3.2
    index = (
        rng.choice([0, 0, 1])
        if dark
        else rng.choice(len(HAIR_COLOURS), p=[0.14, 0.16, 0.2, 0.16, 0.12, 0.1, 0.12])
    )
    hair = HAIR_COLOURS[index] * rng.uniform(0.85, 1.2)
    grey = float(np.clip((years - 46) / 24 + rng.normal(0, 0.18), 0, 1))
    hair = hair * (1 - grey) + np.float32([0.80, 0.80, 0.80]) * rng.uniform(0.8, 1.08) * grey
    eye = EYE_COLOURS[rng.choice([0, 1]) if dark else rng.choice(len(EYE_COLOURS))]
    return skin, np.clip(hair, 0.03, 0.95), np.clip(eye * rng.uniform(0.85, 1.15), 0, 1)


def _shape(rng, male, old):
    """Facial measures: sex-dependent means with a wide spread between people."""
    sign = 1.0 if male else -1.0

    def around(mean, spread, sex=0.0):
        return float(mean + sign * sex + spread * np.clip(rng.normal(), -2.2, 2.2))

    return dict(
        face_width=around(7.45, 0.5, 0.12),
        face_length=around(0.0, 0.75, 0.15),
        jaw_width=around(5.95, 0.55, 0.42),
        chin_width=around(0.30, 0.075, 0.05),
        chin_length=around(0.0, 0.45, 0.25),
        chin_forward=around(0.0, 0.35, 0.12),
        cheekbone=around(0.45, 0.32, -0.08),
        cheek_fullness=around(0.0 - 0.25 * old, 0.45, -0.08),
        brow_ridge=around(0.28, 0.22, 0.26),
        forehead=around(0.1, 0.38, -0.12),
        temple=around(-0.25, 0.25),
        eye_size=around(1.0, 0.12, -0.07),
        eye_tilt=around(0.0, 0.16, -0.05),
        eye_spacing=around(3.25, 0.19),
        eye_depth=around(0.55, 0.22, 0.1),
        eye_height=around(0.0, 0.24),
        lid_crease=float(rng.uniform(0.1, 1.0)),
        brow_height=around(0.0, 0.22, -0.22),
        brow_thickness=around(0.34, 0.12, 0.1),
        brow_arch=around(0.12, 0.16, -0.10),
        brow_darkness=float(rng.uniform(0.55, 1.0)),
        nose_bridge=around(1.0, 0.3, 0.1),
        nose_hump=around(0.0, 0.3, 0.08),
        nose_width=around(1.0, 0.2, 0.07),
        nose_length=around(0.0, 0.36, 0.1),
        nose_tip=around(1.75, 0.36, 0.1),
        nose_wings=around(1.0, 0.24, 0.08),
        mouth_width=around(2.55, 0.24, 0.06),
        mouth_height=around(0.0, 0.25),
        upper_lip=around(0.42, 0.14, -0.07),
        lower_lip=around(0.56, 0.16, -0.07),
        lip_red=around(0.42, 0.16, -0.2),
        ear_size=around(1.0, 0.15, 0.06),
        ear_out=around(0.0, 0.35),
        neck_width=around(5.2, 0.35, 0.6),
        shoulder_width=around(19.0, 1.3, 1.6),
    )


def _beard(rng, male, hair_style):
    if not male:
        return "none"
    bald = hair_style in ("bald", "buzz")
    return str(
        rng.choice(
            ["none", "stubble", "moustache", "goatee", "full", "long"],
            p=[0.32, 0.18, 0.1, 0.14, 0.18, 0.08] if bald else [0.48, 0.18, 0.08, 0.09, 0.12, 0.05],
        )
    )


def sample_identity(seed):
    """The person of a seed.

    Args:
        seed: any integer; below TRAINING_PEOPLE for training networks, from HELD_OUT on for anything else.
    Returns:
        Identity, the same one for the same seed on every machine.
    """
    rng = np.random.default_rng(derive_seed("identity", int(seed)))
    male = bool(rng.random() < 0.5)
    age = str(rng.choice(AGES, p=[0.42, 0.33, 0.25]))
    years = float(rng.uniform(*{"young": (18, 34), "middle-aged": (40, 55), "old": (64, 84)}[age]))
    skin, hair, eye = _colours(rng, years)
    shape = _shape(rng, male, age == "old")
    styles = MALE_HAIR if male else FEMALE_HAIR
    odds = np.float64(
        [0.09, 0.12, 0.21, 0.17, 0.13, 0.12, 0.09, 0.07]
        if male
        else [0.16, 0.14, 0.13, 0.12, 0.14, 0.1, 0.11, 0.1]
    )
    if male and age == "old":
        odds[[0, 6]] *= 2.5
    style = str(rng.choice(styles, p=odds / odds.sum()))
    return Identity(
        seed=int(seed),
        gender="male" if male else "female",
        age=age,
        years=years,
        **shape,
        skin_r=float(skin[0]),
        skin_g=float(skin[1]),
        skin_b=float(skin[2]),
        hair_r=float(hair[0]),
        hair_g=float(hair[1]),
        hair_b=float(hair[2]),
        eye_r=float(eye[0]),
        eye_g=float(eye[1]),
        eye_b=float(eye[2]),
        hair_style=style,
        hair_volume=float(rng.uniform(0.6, 1.5)),
        hair_line=float(rng.normal(0, 0.06)),
        hair_part=float(rng.choice([-1, 1]) * rng.uniform(0.1, 0.45)),
        beard=_beard(rng, male, style),
        glasses=str(rng.choice(["none", "round", "square", "thin"], p=[0.76, 0.08, 0.09, 0.07])),
        glasses_darkness=float(rng.uniform(0.3, 1.0)),
        freckles=float(max(0.0, rng.uniform(-1.6, 1.0)) if skin[1] > 0.55 else 0.0),
        moles=int(rng.choice([0, 1, 2, 3], p=[0.45, 0.27, 0.18, 0.1])),
        wrinkles=float(np.clip((years - 34) / 38 + rng.normal(0, 0.08), 0, 1.15)),
    )
