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


def log(message):
    """Print a line above any running bar."""
    tqdm.write(str(message), file=sys.stderr)
