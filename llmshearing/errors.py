"""How a command ends that cannot continue: one message and an exit status, no traceback."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

# Exit statuses of every command; 0 is success.
USER_ERROR_STATUS = 2  # wrong input, or no room or permission to write
RUN_ERROR_STATUS = 3  # a lost rank, a killed process
STOPPED_STATUS = 85  # a signal stopped the run early; the same command resumes it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)

P = ParamSpec("P")


class UserError(Exception):
    """Something in the input that the user can correct.

    The message says what was found, what was expected and what to do.
    """


class RunError(Exception):
    """A failure that the input did not cause: a lost rank, a killed process.

    The same command resumes the run from its last checkpoint.
    """


def exits_on_user_error(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command's `main` so that an expected error becomes one message and an exit status.

    2 for a `UserError` and for a path that cannot be written to, 3 for a `RunError`.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return USER_ERROR_STATUS
        except OSError as error:
            if error.errno not in (*NO_ROOM, *NO_PLACE):
                raise
            where = f" {error.filename2 or error.filename}" if error.filename else ""
            remedy = "Make room" if error.errno in NO_ROOM else "Give another place"
            sys.stderr.write(
                f"error: cannot write{where}: {error.strerror}. {remedy}, then start again\n"
            )
            return USER_ERROR_STATUS
        except RunError as error:
            sys.stderr.write(f"error: {error}\n")
            return RUN_ERROR_STATUS

    return wrapped
