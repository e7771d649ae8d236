"""Progress bars and messages that do not tear each other apart."""

import sys

from tqdm import tqdm


def progress(iterable=None, desc=None, total=None, **options):
    """A tqdm bar on stderr; in a log file it prints a line every half a minute instead of flickering."""
    interactive = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        dynamic_ncols=interactive,
        mininterval=0.2 if interactive else 30,
        maxinterval=1 if interactive else 60,
        **options,
    )


def duration(seconds):
    """A length of time in words a person reads at once."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def log(message):
    """Print a line above any running bar."""
    tqdm.write(str(message), file=sys.stderr)
