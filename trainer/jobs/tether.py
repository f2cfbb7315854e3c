"""A command that does not outlive the process that started it, even when that is killed.

Run as a file, `tether.py PARENT COMMAND…`: the kernel is asked for the signal here, before
COMMAND takes this process over. (A function run between fork and exec could ask as well, but
must not run where the parent has threads.)
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become COMMAND, bound to PARENT."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the kernel was asked
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
