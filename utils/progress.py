"""Progress bars and messages that do not tear each other apart."""

import functools
import sys

from tqdm import tqdm

from utils.text_tables import visible


class Bar(tqdm):
    """A bar that shows names from outside without the escape sequences in them."""

    @property
    def format_dict(self):
        return super().format_dict | {"prefix": visible(self.desc)}


def progress(iterable=None, desc=None, total=None, **options):
    """A tqdm bar on stderr; in a log file it prints a line every half a minute instead of flickering."""
    interactive = sys.stderr.isatty()
    least, most = (0.2, 1) if interactive else (30, 60)
    options |= {"dynamic_ncols": interactive, "mininterval": least, "maxinterval": most}
    return Bar(iterable, desc=desc, total=total, **options)


@functools.cache
def log_once(message):
    """:func:`log`, unless this very message was logged before."""
    log(message)


def log(message, lines=False):
    """Print a line (with ``lines`` several) above any bar; escape sequences in it are shown, not sent."""
    tqdm.write(visible(message, "\n\t" if lines else ""), file=sys.stderr)
