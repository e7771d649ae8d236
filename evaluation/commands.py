"""Other Python programs, run as a user would run them."""

import shlex
import subprocess
import sys

from utils.errors import UserError
from utils.progress import log


def run_python(*arguments):
    """Run ``python ARGUMENTS...`` in the current folder; the command is printed, so that it can be repeated.

    Raises:
        UserError: it ended with another exit code than 0.
    """
    command = shlex.join(map(str, arguments))
    log(f"\n$ python {command}", lines=True)
    code = subprocess.run([sys.executable, *map(str, arguments)]).returncode
    if code:
        raise UserError(f"{command}: ended with exit code {code}; see its messages above, then run it again")
