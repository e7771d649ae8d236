"""insightface verification files (.bin) with the standard library and Pillow, without mxnet.

Such a file is a pickle of (encoded images, same flags): 2P JPEGs or PNGs as bytes or as uint8 arrays, and P
booleans; images 2i and 2i+1 are pair i. The official code also writes pictures as they are, arrays of uint8
(112, 112, 3), and flags may be integers. A pickle can run code when it is read, so the reader admits only the
few names that such a file needs (stand-ins for constructors of numpy and bytes) and refuses every other by
name.
"""

import io
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from arcface_files.faces import ARCFACE_SIZE
from arcface_files.safe_load import check_pickle
from utils.errors import UserError, one_line
from utils.files import atomic_write_bytes
from utils.images import open_picture

MAX_ENCODED = 10_000_000  # bytes of one encoded image; real ones have a few thousand
MIN_ENCODED = 100  # the smallest PNG of 112 x 112 pixels is larger
# Bytes of a file, and of its images decoded: 28,500 pairs. The largest in use (cfp_fp) has 7,000.
MAX_BYTES = 2 * 2**30
RAW_SHAPE = (ARCFACE_SIZE, ARCFACE_SIZE, 3)
IMAGE_BYTES = ARCFACE_SIZE * ARCFACE_SIZE * 3
INTEGERS = re.compile("b1|[iu][1248]")
DECODE_THREADS = 4
JPEG_QUALITY = 95


def latin1_bytes(text, encoding="latin1"):
    """Stand-in for `_codecs.encode`, by which pickle protocol 2 stores bytes as Latin-1 text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("_codecs.encode with something else than Latin-1 text")
    return text.encode("latin1")


def plain_bytes(value=b"", encoding=None):
    """Stand-in for `bytes` as protocol 2 calls it: empty, from text, or from small integers.

    `bytes(length)` is refused: a crafted length would fill the memory.
    """
    if isinstance(value, str):
        return latin1_bytes(value, encoding)
    if isinstance(value, int):
        raise pickle.UnpicklingError("bytes of a claimed length")
    return bytes(value)


def short(value, length=16):
    """A name or number of a few bytes; the real ones have at most eight."""
    if len(value) > length:
        raise pickle.UnpicklingError(f"{len(value)} bytes where a few belong")
    return value


class Kind:
    """Stand-in for numpy.dtype that keeps only its name and whether the first byte is the largest."""

    order = "<"

    def __init__(self, name="u1", align=False, copy=False):
        if not isinstance(name, (bytes, str)):
            raise pickle.UnpicklingError("a kind of numbers without a name")
        self.name = short(name.decode("latin1") if isinstance(name, bytes) else name)

    def __setstate__(self, state):
        """Of numpy's state only the byte order counts; a crafted one has no effect."""
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"


class Buffer:
    """Stand-in for numpy.ndarray that keeps the bytes of arrays of integers and booleans."""

    data, kind, shape = b"", Kind(), ()

    def __setstate__(self, state):
        _, shape, kind, _, data = state
        name = getattr(kind, "name", "unknown kind") if isinstance(kind, Kind) else "unknown kind"
        if not INTEGERS.fullmatch(name) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError(f"an array of {name}")
        # Not copied: a crafted file could name one array a million times.
        self.data, self.kind, self.shape = data, kind, shape


def empty_buffer(subtype, shape, typecode):
    """Stand-in for numpy's `_reconstruct`, which makes an empty array; its state follows in the pickle."""
    return Buffer()


def from_buffer(buffer, kind, shape, order):
    """Stand-in for numpy's `_frombuffer` (pickle protocol 5)."""
    result = Buffer()
    result.__setstate__((1, shape, kind, False, buffer))
    return result


def scalar(kind, data):
    """A numpy.bool_ or small number, for flags stored as such."""
    return int.from_bytes(short(data), "little" if getattr(kind, "order", "<") == "<" else "big")


ADMITTED = {
    ("_codecs", "encode"): latin1_bytes,
    ("builtins", "bytes"): plain_bytes,
    ("__builtin__", "bytes"): plain_bytes,
    ("builtins", "bytearray"): plain_bytes,
    ("__builtin__", "bytearray"): plain_bytes,
    ("numpy", "ndarray"): Buffer,
    ("numpy", "dtype"): Kind,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): empty_buffer for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): from_buffer for core in ("core", "_core")},
}


class BinUnpickler(pickle.Unpickler):
    """Admits what a verification file holds and names what it refuses."""

    def __init__(self, data):
        # Old files were written by Python 2: its strings are bytes.
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.left, self.found = len(data), {}

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if (module, name) not in self.found:
            self.found[module, name] = self.own(ADMITTED[module, name])
        return self.found[module, name]

    def own(self, make):
        """A function for this file alone, as a stream can set attributes of what it is given.

        What it makes has in all no more bytes than the file, however often that names one object.
        """
        if isinstance(make, type):
            return make

        def counted(*arguments):
            made = make(*arguments)
            again = made is arguments[0] if arguments else False
            self.left -= len(made) if isinstance(made, bytes) and not again else 0
            if self.left < 0:
                raise pickle.UnpicklingError("more content than it has bytes")
            return made

        return counted

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it asks for a persistent object")


def read_bin(path):
    """Images uint8 (2P, 112, 112, 3) RGB and same flags bool (P,) of a verification file.

    Raises:
        UserError: missing, not such a file, asks for code, an odd number of images, images and flags that do
            not fit together, an image that does not decode or is not 112 x 112, more than MAX_BYTES.
    """
    path = Path(path)
    encoded, same = unpickle(path)
    if len(encoded) % 2:
        raise UserError(f"{path}: {len(encoded)} images, an odd number; a verification file holds pairs")
    if len(encoded) != 2 * len(same):
        raise UserError(
            f"{path}: {len(encoded)} images but {len(same)} same flags; there must be two images per flag"
        )
    images = np.empty((len(encoded), ARCFACE_SIZE, ARCFACE_SIZE, 3), np.uint8)

    first = {}
    for place, data in enumerate(encoded):
        first.setdefault(id(content_of(data)), place)

    def decode(place):
        images[place] = decode_image(encoded[place], path, place)

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for _ in pool.map(decode, first.values()):
            pass
    for place, data in enumerate(encoded):  # a file may name one image many times
        images[place] = images[first[id(content_of(data))]]
    return images, same


def check_amount(path, count, size=MAX_BYTES):
    """Refuse more images than a file of ``size`` bytes can hold, or than MAX_BYTES, before any is decoded."""
    most = min(size // MIN_ENCODED, MAX_BYTES // IMAGE_BYTES)
    if count > most:
        raise UserError(f"{path}: {count} images where at most {most} can be; split it or get it anew")


def unpickle(path):
    """(list of encoded images, bool array) of a file, checked for form only."""
    if not path.is_file():
        raise UserError(f"{path}: no such benchmark file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES // 2**30} GiB; split it into smaller files")
    data = path.read_bytes()
    try:
        check_pickle(io.BytesIO(data))
        content = BinUnpickler(data).load()
    except Exception as error:  # a crafted stream can raise anything
        raise UserError(
            f"{path}: refused as a verification file: {one_line(error)[:200] or type(error).__name__}; "
            "get it again from its source"
        ) from error
    if not (isinstance(content, (tuple, list)) and len(content) == 2):
        raise UserError(f"{path}: not a verification file (images, same flags); get it again from its source")
    images, flags = content
    flags = integers(flags) if isinstance(flags, Buffer) else flags
    if not (
        isinstance(images, (list, tuple))
        and isinstance(flags, (list, tuple))
        and images
        and all(is_image(item) for item in images)
        and all(isinstance(flag, (int, float)) and flag in (0, 1) for flag in flags)
    ):
        raise UserError(f"{path}: not a verification file: expected encoded images and true/false flags")
    check_amount(path, len(images), size)
    return images, np.array(flags, bool)


def integers(array):
    """The numbers in a Buffer, as a list."""
    kind = np.dtype(array.kind.order + array.kind.name)
    return np.frombuffer(array.data[: len(array.data) // kind.itemsize * kind.itemsize], kind).tolist()


def content_of(item):
    """The bytes of an image, which many items may have in common."""
    return item.data if isinstance(item, Buffer) else item


def is_image(item):
    """Whether an item may be an image: bytes, or an array of single bytes."""
    return isinstance(item, (bytes, bytearray)) or (isinstance(item, Buffer) and item.kind.name[1:] == "1")


def decode_image(item, path, place):
    """One image, encoded or, as a Buffer of its shape, as it is: uint8 RGB (112, 112, 3)."""
    data = content_of(item)
    if isinstance(item, Buffer) and item.shape == RAW_SHAPE and len(data) == IMAGE_BYTES:
        return np.frombuffer(data, np.uint8).reshape(RAW_SHAPE)
    if not 0 < len(data) <= MAX_ENCODED:
        raise UserError(f"{path}: image {place} has {len(data)} bytes; get the file again from its source")
    try:
        with open_picture(io.BytesIO(data)) as image:
            if image.size != (ARCFACE_SIZE, ARCFACE_SIZE):
                raise UserError(
                    f"{path}: image {place} is {image.width} x {image.height}; it must be 112 x 112"
                )
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise UserError(
            f"{path}: image {place} does not decode; get the file again from its source"
        ) from error


def write_bin(path, images, same):
    """Write uint8 images (2P, 112, 112, 3) RGB and flags (P,) as a verification file of JPEGs.

    Raises:
        UserError: the numbers of images and flags do not fit, or the images are not uint8 (112, 112, 3).
    """
    images, same = np.asarray(images), np.asarray(same).astype(bool)
    if images.dtype != np.uint8 or images.shape != (2 * len(same), ARCFACE_SIZE, ARCFACE_SIZE, 3):
        raise UserError(
            f"{path}: images {images.shape} {images.dtype} with {len(same)} flags; "
            "expected uint8 (2 x flags, 112, 112, 3)"
        )
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded = [cv2.imencode(".jpg", image[..., ::-1], quality)[1].tobytes() for image in images]
    # Protocol 2, lists and bytes: what insightface's own reader (encoding="bytes") takes as well.
    atomic_write_bytes(path, pickle.dumps((encoded, same.tolist()), protocol=2))
