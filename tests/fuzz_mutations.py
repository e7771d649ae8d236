"""Mutations of bytes, texts and trees, and a canary that tells when a pickle has run."""

import json

ODD = (
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 2000,
    "../../x",
    "/etc/passwd",
    "\0",
    "\ud800",
    "<script>",
    [],
    {},
    [[]],
    [1, 2],
    {"a": {}},
    "ü",
    0.5,
)


class Canary:
    """Unpickled, it would write a file: proof that code has run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def mutate_bytes(data, rng):
    """Flip, drop, repeat, insert or cut bytes; sometimes several of it."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place:place] = rng.randbytes(length)
        elif kind == 4:
            data = data[:place]
        elif place + 4 <= len(data):
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff"))
    return bytes(data)


def flip(data, rng):
    """A few bytes changed, the length kept: damage that a format's frame does not show."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 4, 32))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def mutate_json(value, rng):
    """The value with one node of its tree changed to something odd, removed or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            changed[rng.choice(("", "../x", "\0", "images"))] = changed.pop(key)
        elif rng.random() < 0.1:
            del changed[key]
        else:
            changed[key] = mutate_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], mutate_json(value[place], rng), *value[place + rng.randrange(2) :]]
    return rng.choice(ODD)


def mutate_text(text, rng):
    """JSON text changed by its structure or by its bytes; now and then nested without end."""
    if rng.random() < 0.02:
        return b"[" * 100_000
    if rng.random() < 0.3:
        return mutate_bytes(text.encode(), rng)
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 3))):
        value = mutate_json(value, rng)
    return json.dumps(value).encode()
