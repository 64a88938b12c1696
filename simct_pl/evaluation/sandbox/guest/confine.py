"""The limits a process sets itself before it runs anything foreign; none can be lifted again.

Resource limits bound memory, files and processor time. A seccomp filter (seccomp(2)) refuses new processes, other
programs, tracing, memory that no limit counts, and outliving the parent: RLIMIT_NPROC does nothing where the sandbox's
user is root outside. They hold for every process inside, because this one is the only one (`bwrap --as-pid-1`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: errno EPERM
NOT_THERE = 0x00050026  # errno ENOSYS: the C library falls back from clone3 to clone, whose flags can be read
CLONE_THREAD = 0x00010000
CALL, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

# machine → (AUDIT_ARCH, clone, clone3, prctl, refused: fork, vfork, execve, execveat, ptrace, process_vm_readv and
# _writev, unshare, setns, mount, shmget, semget, msgget, memfd_create, memfd_secret, io_uring_setup, bpf, userfaultfd,
# perf_event_open, add_key, request_key, keyctl, pidfd_getfd)
CALLS: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        56,
        435,
        157,
        (57, 58, 59, 322, 101, 310, 311, 272, 308, 165, 29, 64, 68, 319, 447, 425, 321, 323, 298, 248, 249, 250, 438),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        167,
        (221, 281, 117, 270, 271, 97, 268, 40, 194, 190, 186, 279, 447, 425, 280, 282, 241, 217, 218, 219, 438),
    ),
}


def confine(memory_mb: int, cpu_seconds: int, file_mb: int) -> None:
    """Limit this process. memory_mb: of address space, on top of what the interpreter has.

    Raises:
        OSError: if the kernel takes no filter. KeyError: for a machine whose call numbers are not known.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        own = int(file.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: own + memory_mb * 2**20,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_mb * 2**20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    _filter_calls(filter_program(platform.machine()))
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def silence() -> None:
    """Let standard input, output and errors lead nowhere: what is printed is no message, and costs nothing."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)


def filter_program(machine: str) -> bytes:
    """The filter's instructions, each (code, jump if true, jump if false, constant)."""
    architecture, clone, clone3, prctl, refused = CALLS[machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, CALL)]
    code += [(JUMP_IF_AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # x32: the same calls by other numbers
    for call in refused:
        code += [(JUMP_IF_EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE)]
    code += [(JUMP_IF_EQUAL, 0, 1, clone3), (RETURN, 0, 0, NOT_THERE)]
    code += [(JUMP_IF_EQUAL, 0, 3, prctl), (LOAD, 0, 0, FIRST_ARGUMENT)]
    code += [(JUMP_IF_EQUAL, 0, 1, PR_SET_PDEATHSIG), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, CALL)]
    code += [(JUMP_IF_EQUAL, 0, 3, clone), (LOAD, 0, 0, FIRST_ARGUMENT)]
    code += [(JUMP_IF_ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter_calls(instructions: bytes) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    program = _Program(len(instructions) // 8, instructions)
    die_with_parent = (PR_SET_PDEATHSIG, signal.SIGKILL, None, 0, 0)  # bwrap has said so already, where there is one
    no_new_rights = (PR_SET_NO_NEW_PRIVS, 1, None, 0, 0)
    filter_calls = (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0)
    for call in (die_with_parent, no_new_rights, filter_calls):
        if prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
