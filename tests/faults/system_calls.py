"""Kill a child at the entry of its n-th system call that changes the disk: those of SQLite are among them.

ptrace through ctypes, for Linux on x86-64 and arm64 (https://man7.org/linux/man-pages/man2/ptrace.2.html).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable

TRACEME, SETOPTIONS, SYSCALL, GET_SYSCALL_INFO, POKEUSER = 0, 0x4200, 24, 0x420E, 6
SYSGOOD, EXITKILL = 0x1, 0x100000
ENTRY = 1
LENGTH_REGISTER = 12 * 8  # rdx, the third argument, in x86-64's user area

# Numbers from the kernel's tables. Opening counts where it makes or empties a file (its third argument).
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "rename": 82,
        "mkdir": 83, "rmdir": 84, "unlink": 87, "symlink": 88, "chmod": 90, "fchmod": 91,
        "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265,
        "symlinkat": 266, "fchmodat": 268, "utimensat": 280, "fallocate": 285, "pwritev": 296,
        "renameat2": 316,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "fsync": 82, "fdatasync": 83, "ftruncate": 46, "openat": 56,
        "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38,
        "fallocate": 47, "fchmod": 52, "fchmodat": 53, "pwritev": 70, "utimensat": 88,
        "renameat2": 276,
    },
}  # fmt: skip


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info, as far as the entry of a call."""

    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    found = _libc.ptrace(request, pid, address, data)
    if found == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")
    return int(found)


def why_not() -> str | None:
    """Why this cannot be done here, if it cannot."""
    if platform.machine() not in NUMBERS:
        return f"system calls of {platform.machine()} are not known"
    try:
        if run(lambda: None, 1 << 30) != (0, 0):
            return "a child that does nothing was not seen doing nothing"
    except OSError as error:
        return str(error)
    return None


def run(work: Callable[[], None], fatal: int) -> tuple[int, int]:
    """Do `work` in a fork that is killed before its call numbered `fatal`; (exit code or -9, calls seen).

    Of every third call that is a write, half is done first.
    """
    numbers = NUMBERS[platform.machine()]
    names = {number: name for name, number in numbers.items()}
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        finally:
            os._exit(code)
    info, seen, pending = _Info(), 0, 0
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise OSError("ptrace: the child could not be traced")
    _ptrace(SETOPTIONS, pid, 0, SYSGOOD | EXITKILL)
    while True:
        _ptrace(SYSCALL, pid, 0, pending)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status), seen
        pending = os.WSTOPSIG(status)
        if pending != signal.SIGTRAP | 0x80:
            continue
        pending = 0
        _ptrace(GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
        name = names.get(info.number) if info.op == ENTRY else None
        if name is None or (name == "openat" and not info.arguments[2] & (os.O_CREAT | os.O_TRUNC)):
            continue
        seen += 1
        if seen < fatal:
            continue
        if "write" in name and fatal % 3 == 0 and platform.machine() == "x86_64" and name != "pwritev":
            _ptrace(POKEUSER, pid, LENGTH_REGISTER, info.arguments[2] // 2)
            _ptrace(SYSCALL, pid, 0, 0)
            os.waitpid(pid, 0)  # the call is over
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen
