"""How much memory a call takes at its peak."""

import resource
from pathlib import Path

MEBIBYTE = 2**20


def peak_growth(call):
    """Bytes by which the process grows at most during a call (Linux; what it held before is not counted)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    try:
        call()
    finally:
        after = status("VmHWM")
    return after - before


def status(name):
    """A figure of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def process_peak():
    """Bytes that this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
