"""Lab photos of miniature people that no network was trained on, in the layout of a user's own data."""

import csv
import io
from pathlib import Path

from mini.face_world import render, sample_identity, sample_view
from mini.world.identity import HELD_OUT
from utils.files import atomic_write_text
from utils.identities import image_files
from utils.images import save_png
from utils.progress import progress
from utils.seeding import derive_seed


def write_lab_photos(root, people, photos_each=10, first=HELD_OUT, size=128):
    """Render ROOT/ID_1/images/00.png ... for ``people`` identities, and ROOT/attributes.csv.

    Every photo depends on its identity's number and its own alone; existing ones are kept.

    Args:
        people: how many; ID_k is the miniature identity ``first + k - 1``.
        photos_each: lab photos of each (studio, even light, several poses).
    """
    root, rows = Path(root), []
    for number in progress(range(1, people + 1), desc="lab photos"):
        seed = first + number - 1
        identity = sample_identity(seed)
        rows.append({"identity": f"ID_{number}", "gender": identity.gender, "age": identity.age})
        folder = root / f"ID_{number}" / "images"
        present = {path.name for path in image_files(folder)}
        for photo in range(photos_each):
            if f"{photo:02d}.png" not in present:
                view = sample_view(derive_seed(seed, "lab photo", photo), "lab")
                save_png(folder / f"{photo:02d}.png", render(identity, view, size).image)
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=["identity", "gender", "age"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(root / "attributes.csv", table.getvalue())
