"""Read the array scripts of slurm/ (docs/slurm.md): their columns, their file of rows and their command line.

`sweep check slurm/train.sbatch` finds what sbatch accepts, but what costs tasks: a wrong range of the array, a folder
for the output that does not exist, a variable that no column fills in. This module imports only the standard library.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from mpn_rl.options import ConfigError, nearest
from mpn_rl.sweep.submit_file import SUBCOMMANDS, Mistake, joined_lines, read_text

READ = re.compile(r"""IFS=', ' read -r ((?:[A-Za-z_]\w* ?)+)< <\(sed -n "\$\{SLURM_ARRAY_TASK_ID\}p" ([\w./+-]+)\)""")
OPTION = re.compile(r"#SBATCH\s+--([a-z-]+)(?:[= ](\S+))?")
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass
class SlurmScript:
    """One array script.

    Args:
        path: the file.
        columns: the names of the columns.
        rows_name: the file of rows, relative to the project's root.
        command: the arguments of main.py, with $(column) in them; None if the script does not run main.py.
        command_line: the number of the command's line.
        options: name -> (value, line) of the options of sbatch.
        reading_mistakes: mistakes found while reading.
        project: the folder in which the script is submitted.
        rows: the number of rows.
    """

    path: Path
    columns: tuple[str, ...]
    rows_name: str
    command: list[str] | None
    command_line: int
    options: dict[str, tuple[str, int]]
    reading_mistakes: list[Mistake] = field(default_factory=list)
    project: Path = Path()
    rows: int = 0

    @classmethod
    def read(cls, path: Path) -> SlurmScript:
        """Read a script. Raises: ConfigError if it is not of the form of slurm/train.sbatch."""
        text = read_text(path)
        lines = list(joined_lines(text))
        options = {
            option[1]: (option[2] or "", number) for number, line in lines if (option := OPTION.match(line.strip()))
        }
        reads = [(number, match) for number, line in lines if (match := READ.fullmatch(line.strip()))]
        runs = [(number, line.strip()) for number, line in lines if line.strip().startswith("exec ")]
        if len(reads) != 1 or len(runs) != 1:
            raise ConfigError(
                f"{path}: sweep reads scripts with one line IFS=', ' read -r COLUMN ... < <(sed -n "
                '"${SLURM_ARRAY_TASK_ID}p" FILE) and one line exec slurm/run.sh COMMAND ..., as slurm/train.sbatch has'
            )
        columns = tuple(reads[0][1][1].split())
        number, line = runs[0]
        try:
            words = shlex.split(line)[2:]
        except ValueError as error:
            raise ConfigError(f"{path}:{number}:1: {error}") from None
        mistakes = [
            Mistake(path, number, 1, f"${name} is not a column{nearest(name, columns)}")
            for word in words
            for name in VARIABLE.findall(word)
            if name not in columns
        ]
        command: list[str] | None = None
        if not re.search(r"(?m)^#\s*command:\s*none\b", text):
            command = [VARIABLE.sub(lambda match: f"$({match[1].lower()})", word) for word in words]
            if not command or command[0] not in SUBCOMMANDS:
                rule = f"the command must be one of {', '.join(SUBCOMMANDS)}, got {command[:1]}"
                mistakes.append(Mistake(path, number, 1, rule))
        names = tuple(name.lower() for name in columns)
        return cls(path, names, reads[0][1][2], command, number, options, mistakes)

    def mistakes(self) -> list[Mistake]:
        """What sbatch accepts, but what costs tasks."""
        found = list(self.reading_mistakes)
        array, line = self.options.get("array", ("", 1))
        if re.sub(r"%\d+$", "", array) != f"1-{self.rows}":
            found.append(
                Mistake(self.path, line, 1, f"--array must be 1-{self.rows}, a task per row, got {array or 'none'}")
            )
        output, line = self.options.get("output", ("", 1))
        if not {"%a", "%A"} <= set(re.findall("%.", output)):
            found.append(Mistake(self.path, line, 1, "--output needs %A and %a, or other tasks overwrite it"))
        folder = Path(output).parent
        if output and not (self.project / folder).is_dir():
            found.append(Mistake(self.path, line, 1, f"no folder {folder}, so tasks would fail; mkdir -p {folder}"))
        if self.command and self.command[0].startswith("train"):
            if " --checkpoint-exit-code 85 " not in f" {' '.join(self.command)} ":
                text = "the command needs --checkpoint-exit-code 85; without it, slurm/run.sh cannot see that it saved"
                found.append(Mistake(self.path, self.command_line, 1, text))
            if "requeue" not in self.options or not self.options.get("signal", ("",))[0].startswith("B:TERM@"):
                text = "without --requeue and --signal=B:TERM@120, a task that is stopped does not save and continue"
                found.append(Mistake(self.path, 1, 1, text))
        return found
