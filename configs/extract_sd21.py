"""The published recipe: ArcFace r100 embeddings of lab photos, on the detected boxes, stretched.

    python extract_arcface_embeds.py --config configs/extract_sd21.py --source-folder /data/lab_photos

The pack (buffalo_l) goes under ~/.insightface/models, the recogniser where `recogniser` says; see
arcface_files/README.md. `--recogniser None` takes the pack's own recogniser: then set it in training too.

Where this differs from the official code: every photo gets its own embedding, which mends a defect, and the
box comes from the pack's detector instead of MTCNN. Recipes that compare aligned faces (train_sd21_fast.py)
make the embeddings of these from the same photos and faces.json when they start.
"""

from configs.extract_config import ExtractConfig

config = ExtractConfig(
    source_folder="FACE_DATASET",
    pack="buffalo_l",
    recogniser="arcface_files/ArcFace_r100_ms1mv3_backbone.pth",
    crop="box",
)
