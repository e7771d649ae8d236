"""Errors a user can cause, and the one place where they end a script."""

import difflib
import signal
import sys

from utils.text_tables import visible


class UserError(Exception):
    """Something the user can mend. The message is one line: file or field, what is wrong, what to do."""


class Interrupted(Exception):
    """The run was asked to stop (SIGINT, SIGTERM) and has saved its work."""


def run(main, exits=True):
    """Call an entry script's ``main``; turn a user's error into one line on stderr and exit code 2.

    ``main`` may return an exit code (None means 0). An interrupted run exits with 130. Without ``exits`` the
    script goes on after a ``main`` that ends well.
    """
    if {"--help", "-h"} & {*sys.argv}:  # whoever reads it (head, less) may leave before its end
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"stopped: {one_line(error) or 'interrupted'}; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    if exits:
        sys.exit(code or 0)


def did_you_mean(wrong, names):
    """The nearest of ``names`` as part of a message, "" when none is near."""
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"did you mean {near[0]}? " if near else ""


def one_line(error):
    """The message of an exception on a single line, escape sequences in it shown as text."""
    return visible(" ".join(str(error).split()))
