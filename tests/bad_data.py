"""Damages to the data of one identity, with what training says of each."""

import json
import shutil
import struct
import zlib

import torch

from utils.files import atomic_write_json

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n%%EOF\n"
BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x01\x00\x85R."  # of four gigabytes
EVIL = b"cos\nsystem\n(S'touch trap'\ntR."  # a pickle that would run a command


def photo(folder):
    return folder / "images/0.png"


def embedding(folder):
    return folder / "ArcFace_embeds/0.pt"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def faces(change):
    """A damage to faces.json."""

    def damage(folder):
        file = folder / "ArcFace_embeds/faces.json"
        content = json.loads(file.read_text())
        file.write_text(change(content) or json.dumps(content))

    return damage


def set_landmarks(value):
    return faces(lambda content: content["images"]["0.png"].update(landmarks=value))


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


DATA = {
    "photo cut": (lambda f: cut(photo(f)), "damaged image|not an image"),
    "photo is text": (lambda f: photo(f).write_text("no"), "not an image"),
    "photo empty": (lambda f: photo(f).write_bytes(b""), "not an image"),
    "photo a program": (lambda f: photo(f).write_bytes(EPS), "not an image"),
    "photo a strip": (lambda f: photo(f).write_bytes(png_header(90_000, 9)), "no shape of a photo"),
    "photo a bomb": (lambda f: photo(f).write_bytes(png_header(60_000, 60_000)), "megapixels"),
    "no photo": (lambda f: [p.unlink() for p in (f / "images").iterdir()], "no photo in it"),
    "two photos of one stem": (
        lambda f: shutil.copy(photo(f), f / "images/0.jpg"),
        "would share one embedding",
    ),
    "embedding of another size": (lambda f: torch.save(torch.zeros(7), embedding(f)), "holds 7 numbers"),
    "embedding of noise": (lambda f: embedding(f).write_bytes(b"\x80\x04noise"), "not a readable embedding"),
    "embedding runs code": (lambda f: embedding(f).write_bytes(EVIL), "not a readable"),
    "embedding is nan": (lambda f: torch.save(torch.full((32,), torch.nan), embedding(f)), "NaN or infinity"),
    "embedding a bomb": (lambda f: torch.save(torch.zeros(1).expand(10**11), embedding(f)), "not a readable"),
    "embedding a bytearray": (lambda f: embedding(f).write_bytes(BYTEARRAY), "not a readable embedding"),
    "embedding sparse": (
        lambda f: torch.save(torch.zeros(2**30, layout=torch.sparse_coo), embedding(f)),
        "not a readable embedding",
    ),
    "embedding a word": (lambda f: torch.save("word", embedding(f)), "not a readable embedding"),
    "no embeddings": (lambda f: shutil.rmtree(f / "ArcFace_embeds"), "run extract_arcface_embeds.py first"),
    "faces.json cut": (lambda f: cut(f / "ArcFace_embeds/faces.json"), "not readable as JSON"),
    "faces.json a list": (faces(lambda content: "[]"), "damaged; run extract"),
    "faces.json deep": (faces(lambda content: "[" * 100_000), "not readable as JSON"),
    "entry a number": (faces(lambda content: content["images"].update({"0.png": 5})), "damaged; run extract"),
    "four landmarks": (set_landmarks([[1, 2]] * 4), "landmarks that are none"),
    "ragged landmarks": (set_landmarks([[1, 2], [3]]), "landmarks that are none"),
    "landmarks of words": (set_landmarks("nose"), "landmarks that are none"),
    "landmarks beyond all": (set_landmarks([[1e300, 2]] * 5), "landmarks that are none"),
    "landmarks coincide": (set_landmarks([[5, 5]] * 5), "."),
    "landmarks missing": (set_landmarks(None), "landmarks missing"),
    "consent missing": (lambda f: None, "consent is required"),
    "consent ended": (
        lambda f: atomic_write_json(f / "consent.json", {"who": "a", "purpose": "b", "until": "2001-01-01"}),
        "consent ended",
    ),
    "consent damaged": (lambda f: (f / "consent.json").write_text("{"), "not readable as JSON"),
}
