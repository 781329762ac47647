"""How a command ends that cannot continue: one message and an exit status, no traceback."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

# Exit statuses of every command; 0 is success.
USER_ERROR_STATUS = 2  # wrong input, or no room or permission to write
RUN_ERROR_STATUS = 3  # a lost rank, a killed process
STOPPED_STATUS = 85  # a signal stopped the run early; the same command resumes it

# What to do about an error of the operating system, and the exit status.
REMEDIES: dict[int, tuple[str, int]] = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
        ("Make room on the disk, then run the same command again", USER_ERROR_STATUS),
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
        ("Choose another path", USER_ERROR_STATUS),
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE),
        ("Raise the limit of open files (ulimit -n), then run it again", USER_ERROR_STATUS),
    ),
    errno.ENOENT: (
        "Something removed it while the command ran; restore it or start in a new place",
        RUN_ERROR_STATUS,
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        ("Check the disk or the network file system, then run it again", RUN_ERROR_STATUS),
    ),
}

P = ParamSpec("P")


class UserError(Exception):
    """Something in the input that the user can correct.

    The message says what was found, what was expected and what to do.
    """


class RunError(Exception):
    """A failure that the input did not cause: a lost rank, a killed process.

    The same command resumes the run from its last checkpoint.
    """


def remedy_of(error: OSError) -> tuple[str, int] | None:
    """What to do about an error of the operating system, and the exit status; None if unknown."""
    if error.errno is None or (error.errno == errno.ENOENT and not error.filename):
        return None
    return REMEDIES.get(error.errno)


def exits_on_user_error(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command's `main` so that an expected error becomes one message and an exit status.

    2 for a `UserError`, 3 for a `RunError`; an error of the operating system has the status that
    `REMEDIES` gives it.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return USER_ERROR_STATUS
        except OSError as error:
            if (known := remedy_of(error)) is None:
                raise
            remedy, status = known
            path = error.filename2 or error.filename
            where = f"cannot use {path}: " if path else ""
            sys.stderr.write(f"error: {where}{error.strerror}. {remedy}\n")
            return status
        except RunError as error:
            sys.stderr.write(f"error: {error}\n")
            return RUN_ERROR_STATUS

    return wrapped
