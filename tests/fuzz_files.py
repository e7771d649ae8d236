"""Photos, tables, crop sets, caches and networks to mutate: for each (path, mutant of rng, its reader)."""

import io
import json
import zipfile

import numpy as np
import torch
from PIL import Image

from tests.fuzz_mutations import ODD, Canary, flip, mutate_bytes, mutate_text
from utils.errors import UserError
from utils.images import save_png

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "MPO")
OTHERS = ("EPS", "PDF", "PCX", "TGA", "ICO", "DDS", "SGI", "IM")
SIZES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x27\x10", b"\x10\x27\0\0", b"\0\1\0\0")


def either(*readers):
    """Call every reader; UserError if one refuses, once all have been called."""
    refusals = []
    for reader in readers:
        try:
            reader()
        except UserError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def encoded(kind):
    """A small picture in a format, with text and a turn where it has them."""
    y, x = np.mgrid[:24, :32]
    image = Image.fromarray(np.stack([x * 8, y * 10, x * y % 255], -1).astype(np.uint8))
    stream = io.BytesIO()
    options = (
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"} if kind == "JPEG" else {}
    )
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo_kind(folder):
    """Photos in all formats, those that are read and those that are not, under one name."""
    from utils.images import image_size, load_image, read_png_text

    path = folder / "photo.jpg"
    seeds = [encoded(kind) for kind in FORMATS + OTHERS]
    path.write_bytes(seeds[0])

    def mutant(rng):
        data = rng.choice(seeds)
        if rng.random() < 0.4:  # the head, where sizes and kinds stand
            head = bytearray(data[:100])
            place = rng.randrange(len(head) - 4)
            head[place : place + 4] = rng.choice(SIZES)
            return bytes(head) + data[100:]
        return rng.choice((flip, mutate_bytes))(data, rng)

    readers = (lambda: load_image(path), lambda: image_size(path), lambda: read_png_text(path))
    return path, mutant, lambda: either(*readers)


def attributes_kind(folder):
    """attributes.csv, and the same bytes or a tree as attributes.json."""
    from id_booth.prompts import load_attributes, prompts_for_identity

    path, other = folder / "attributes.csv", folder / "attributes.json"
    text = 'identity,gender,age\nID_1,F,40\nID_2,"male",\nID_3,,young\n'
    tree = json.dumps({"ID_1": {"gender": "male", "age": 30}, "ID_2": "F", "ID_3": {"age": "old"}})
    path.write_text(text)
    other.write_text(tree)
    cells = [
        "\0",
        '"',
        '""',
        "²",
        "x" * 150_000,
        "\ufeff",
        "\r",
        "\x1b[2J",
        ",,,",
        ";",
        "\u2028",
        "9" * 5000,
        "ID_1",
    ]

    def mutant(rng):
        other.write_bytes(mutate_text(tree, rng))
        if rng.random() < 0.4:
            return mutate_bytes(text.encode(), rng)
        place = rng.randrange(len(text))
        return (text[:place] + rng.choice(cells) + text[place:]).encode()

    def sampled(file):
        people = load_attributes(file)
        prompts_for_identity("ID_1", people.get("ID_1"), "3", use_age="attribute")

    return path, mutant, lambda: either(lambda: sampled(path), lambda: sampled(other))


def crop_folder(folder):
    """Crops of two people, and one outside of their folder."""
    for name, colour in (("set/a/0.png", 7), ("set/a/1.png", 7), ("set/b/0.png", 7), ("x.png", 99)):
        save_png(folder / name, np.full((112, 112, 3), colour, np.uint8))
    (folder / "set/link.png").symlink_to(folder / "x.png")
    return folder / "set"


def manifest_kind(folder):
    """Manifests of crops; what they read must lie in their folder."""
    from fr_training.crops import load_crops

    people = {"a": [{"file": "a/0.png", "kind": "real"}, {"file": "a/1.png"}], "b": [{"file": "b/0.png"}]}
    tree = {"kind": "fr-manifest", "labels": {"a": 0, "b": 1}, "identities": people}
    path, text = crop_folder(folder) / "m.json", json.dumps(tree)
    path.write_text(text)
    ways = (
        "../x.png",
        "link.png",
        str(folder / "x.png"),
        "a/../../x.png",
        "a",
        ".",
        "a/\0",
        "//a",
        "a/0.png",
    )

    def mutant(rng):
        if rng.random() < 0.4:
            return text.replace("a/1.png", json.dumps(rng.choice(ways))[1:-1]).encode()
        return mutate_text(text, rng)

    def read():
        assert (load_crops(path).images == 7).all()

    return path, mutant, read


def pairs_kind(folder):
    """Lists of pairs of crops."""
    from fr_training.benchmarks import load_benchmark

    path, text = crop_folder(folder) / "pairs.txt", "a/0.png a/1.png 1\na/0.png,b/0.png,0\n# remark\n"
    path.write_text(text)

    def mutant(rng):
        if rng.random() < 0.3:
            return (text * rng.choice((2, 30_000))).encode()
        return mutate_bytes(text.encode(), rng)

    return path, mutant, lambda: load_benchmark(path)


def npy(rng, shape, kind):
    """A .npy file whose header was written by hand, with some data."""
    header = f"{{'descr': {kind!r}, 'fortran_order': {rng.choice((False, True))}, 'shape': {shape}, }}"
    text = header.encode("utf-8", "replace").ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(rng.choice((0, 8, 32, 4096)))


def odd_npy(rng):
    """A .npy file with an odd shape or an odd kind of numbers."""
    shapes = (
        (4,),
        (10**9, 112, 112, 3),
        (2**62, 2**62),
        (-1,),
        (),
        "x",
        (True,),
        (1e9,),
        ((1,),),
        (3, 10**11),
    )
    kinds = (
        "<i8",
        "|u1",
        "<f4",
        "|O",
        "<U3",
        "<U268435456",
        "<M8[ns]",
        "V9",
        [("a", "<i8")],
        "x",
        "<c16",
        "<i1",
    )
    return npy(rng, rng.choice(shapes), rng.choice(kinds))


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def arrays_kind(folder):
    """Folders of crop arrays: labels, images and names."""
    from fr_training.crops import load_crops, write_crop_arrays

    write_crop_arrays(folder / "set", np.full((4, 112, 112, 3), 7, np.uint8), [0, 0, 1, 1], ["a", "b"])
    path, images, names = (folder / "set" / name for name in ("labels.npy", "images.npy", "names.json"))
    seeds = {file: file.read_bytes() for file in (path, images, names)}

    def mutant(rng):
        changed = dict(seeds)
        file = rng.choice(list(seeds))
        if file == names:
            changed[file] = mutate_text(seeds[file].decode(), rng)
        else:
            canary = saved(np.array([Canary(folder / "canary")], object))
            head = mutate_bytes(seeds[file][:128], rng) + seeds[file][128:]
            changed[file] = rng.choice((head, canary, odd_npy(rng), mutate_bytes(seeds[file], rng)))
        images.write_bytes(changed[images])
        names.write_bytes(changed[names])
        return changed[path]

    return path, mutant, lambda: load_crops(folder / "set")


def cache_kind(folder):
    """Caches of features, which must always give the features."""
    from evaluation.feature_cache import FeatureCache

    keys, rows = ["a", "b", "c"], np.arange(12, dtype=np.float32).reshape(3, 4)
    cache = FeatureCache(folder, "encoder")
    cache.fetch(keys, lambda positions: rows[positions])
    seed, parts = cache.path.read_bytes(), {"keys": saved(np.array(keys)), "features": saved(rows)}

    def mutant(rng):
        if rng.random() < 0.5:
            return rng.choice((flip, mutate_bytes))(seed, rng)
        changed = dict(parts)
        canary = saved(np.array([Canary(folder / "canary")], object))
        name = rng.choice(("keys", "features", "more"))
        changed[name] = rng.choice(
            (odd_npy(rng), canary, mutate_bytes(parts.get(name, b"x"), rng), bytes(10**7))
        )
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for entry, data in changed.items():
                archive.writestr(f"{entry}.npy", data)
        return stream.getvalue()

    def read():
        found = FeatureCache(folder, "encoder").fetch(keys, lambda positions: rows[positions])
        assert found.shape == rows.shape

    return cache.path, mutant, read


# ----------------------------------------------------------------------------------------------- networks


def mutate_graph(data, rng):
    """An ONNX file with a number, name, kind or tensor of its graph changed."""
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    numbers = (0, 1, -1, 3, 2**16, 2**31 - 1, 2**40, 2**62)
    for _ in range(rng.choice((1, 1, 3))):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        kind = rng.randrange(8)
        if kind == 0 and node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice(numbers)
            attribute.ints[:] = [rng.choice(numbers) for _ in attribute.ints]
        elif kind == 1:
            node.op_type = rng.choice(
                ("ConstantOfShape", "Expand", "Tile", "Pad", "Loop", "Range", "Add", "MatMul", "Conv")
            )
        elif kind == 2 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                [t.name for t in graph.initializer] + ["", "input"]
            )
        elif kind == 3 and tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
        elif kind == 4:
            tensor.data_type = rng.randrange(25)
        elif kind == 5:
            tensor.data_location = 1
            tensor.external_data.add(key="location", value=rng.choice(("/dev/zero", "../x", "w.bin")))
        elif kind == 6:
            value = rng.choice([*graph.input, *graph.output])
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value = rng.choice(numbers[:5])
        else:
            del rng.choice((graph.node, graph.initializer, graph.input, graph.output))[0]
    return model.SerializeToString()


def network_mutant(data):
    """A function rng -> mutant of an ONNX file."""

    def mutant(rng):
        if rng.random() < 0.6:
            try:
                return mutate_graph(data, rng)
            except (ValueError, IndexError, TypeError):  # a number too large for its field, nothing left
                pass
        return mutate_bytes(data, rng)

    return mutant


def onnx_kind(folder):
    """Recognisers as ONNX files, run with gradients."""
    from arcface_files.recogniser import load_recogniser
    from tests.tiny_pack import make_tiny_pack

    path = make_tiny_pack(folder) / "rec_tiny.onnx"
    return path, network_mutant(path.read_bytes()), lambda: load_recogniser(path)


def pack_kind(folder):
    """Detectors in a pack, run by onnxruntime."""
    from arcface_files.faces import FaceAnalyser
    from tests.tiny_pack import face_photo, make_tiny_pack

    path, photo = make_tiny_pack(folder) / "det_tiny.onnx", face_photo((16, 24))
    return path, network_mutant(path.read_bytes()), lambda: FaceAnalyser(folder, device="cpu").detect([photo])


def weights_kind(folder):
    """Recognisers as state dicts, in an archive, in the old form, and as safetensors."""
    from safetensors.torch import save

    from arcface_files.iresnet import IResNet
    from arcface_files.recogniser import load_recogniser

    state = IResNet((1, 1, 1, 1), (4, 4, 4, 4), 8).state_dict()
    path, other = folder / "w.pth", folder / "w.safetensors"
    torch.save(state, path)
    seeds, safe = {True: path.read_bytes()}, save({key: value.contiguous() for key, value in state.items()})
    torch.save(state, path, _use_new_zipfile_serialization=False)
    seeds[False] = path.read_bytes()
    other.write_bytes(safe)
    length = int.from_bytes(safe[:8], "little")

    def mutant(rng):
        header = mutate_text(safe[8 : 8 + length].decode(), rng)
        hostile = len(header).to_bytes(8, "little") + header + safe[8 + length :]
        other.write_bytes(rng.choice((safe, hostile, flip(safe, rng), mutate_bytes(safe, rng))))
        kind = rng.random()
        if kind < 0.2:
            stream = io.BytesIO()
            value = rng.choice((Canary(folder / "canary"), *ODD, torch.zeros(1).expand(2**16, 2**16)))
            torch.save({rng.choice(list(state)): value}, stream, _use_new_zipfile_serialization=kind < 0.1)
            return stream.getvalue()
        if kind < 0.3:
            return seeds[True]
        if kind < 0.7:
            return archive_with(seeds[True], rng)
        return mutate_bytes(seeds[False][:3000], rng) + seeds[False][3000:]

    return path, mutant, lambda: either(lambda: load_recogniser(path), lambda: load_recogniser(other))


def archive_with(data, rng):
    """A .pth archive whose pickle, or one of whose tensors, is mutated."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        target = rng.choice([name for name in old.namelist() if "data" in name] + ["archive/data.pkl"] * 50)
        for name in old.namelist():
            content = old.read(name)
            hit = name == target or (target.endswith("data.pkl") and name.endswith("data.pkl"))
            new.writestr(name, rng.choice((flip, mutate_bytes))(content or b"x", rng) if hit else content)
    return stream.getvalue()


def embedding_kind(folder):
    """Embeddings, ArcFace_embeds/*.pt."""
    from arcface_files.face_records import read_embedding

    path = folder / "0.pt"
    torch.save(torch.arange(8.0), path)
    seed = path.read_bytes()

    def mutant(rng):
        if rng.random() < 0.2:
            stream = io.BytesIO()
            torch.save(
                rng.choice((Canary(folder / "canary"), *ODD, torch.zeros(8).double(), torch.zeros(1, 8))),
                stream,
            )
            return stream.getvalue()
        return archive_with(seed, rng) if rng.random() < 0.5 else mutate_bytes(seed, rng)

    return path, mutant, lambda: read_embedding(path, 8)
