"""Snapshots: the code and configuration of a sweep, frozen in `experiments/.sweep/<name>/code` (docs/sweeps.md).

Rows that wait in a queue run from there, so editing the working tree changes no result. A snapshot holds what git
knows and does not ignore; without git, the files that are not hidden. It never holds experiments, virtual environments,
or what a link outside the project leads to. This module imports only the standard library and option modules.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from mpn_rl.config import package_data
from mpn_rl.options import ConfigError
from mpn_rl.storage.regular_files import disk_errors, open_regular, temporary_path

MAX_BYTES = 256 * 2**20
MAX_FILES = 20_000
RECORD, CHANGES = "snapshot.json", "changes.diff"  # in the snapshot itself; model_utils reads the record
TOOLKIT = Path(__file__).resolve().parents[2]


@dataclass
class Tree:
    """What a snapshot takes from a project.

    Args:
        root: the project's folder.
        files: relative path -> file, or a link that stays in the project.
        commit: of git; "unknown" without git.
        changed: the files that differ from the commit or that it lacks.
        diff: the difference of the commit's files to it.
        left_out: links that leave the project, and what is neither a file nor a link.
    """

    root: Path
    files: dict[str, Path] = field(default_factory=dict)
    commit: str = "unknown"
    changed: list[str] = field(default_factory=list)
    diff: bytes = b""
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, project: Path, experiments: Iterable[Path]) -> Tree:
        """The tree of a project, with the toolkit's own files where the project is not the toolkit's clone.

        Args:
            project: the folder in which the rows would run here.
            experiments: folders that a snapshot must not hold.
        Raises: ConfigError for a tree that is too large.
        """
        root = project.resolve()
        tree = cls(root)
        own = (root / "experiments", root / ".venv", *(root / folder for folder in experiments))
        skipped = {*own, *(folder.resolve() for folder in own)}
        listed = _git_files(root)
        names = _walk(root, skipped) if listed is None else listed
        for name in sorted(set(names)):
            tree._add(name, skipped)
        tree._drop_links_to_nowhere()
        if listed is not None:
            tree._read_git()
        for name, path in _toolkit_files(root):
            tree.files[name] = path
        tree._check_size()
        return tree

    def _add(self, name: str, skipped: set[Path]) -> None:
        path = self.root / name
        if any(_is_skipped(folder, skipped) for folder in (path, *path.parents) if self.root in folder.parents):
            return
        try:
            mode = path.lstat().st_mode
        except OSError:  # deleted, but not yet for git
            return
        if stat.S_ISDIR(mode):  # another repository inside this one
            for inner in _git_files(path) or _walk(path, skipped):
                self._add(f"{name.rstrip('/')}/{inner}", skipped)
        elif stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and self.root in Path(os.path.realpath(path)).parents):
            self.files[name] = path
        else:
            self.left_out.append(name)

    def _drop_links_to_nowhere(self) -> None:
        """Leave out links to what the snapshot does not hold."""
        known = {folder for name in self.files for folder in (name, *map(str, Path(name).parents))}
        for name, path in list(self.files.items()):
            real = os.path.realpath(path)  # of a loop, one of its links
            if path.is_symlink() and (os.path.islink(real) or os.path.relpath(real, self.root) not in known):
                del self.files[name]
                self.left_out.append(name)

    def _read_git(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.commit = _git(self.root, "rev-parse", "HEAD").decode().strip()
            self.diff = _git(self.root, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", "--", ".")
            states = _git(self.root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".")
            prefix = _git(self.root, "rev-parse", "--show-prefix").decode().strip()
            changed = [os.fsdecode(entry[3:]).removeprefix(prefix) for entry in states.split(b"\0") if entry]
            self.changed = [name for name in changed if name in self.files or not (self.root / name).exists()]

    def _check_size(self) -> None:
        sizes = {name: path.lstat().st_size for name, path in self.files.items()}
        if len(sizes) > MAX_FILES or sum(sizes.values()) > MAX_BYTES:
            largest = max(sizes, key=lambda name: sizes[name])
            raise ConfigError(
                f"a snapshot of {self.root} would hold {len(sizes):,} files with {sum(sizes.values()) >> 20:,} MiB (at "
                f"most {MAX_FILES:,} and {MAX_BYTES >> 20}); list what the rows do not need in .gitignore, such as "
                f"{largest} ({sizes[largest] >> 20:,} MiB)"
            )

    def place_of(self, file: Path) -> str:
        """The path of a file inside the snapshot. Raises: ConfigError if the snapshot does not hold it."""
        name = os.path.relpath(file.resolve(), self.root)
        if name not in self.files:
            raise ConfigError(
                f"{file} would not be in the snapshot: put it into {self.root}, where git does not ignore it"
            )
        return name


def _git(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).stdout


def _git_files(folder: Path) -> list[str] | None:
    """What git knows and does not ignore, relative to a folder; None without git or if it ignores the folder."""
    try:
        listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except (subprocess.SubprocessError, OSError):
        return None
    return [os.fsdecode(name) for name in listed.split(b"\0") if name] or None


def _is_skipped(path: Path, skipped: set[Path]) -> bool:
    return path in skipped or path.name in (".git", ".sweep", "__pycache__") or (path / "pyvenv.cfg").is_file()


def _walk(root: Path, skipped: set[Path]) -> Iterator[str]:
    """The files below a folder that are not hidden, by relative path."""
    count = 0
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and name not in links and not _is_skipped(Path(folder) / name, skipped)
        ]
        for name in [*files, *links]:
            if name[0] != ".":
                count += 1
                if count > MAX_FILES:
                    raise ConfigError(
                        f"{root} has more than {MAX_FILES:,} files, too many for a snapshot; put the code under git, "
                        "or start in the folder of the code"
                    )
                yield os.path.relpath(os.path.join(folder, name), root)


def _toolkit_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(place in the snapshot, file) of the toolkit, where the project is another folder."""
    if root == TOOLKIT:
        return
    installed = metadata.files("mpn-rl") if not (TOOLKIT / "pyproject.toml").exists() else None
    names = [str(file) for file in installed or ()] or _git_files(TOOLKIT) or list(_walk(TOOLKIT, set()))
    for name in names:
        path = TOOLKIT / name
        if name.endswith(".py") and path.is_file() and (name.startswith("mpn_rl/") or "/" not in name):
            yield name, path
    for folder in ("condor", "slurm", "configs"):  # inside the package in a wheel, beside it in a clone
        for path in sorted(package_data(folder).iterdir()):
            if path.is_file() and path.suffix != ".gz":
                yield f"{folder}/{path.name}", path


# --- writing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A frozen tree: its folder, the hash of its contents, and whether this call wrote it."""

    path: Path
    digest: str
    new: bool


def freeze(tree: Tree, folder: Path) -> Snapshot:
    """Copy a tree to `folder/code`, read-only; an equal snapshot that is there is used again.

    If the code has changed since, the new snapshot is `code-2`, `code-3` and so on: rows may still run from the others.

    Raises: ConfigError if the disk refuses.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".code.*.tmp"):  # of a process that was killed
            remove(leftover)
        partial = temporary_path(folder / "code")
        try:
            digest = _copy(tree, partial)
            record = {
                "commit": tree.commit,
                "changed": tree.changed,
                "digest": digest,
                "from": str(tree.root),
                "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            (partial / CHANGES).write_bytes(tree.diff)
            for known in sorted(folder.glob("code*")):
                if _is_intact(known, digest):
                    return Snapshot(known, digest, False)
            names = ["code", *(f"code-{number}" for number in range(2, 10_000))]
            target = next(folder / name for name in names if not (folder / name).exists())
            for path in [*partial.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444)
            os.rename(partial, target)
            os.chmod(target, 0o555)
            return Snapshot(target, digest, True)
        finally:
            remove(partial)


def _copy(tree: Tree, target: Path) -> str:
    """Copy a tree's files. Returns: the hash of their names, modes and contents."""
    target.mkdir()
    for name, path in tree.files.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and tree.root in path.parents:
            real = os.path.relpath(os.path.realpath(path), tree.root)
            os.symlink(os.path.relpath(real, os.path.dirname(name) or "."), copy)
            continue
        with open_regular(path, follow=tree.root not in path.parents) as source, open(copy, "wb") as written:
            shutil.copyfileobj(source, written, 2**20)
            if os.fstat(source.fileno()).st_mode & stat.S_IXUSR:
                os.chmod(copy, 0o755)
    return digest_of(target)


def digest_of(folder: Path) -> str:
    """The SHA-256 of a snapshot's names, modes and contents, without its record and what Python caches."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in (RECORD, CHANGES) or "__pycache__" in name:
            continue
        if path.is_symlink():
            whole.update(f"{name}\0link\0{os.readlink(path)}\n".encode(errors="surrogateescape"))
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{name}\0{os.access(path, os.X_OK)}\0{content}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _is_intact(folder: Path, digest: str) -> bool:
    """Whether a folder is a snapshot with this hash, by its record and by its contents."""
    try:
        recorded = json.loads((folder / RECORD).read_bytes())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return recorded == digest == digest_of(folder)


def remove(folder: Path) -> None:
    """Remove a snapshot, whose folders are read-only."""
    if folder.is_dir() and not folder.is_symlink():
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o755)
        shutil.rmtree(folder)
