"""Figures of the published experiment, to stand beside one's own.

The paper's tables are not reproduced here. These are values that outputs in the official repository show, and
what it says of them: sets of 107 people of the Tufts face database (TFD), prompts of the final configuration
unless a note says otherwise. `None` is a value that is not known.
"""

from evaluation.tables import Column, Table, Value

METHOD = Column("method", "method")
METHODS = ("DreamBooth", "PortraitBooth", "ID-Booth")
PHOTOS, WILD, BASE = "TFD (photos)", "FFHQ", "base model"
SOURCE = "Values of the official repository's outputs"


def spread(mean, deviation):
    """A published mean ± deviation."""
    return Value(mean, spread=deviation)


def by_method(*values):
    """{method: values} of the three methods, from one tuple for each."""
    return dict(zip(METHODS, values, strict=True))


def table(name, title, columns, rows, note):
    """A Table of published values; none counts as best."""
    lines = [{"method": method} | of for method, of in cells(columns, rows).items()]
    return Table(f"published_{name}", f"Published: {title}", [METHOD, *columns], lines, note, tuple(rows))


def cells(columns, rows):
    """{method: {column: value}} from {method: values in the order of the columns}."""
    keys = [column.key for column in columns]
    return {method: dict(zip(keys, values, strict=True)) for method, values in rows.items()}


def usable_faces():
    """Samples in which the published detector (MTCNN) found a face."""
    columns = [Column("images", "images"), Column("faces", "with a face")]
    rows = by_method((2247, 2238), (2247, 2229), (2247, 2233)) | {PHOTOS: (None, 2299), WILD: (70000, 69991)}
    return [
        table("faces", "images with a usable face", columns, rows, f"{SOURCE}; 21 images of each person.")
    ]


def quality():
    """CR-FIQA(S), red and blue swapped."""
    columns = [Column("quality", "CR-FIQA(S)")]
    rows = by_method((spread(2.189, 0.123),), (spread(2.154, 0.153),), (spread(2.146, 0.175),))
    note = f"{SOURCE}; 21 images of each person, red and blue swapped (quality_colour BGR), ddof 1."
    return [table("quality", "face image quality", columns, rows, note)]


ANGLES = [Column(name, f"{name}, degrees", digits=2) for name in ("yaw", "pitch", "roll")]
SPREADS = [
    Column(f"{name}_spread", f"{name} spread per identity", digits=2) for name in ("yaw", "pitch", "roll")
]


def pose():
    """6DRepNet's angles, with both of the borders that were in use."""
    fifty = by_method(
        (spread(5.581, 24.825), spread(0.564, 7.284), spread(0.084, 3.707)),
        (spread(7.788, 31.145), spread(0.905, 8.614), spread(0.291, 5.261)),
        (spread(8.073, 31.365), spread(0.282, 8.823), spread(0.237, 5.390)),
    ) | {
        PHOTOS: (spread(4.851, 24.654), spread(1.513, 6.691), spread(0.004, 3.127)),
        WILD: (spread(2.601, 15.339), spread(-3.779, 8.769), spread(0.395, 3.150)),
    }
    angles = spread(0.183, 27.483), spread(0.354, 5.830), spread(-0.343, 2.644)
    thirty = {PHOTOS: (*angles, spread(26.296, 4.609), spread(2.015, 0.718), spread(2.285, 1.115))}
    note = f"{SOURCE}; ddof 0. The border moves the angles: compare with the same pose_border only."
    return [
        table("pose_50", "head pose with a border of 50 pixels (probably)", ANGLES, fifty, note),
        table("pose_30", "head pose with a border of 30 pixels", [*ANGLES, *SPREADS], thirty, note),
    ]


VERIFICATION = [
    Column("eer", "EER", digits=3),
    Column("fmr100", "FMR100", digits=3),
    Column("fmr1000", "FMR1000", digits=3),
    Column("impostor", "impostor"),
    Column("genuine", "genuine"),
    Column("fdr", "FDR", digits=3),
]
# Prompts of December 2024 with pose and background ("Complex"), among samples and against the photos.
AMONG_SAMPLES = by_method(
    (0.124, 0.384, 0.578, spread(0.111, 0.097), spread(0.428, 0.171), 2.594),
    (0.091, 0.272, 0.456, spread(0.081, 0.088), spread(0.429, 0.170), 3.313),
    (0.088, 0.259, 0.442, spread(0.066, 0.086), spread(0.420, 0.172), 3.367),
)
AGAINST_PHOTOS = by_method(
    (0.097, 0.236, 0.409, spread(0.020, 0.075), spread(0.358, 0.187), 2.805),
    (0.066, 0.145, 0.245, spread(0.020, 0.074), spread(0.408, 0.182), 3.878),
    (0.059, 0.133, 0.214, spread(0.019, 0.073), spread(0.411, 0.176), 4.217),
)
AMONG_PHOTOS = {PHOTOS: (0.002, 0.002, 0.002, spread(0.026, 0.073), spread(0.871, 0.070), 69.991)}


def verification():
    """Error rates by the recogniser of the loss, of prompts that came before the final ones."""
    note = f"{SOURCE} for earlier prompts; the loss's recogniser judges (circular), sub-sampled pairs."
    tables = {
        "vs_samples": ("samples against samples", AMONG_SAMPLES | AMONG_PHOTOS),
        "vs_real": ("samples against photos", AGAINST_PHOTOS),
    }
    return [table(name, title, VERIFICATION, rows, note) for name, (title, rows) in tables.items()]


def scores():
    """What can be read off the published figure of the final prompts."""
    columns = [
        Column(f"{kind}_{key}", f"{title}, {kind}", digits=3)
        for kind in ("photos", "samples")
        for key, title in (("eer", "EER threshold"), ("genuine", "genuine mode"))
    ]
    rows = by_method((0.145, 0.40, 0.27, 0.50), (0.16, 0.50, 0.23, 0.50), (0.155, 0.50, 0.22, 0.50))
    return [table("scores", "read off the figure of scores", columns, rows, "Read off by eye.")]


DISTANCES = [
    Column("fd", "FD", digits=2),
    Column("kd", "KD"),
    Column("precision", "precision"),
    Column("recall", "recall"),
    Column("density", "density", digits=4),
    Column("coverage", "coverage", digits=4),
    Column("vendi", "Vendi per identity", digits=2),
    Column("authentic", "AuthPct", digits=1),
]
PRDC = [column for column in DISTANCES if column.key in ("precision", "recall", "density", "coverage")]


def diversity():
    """DINOv2 distances of the base model, CLIP's PRDC and CMMD of the methods."""
    base = (1724.97, spread(6.894, 0.066), 0.0, 0.158, 0.0, 0.0, spread(9.268, 0.790), 100.0)
    lab = by_method(
        (0.0201, 0.445, 0.0058, 0.0226), (0.0067, 0.596, 0.0018, 0.0078), (0.0081, 0.515, 0.0023, 0.0083)
    )
    wild = by_method(
        (0.488, 0.0024, 0.200, 0.081), (0.466, 0.020, 0.183, 0.0866), (0.465, 0.010, 0.189, 0.093)
    )
    cmmd = by_method((1.259, 1.094), (1.198, 0.965), (1.196, 0.956)) | {PHOTOS: (None, 0.921)}
    cmmd_columns = [Column("lab", "against TFD"), Column("wild", "against 2,500 of FFHQ")]
    clip = f"{SOURCE}; CLIP ViT-L/14 at 336 pixels"
    second_hand = (
        "Second-hand, encoder and reference not stated: FD 1371.13 for DreamBooth, 1159.54 for ID-Booth."
    )
    note = f"{SOURCE}; 2,208 crops. {second_hand}"
    return [
        table("dinov2_lab", "DINOv2, run against the lab photos", DISTANCES, {BASE: base}, note),
        table("clip_lab", "CLIP, against the lab photos", PRDC, lab, f"{clip}, seed 42, crops."),
        table("clip_wild", "CLIP, against 5,000 of FFHQ", PRDC, wild, f"{clip}, seed 42, crops."),
        table("cmmd", "CMMD", cmmd_columns, cmmd, f"{clip}."),
    ]


def ablation():
    """CR-FIQA and, for two rows, the spread of the pose within an identity; 100 images of each person."""
    columns = [Column("faces", "with a face"), Column("quality", "CR-FIQA(S)"), *SPREADS]
    nothing = (None,) * 3
    rows = {
        "base prompt": (10697, spread(2.171, 0.103), *nothing),
        "+ background": (10609, spread(2.158, 0.159), *nothing),
        "+ gender": (10656, spread(2.176, 0.132), *nothing),
        "base prompt, no negative prompt": (
            10696,
            spread(2.136, 0.107),
            spread(7.254, 3.470),
            spread(2.738, 0.681),
            spread(1.269, 0.448),
        ),
        "+ background, no negative prompt": (
            10636,
            spread(2.108, 0.175),
            spread(15.592, 4.307),
            spread(5.147, 0.962),
            spread(2.522, 0.949),
        ),
        "DreamBooth without prior preservation": (10436, spread(2.079, 0.226), *nothing),
    }
    note = f"{SOURCE}; whose LoRAs made the rows of prompts is not recorded. Border of the pose: 30 pixels."
    return [table("ablation", "ablation", columns, rows, note)]
