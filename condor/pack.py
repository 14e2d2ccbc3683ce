"""Pack this Python and the toolkit's packages into one file, for pools whose machines do not share your disk.

    .venv/bin/python condor/pack.py        writes condor/python.tar.gz and tests it in an empty folder

The file holds the interpreter, its standard library and the packages that mpn-rl requires, as they are installed here.
A job runs with exactly these versions and uses none of its machine's. That machine needs the same kind of processor and
a glibc at least as new as this one's; the last line of the output names both.
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
# Libraries that every Linux has. They are not packed: the parts of the C library work only with each other.
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
    """The installed packages that `name` requires, directly or not: by canonical name, without `name` itself."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    packages: dict[str, Distribution] = {}
    queue = [Requirement(name)]
    while queue:
        requirement = queue.pop()
        package = importlib.metadata.distribution(requirement.name)
        if requirement.name != name:
            packages[canonicalize_name(package.name)] = package
        for text in package.requires or []:
            needed = Requirement(text)
            applies = needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            )
            if applies and canonicalize_name(needed.name) not in packages:
                queue.append(needed)
    return packages


def files_of(package: Distribution) -> Iterator[tuple[Path, str]]:
    """Each file and its path under packages/; without caches, headers and scripts, which contain local paths."""
    for file in package.files or []:
        if ".." not in file.parts and file.suffix not in (".pyc", ".h", ".hpp", ".cuh", ".a"):
            yield Path(str(file.locate())), str(file)


def shared_libraries(*binaries: Path) -> set[Path]:
    """The libraries that these binaries are linked to, without those that every Linux has."""
    printed = subprocess.run(["ldd", *binaries], capture_output=True, text=True).stdout
    linked = re.findall(r"^\s*(\S+) => (/\S+)", printed, re.MULTILINE)
    return {Path(path) for name, path in linked if not SYSTEM.match(name)}


def pack(target: Path) -> None:
    """Write the file; an interrupted call leaves no partial one."""
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


def test(target: Path) -> str:
    """Import what training needs from the unpacked file, in an empty environment; returns PyTorch's version."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-xzf", target], cwd=folder, check=True)
        command = ["env", "-i", "PATH=/usr/bin:/bin", "python/bin/python", "-c", TRIAL]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    if shutil.which("ldd") is None:
        sys.exit("pack.py needs Linux")
    pack(TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size / 2**20:.0f} MiB")
    torch = test(TARGET)
    needed = f"{platform.machine()}, glibc {platform.libc_ver()[1]} or newer"
    print(f"tested in an empty folder: PyTorch {torch}; machines need {needed}")
