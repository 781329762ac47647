"""A pseudo-terminal, and what was written to it."""

import os
import pty
import select
from contextlib import contextmanager


@contextmanager
def pseudo_terminal():
    """Gives a file that is a terminal, and a function that reads what it shows since last time."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as file:

        def read():
            file.flush()
            shown = b""
            while select.select([master], [], [], 0.1)[0]:  # the kernel delivers with a delay
                shown += os.read(master, 1000)
            return shown.decode()

        yield file, read
    os.close(master)
