"""A pseudo-terminal, and what was written to it."""

import os
import pty
import select
from contextlib import contextmanager


@contextmanager
def pseudo_terminal():
    """Yield a file that is a terminal, and a function that reads its new output."""
    master, slave = pty.openpty()
    ready = select.poll()  # unlike select(), for any number of open files
    ready.register(master, select.POLLIN)
    with os.fdopen(slave, "w") as file:

        def read():
            file.flush()
            shown = b""
            while ready.poll(100):  # milliseconds; the kernel delivers with a delay
                shown += os.read(master, 1000)
            return shown.decode()

        yield file, read
    os.close(master)
