"""Runs a command that never outlives the process that started it, not even one killed by SIGKILL.

    python -I -S guard.py COMMAND ARGUMENT...

Standard input is a pipe that the starting process holds open. The pipe closes when that process
ends for any reason; then this process kills its whole process group: the command and everything
that the command started. It uses the standard library alone and takes the command's exit status.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run the command and return its exit status, as a shell counts signals."""
    # A handler is reset in the command, an ignored signal would stay ignored there. The command
    # gets the signal too, as a member of the group, and decides how it ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    return status if status >= 0 else 128 - status


def _kill_group_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
