"""The `moesim` command. Only this package prints, reads flags and sets exit codes.

Exit codes: 0 done, 2 wrong input (what is wrong on stderr, a line per broken rule), 130 interrupted.
"""

import sys
from io import TextIOWrapper

from moesim.cli.app import app
from moesim.errors import InputError

_WRONG_INPUT, _INTERRUPTED = 2, 130


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a traceback
    try:
        app()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(_WRONG_INPUT)
    except OSError as error:
        if error.filename is None:  # not of a file that the user named
            raise
        sys.stderr.write(f"error: {error.filename}: cannot be read or written ({error.strerror})\n")
        sys.exit(_WRONG_INPUT)
    except MemoryError:
        sys.stderr.write("error: the memory of this machine does not suffice; take fewer requests or a smaller model\n")
        sys.exit(_WRONG_INPUT)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer has turned the KeyboardInterrupt into this
            sys.stderr.write("interrupted; unfinished work is not written\n")
        raise
