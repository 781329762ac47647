"""The one way in which a user's mistake is told: a message and exit status 2, never a traceback."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

EXIT_STATUS = 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

P = ParamSpec("P")


class UserError(Exception):
    """Something in the input that the user can mend.

    The message says what was found, what was expected and what to do.
    """


def exits_on_user_error(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command's `main` so that a `UserError` becomes one message and exit status 2.

    So does a disk that takes no more.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return EXIT_STATUS
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            where = f" {error.filename}" if error.filename else ""
            sys.stderr.write(
                f"error: cannot write{where}: {error.strerror}. Make room, then start again\n"
            )
            return EXIT_STATUS

    return wrapped
