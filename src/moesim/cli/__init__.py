"""The `moesim` command. Only this package prints, reads flags and sets exit codes.

Exit codes: 0 done, 2 wrong input (one message on stderr), 130 interrupted.
"""

import sys

from moesim.cli.app import app
from moesim.errors import InputError

_WRONG_INPUT, _INTERRUPTED = 2, 130


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_WRONG_INPUT)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        sys.exit(_INTERRUPTED)
