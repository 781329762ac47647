"""How a run or a command ends that cannot go on: one message and an exit status, no traceback."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

EXIT_STATUS = 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)
FAILURE_STATUS = 3

P = ParamSpec("P")


class UserError(Exception):
    """Something in the input that the user can mend.

    The message says what was found, what was expected and what to do.
    """


class RunError(Exception):
    """Something failed that the input is not to blame for: a lost rank, a killed process.

    Starting again goes on from the last checkpoint.
    """


def exits_on_user_error(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command's `main` so that a known end becomes one message and an exit status.

    2 for a `UserError` and for a place or a disk that takes no more, 3 for a `RunError`.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return EXIT_STATUS
        except OSError as error:
            if error.errno not in (*NO_ROOM, *NO_PLACE):
                raise
            where = f" {error.filename2 or error.filename}" if error.filename else ""
            remedy = "Make room" if error.errno in NO_ROOM else "Give another place"
            sys.stderr.write(
                f"error: cannot write{where}: {error.strerror}. {remedy}, then start again\n"
            )
            return EXIT_STATUS
        except RunError as error:
            sys.stderr.write(f"error: {error}\n")
            return FAILURE_STATUS

    return wrapped
