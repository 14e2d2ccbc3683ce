"""Pack Python and the packages of the toolkit into one file, for pools without a shared disk.

    .venv/bin/python condor/pack.py        writes condor/python.tar.gz and tests it in an empty folder

The file contains the interpreter, its standard library and the packages that mpn-rl requires, as they are installed
here. A job thus uses the versions that were tested on this machine. It needs the same kind of CPU, and a glibc that is
not older than that of this machine; the last line of output states both.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

TARGET = Path(__file__).resolve().parent / "python.tar.gz"
# Libraries of the system, which are not packed: mixing two versions of the C library fails.
SYSTEM = re.compile(r"(ld-linux|linux-vdso|lib(c|m|dl|rt|pthread|util|resolv|nsl|crypt|gcc_s|stdc\+\+)\.so)")
LAUNCHER = """\
#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONHOME="$here" PYTHONPATH="$here/packages" PYTHONNOUSERSITE=1
export LD_LIBRARY_PATH="$here/libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/bin/python-real" "$@"
"""
TRIAL = "import torch, numba, gymnasium, neurogym, scipy, matplotlib; torch.ones(2).sum(); print(torch.__version__)"


def requirements(name: str) -> dict[str, Distribution]:
    """The installed packages that `name` requires directly or indirectly, by name."""
    from packaging.requirements import Requirement

    found: dict[str, Distribution] = {}
    waiting = [Requirement(name)]
    while waiting:
        asked = waiting.pop()
        package = importlib.metadata.distribution(asked.name)
        if asked.name != name:
            found[package.name] = package
        for text in package.requires or []:
            needed = Requirement(text)
            wanted = needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)
            )
            if wanted and needed.name not in found and normal(needed.name) not in map(normal, found):
                waiting.append(needed)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def files_of(package: Distribution) -> Iterator[tuple[Path, str]]:
    """(file, its path under packages/), without caches, headers, and scripts that contain paths of this machine."""
    for file in package.files or []:
        if ".." not in file.parts and file.suffix not in (".pyc", ".h", ".hpp", ".cuh", ".a"):
            yield Path(str(file.locate())), str(file)


def shared_libraries(*binaries: Path) -> set[Path]:
    """The libraries that these binaries are linked to, except those of the system."""
    listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True).stdout
    found = re.findall(r"^\s*(\S+) => (/\S+)", listed, re.MULTILINE)
    return {Path(path) for name, path in found if not SYSTEM.match(name)}


def pack(target: Path) -> None:
    """Write the file atomically."""
    interpreter = Path(os.path.realpath(sys.executable))
    standard = Path(sysconfig.get_path("stdlib"))
    modules = sorted((standard / "lib-dynload").glob("*.so"))
    modules = [path for path in modules if not path.name.startswith(("_tkinter", "_test"))]
    left_out = {
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "idlelib",
        "tkinter",
        "ensurepip",
        "turtledemo",
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".python.", suffix=".tmp") as folder:
        launcher, partial = Path(folder, "python"), Path(folder, "python.tar.gz")
        launcher.write_text(LAUNCHER)
        launcher.chmod(0o755)
        with tarfile.open(partial, "w:gz", compresslevel=3) as tar:
            tar.add(launcher, "python/bin/python")
            tar.add(interpreter, "python/bin/python-real")
            for path in sorted(standard.rglob("*")):
                inside = path.relative_to(standard)
                if not left_out & set(inside.parts) and not inside.parts[0].startswith("config-") and path.is_file():
                    tar.add(path, str("python" / standard.relative_to(sys.base_prefix) / inside))
            for library in sorted(shared_libraries(interpreter, *modules)):
                tar.add(library.resolve(), f"python/libraries/{library.name}")
            for package in requirements("mpn-rl").values():
                for path, place in files_of(package):
                    tar.add(path, f"python/packages/{place}")
        os.replace(partial, target)


def check_import(target: Path) -> str:
    """Unpack into an empty folder and import the packages in an empty environment. Returns: PyTorch's version."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-xzf", target], cwd=folder, check=True)
        command = ["env", "-i", "PATH=/usr/bin:/bin", "python/bin/python", "-c", TRIAL]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    if shutil.which("ldd") is None:
        sys.exit("pack.py needs Linux")
    pack(TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size / 2**20:.0f} MiB")
    torch = check_import(TARGET)
    needed = f"{platform.machine()}, glibc {platform.libc_ver()[1]} or newer"
    print(f"tested in an empty folder: PyTorch {torch}; machines need {needed}")
