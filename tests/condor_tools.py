"""HTCondor's own programs, unpacked into a folder, for the tests and `make condor-pool-test`; nothing is installed.

    python tests/condor_tools.py          fetch and unpack them (some 30 MB), print the folder
    CONDOR_ROOT=DIR                       the folder, else ~/.cache/mpn-rl-condor

Debian has HTCondor from release 13 (trixie) on. The package source is the machine's own, with the release's name
exchanged; apt keeps its lists and packages in the folder, and the programs run with the loader and the libraries
they came with. Where that cannot be, `UnavailableError` says why, and the tests that need the programs are skipped.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

RELEASE = "trixie"
SOURCES = Path("/etc/apt")
NEEDED = re.compile(r"(condor|lib(?!perl|python|js-|date-|debconf|pam|semanage|sepol|db5|gdbm|ncurses|readline))")


class UnavailableError(RuntimeError):
    """Why there is no HTCondor here."""


def condor_root() -> Path:
    """The folder with HTCondor's programs in bin/ and sbin/, unpacked on the first call.

    Raises: UnavailableError where the machine is no Debian, or its package sources do not have HTCondor.
    """
    root = Path(os.environ.get("CONDOR_ROOT") or Path.home() / ".cache" / "mpn-rl-condor")
    if not (root / "complete").exists():
        root.mkdir(parents=True, exist_ok=True)
        with open(root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests that run side by side fetch it once
            if not (root / "complete").exists():
                _unpack(root, _download(root / "apt"))
                _write_launchers(root)
                shutil.rmtree(root / "apt")
                (root / "complete").touch()
    return root


def run(root: Path, program: str, *arguments: str, config: str = "/dev/null", **options) -> subprocess.CompletedProcess:
    """One of HTCondor's commands; without a pool's configuration it knows none."""
    environment = {**os.environ, "CONDOR_CONFIG": config}
    command = [str(root / "bin" / program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


def package_source(text: str, codename: str) -> str:
    """The Debian entries of one of apt's source files, in either of its two forms, for RELEASE instead."""
    suites = rf"\b{codename}(-updates|-security)?\b"
    one_line = [line for line in text.splitlines() if re.match(rf"deb\s+(\[[^]]*\]\s+)?\S+\s+{suites}\s", line)]
    stanzas = [part for part in re.split(r"\n\s*\n", text) if re.search(rf"(?m)^Suites:\s*{suites}", part)]
    return re.sub(rf"\b{codename}\b", RELEASE, "\n".join(one_line) or "\n\n".join(stanzas))


def _download(folder: Path) -> list[Path]:
    """HTCondor and all that it stands on, as package files; nothing counts as installed."""
    known = Path("/etc/os-release")
    release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)', known.read_text() if known.exists() else ""))
    if release.get("ID") != "debian" or not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("HTCondor is fetched with Debian's apt, and this is no Debian")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("lists/partial", "archives/partial", "sources"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    found = False
    for source in [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*.*"))]:
        if source.suffix in (".list", ".sources") and source.is_file():
            entries = package_source(source.read_text(), release.get("VERSION_CODENAME", "none"))
            (folder / "sources" / source.name).write_text(entries + "\n")
            found = found or bool(entries)
    if not found:
        raise UnavailableError("apt's configuration names no Debian package source")
    options = {"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": folder / "sources",
               "Dir::State::lists": folder / "lists", "Dir::State::status": folder / "status",
               "Dir::Cache::archives": folder / "archives", "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
               "APT::Install-Recommends": "false", "APT::Sandbox::User": "", "Debug::NoLocking": "true",
               "Acquire::Retries": "1", "Acquire::http::Timeout": "20"}  # fmt: skip
    apt = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    for step in (["update"], ["install", "--download-only", "condor"]):
        done = subprocess.run([*apt, *step], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UnavailableError(f"the package sources do not offer HTCondor (apt-get {step[0]}: {reason})")
    return [package for package in sorted((folder / "archives").glob("*.deb")) if NEEDED.match(package.name)]


def _unpack(root: Path, packages: list[Path]) -> None:
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", package, root / "debian"], check=True)


def _write_launchers(root: Path) -> None:
    """bin/, sbin/ and libexec/: every program under its own name, run by the loader that came with its libraries."""
    debian = root / "debian"
    loader = next(debian.glob("usr/lib/*/ld-linux-*"))
    libraries = f"{loader.parent}:{debian / 'usr/lib'}"
    for name, folder in {"bin": "usr/bin", "sbin": "usr/sbin", "libexec": "usr/libexec/condor"}.items():
        (root / name).mkdir(exist_ok=True)
        for program in (debian / folder).glob("*"):
            if program.is_file() and program.read_bytes()[:4] == b"\x7fELF":
                launcher = root / name / program.name
                launcher.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{libraries}" "{program}" "$@"\n')
                launcher.chmod(0o755)


if __name__ == "__main__":
    try:
        print(condor_root())
    except UnavailableError as reason:
        print(f"skipped: {reason}", file=sys.stderr)
