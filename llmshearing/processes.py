"""Child processes that end with their parent."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def exit_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux).

    Survives `exec`, so it can be the `preexec_fn` of a command. Children do not inherit it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
