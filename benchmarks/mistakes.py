"""Hundreds of bad inputs from a fixed seed, for torture.py: mistakes of users, and damaged files.

Each case is a command line and its bad files. The answer must be one line on stderr and exit status 2, and no file may
be created, deleted or changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import string
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, get_origin

import main as program
from mpn_rl import config as cfg
from mpn_rl.options import fields_of, flag_of, unwrap_optional

TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--max-episode-steps", "30", "--eval-episodes", "2",
        "--learning-starts", "50", "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8",
        "--batch-size", "4", "--kernel", "reference", "--eval-freq", "100", "--checkpoint-freq", "100"]  # fmt: skip
OVERRIDDEN = ("total_steps", "num_envs")  # of a --config file, by QUICK
QUICK = ["--total-steps", "40", "--num-envs", "2", "--no-plot-training"]  # should a case be accepted after all
NAMES = ("", " ", "a/b", "../x", "..", ".hidden", "a\nb", "a\tb", " lead", "trail ", "x" * 101, "\u00fc" * 60, "a\\b")
LIMIT_S = 30


class Case(NamedTuple):
    kind: str
    argv: list[str]
    files: dict[str, bytes]  # path in the working folder -> what stands there instead


def cases(number: int, seed: int, home: Path) -> Iterator[Case]:
    """`number` cases of all kinds, in the shares of KINDS; `home` holds experiments/whole and experiments/half."""
    random = Random(seed)
    total = sum(share for share, _ in KINDS.values())
    for kind, (share, make) in KINDS.items():
        for _ in range(round(number * share / total)):
            argv, files = make(random, home)
            yield Case(kind, argv, files)


# --- the command line ---------------------------------------------------------------------------------------


def _fields() -> list[tuple[Any, Any]]:
    classes = {choice.section for part in cfg.PARTS for choice in cfg.choices(part).values()}
    return [pair for cls in sorted(classes, key=lambda cls: cls.__name__) for pair in fields_of(cls)]


def bad_value(random: Random, field: Any, kind: Any) -> str:
    """A text that the field does not accept: of another type, or out of range."""
    kind, optional = unwrap_optional(kind)
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    word = "".join(random.choices(string.ascii_lowercase, k=random.randint(1, 8))) + "!"
    if get_origin(kind) is dict:
        return random.choice([word, f"={word}", f"{word}=1"])
    if kind not in (int, float):
        return word
    result = [word, "", "1,5", "0x10", "--", "1 2"] + ([] if optional else ["none"])
    if kind is int:
        result += ["1.5", "1.5e0", "nan", str(10**16), "1" * 400]
        result += [] if low is None else [str(low - random.randint(1, 1000))]
        result += [] if high is None else [str(int(high) + random.randint(1, 1000))]
    else:
        result += ["nan", "inf", "-inf", "1e999"]
        result += [] if low is None else [str(low - random.random() - 1e-9)]
        result += [] if above is None else [str(above), str(above - random.random())]
        result += [] if high is None else [str(high + random.random() + 1e-9)]
    return random.choice(result)


def bad_flag_value(random: Random, _: Path) -> tuple[list[str], dict[str, bytes]]:
    field, kind = random.choice([pair for pair in _fields() if pair[0].name != "exempt"])
    plain, _optional = unwrap_optional(kind)
    text = bad_value(random, field, kind)
    given = [f"{flag_of(field)}={text}"] if plain is bool or random.random() < 0.5 else [flag_of(field), text]
    return [random.choice(["train", "train-neurogym"]), "--experiment-name", "new", *QUICK, *given], {}


def misspelt_flag(random: Random, _: Path) -> tuple[list[str], dict[str, bytes]]:
    known = {flag_of(field) for field, _ in _fields()}
    while True:
        flag = random.choice(sorted(known))
        place = random.randrange(3, len(flag))
        typo = flag[:place] + random.choice(["", random.choice(string.ascii_lowercase)]) + flag[place + 1 :]
        if typo not in known and not typo.startswith("--no-") and typo not in ("--resume", "--config"):
            return ["train", "--experiment-name", "new", *QUICK, typo, "1"], {}


def idle_flag(random: Random, _: Path) -> tuple[list[str], dict[str, bytes]]:
    """An option of a core or a learner that is not in use."""
    part = random.choice(["core", "learner"])
    choices = cfg.choices(part)
    chosen, other = random.sample(sorted(choices), 2)
    read = {field.name for field, _ in _fields_used(part, choices[chosen].section)}
    idle = [
        field for field, kind in fields_of(choices[other].section) if field.name not in read and kind in (int, float)
    ]
    if not idle:
        return idle_flag(random, _)
    field = random.choice(idle)
    flag, _base = cfg.KINDS[part]
    return ["train", "--experiment-name", "new", *QUICK, flag, chosen, flag_of(field), str(field.default)], {}


def _fields_used(part: str, chosen: Any) -> list[tuple[Any, Any]]:
    others = [choice.section for name in cfg.PARTS if name != part for choice in cfg.choices(name).values()]
    return [pair for cls in [chosen, *others] for pair in fields_of(cls)]


def bad_command(random: Random, _: Path) -> tuple[list[str], dict[str, bytes]]:
    word = "".join(random.choices(string.ascii_lowercase, k=random.randint(3, 9))) + "x"
    new = ["train", "--experiment-name", "new", *QUICK]
    given = random.choice([
        [word], [], ["--" + word], ["train", word, *QUICK], [*new, "--core", word], [*new, "--algo", word],
        [*new, "--expansion", word], [*new, "--env-name", f"{word}-v0"], [*new, "--env-name", f"{word}/x"],
        [*new, "--config", f"{word}.json"], [*new, "--config", "."], [*new, "--resume", word],
        [*new, "--resume", "--overwrite"], ["train", "--resume", *QUICK], ["train", "--overwrite", *QUICK],
        [*new, "--experiments-dir", "a-file"], [*new, "--experiments-dir", f"/proc/{word}"],
        ["train", "--experiment-name", random.choice(NAMES), *QUICK],
        ["train", "--experiment-name", "whole", *QUICK], ["train-neurogym", "--experiment-name", "half", *QUICK],
        ["train", "--experiment-name", "half", "--resume", "--seed", str(random.randint(1, 10**6))],
        ["train", "--experiment-name", "half", "--resume", "--hidden-dim", str(random.randint(5, 500))],
        ["train", "--experiment-name", word, "--resume"], [*new, "--checkpoint-exit-every", "5"],
        [*new, "--checkpoint-exit-code", random.choice(["0", "-1", "256", word])],
        ["train-neurogym", "--experiment-name", "new", *QUICK, "--env-name", f"{word}-v0"],
        [random.choice(["eval", "render", "analyze"]), "--experiment-name", random.choice([word, "a/b", "", "."])],
        [random.choice(["eval", "render", "analyze"]), "--experiment-name", "whole", "--checkpoint", word],
        ["eval", "--experiment-name", "whole", "--num-eval-episodes", random.choice(["0", "-3", "1.5", word])],
        ["eval", "--experiment-name", "whole", "--num-eval-trials", "10"],
        ["render", "--experiment-name", "whole", "--output", random.choice([f"{word}.avi", f"{word}/x.gif"])],
        ["analyze", word, "--experiment-name", "whole"], ["analyze", "plot", "--experiment-name", "whole"],
        ["analyze", "--experiment-name", "whole", "--epsilon", random.choice(["2", "-0.1", "nan", word])],
        ["analyze", "--experiment-name", "whole", "--color-by", word],
        ["analyze", "--experiment-name", "whole", "--max-megabytes", random.choice(["0", "-1", word])],
        ["sweep", word, "x.toml"], ["sweep", "check", f"{word}.job"], ["sweep", "run", f"{word}.toml"],
    ])  # fmt: skip
    return given, {"a-file": b""}


# --- files of options ---------------------------------------------------------------------------------------


def _options(home: Path, name: str) -> dict[str, Any]:
    nested: dict[str, Any] = json.loads((home / "experiments" / name / "config.json").read_text())
    return nested


# What cannot stand where such a value stands.
WRONG_TYPES: dict[type, list[Any]] = {
    bool: [1, "true", 0.0],
    int: ["3", 2.5, True, 10**400, float("nan")],
    float: ["0.1", True, float("nan"), float("inf")],
    str: [3, True, {}],
    dict: ["x", 4],
    type(None): [{"a": 1}],
}


def bad_json(random: Random, nested: dict[str, Any], stored: bool) -> bytes:
    """An invalid config.json; `stored`: of an experiment, where a missing section is a mistake too."""
    nested = json.loads(json.dumps(nested))
    part = random.choice([part for part in cfg.PARTS if part not in cfg.ADDED])
    section, text = nested[part], json.dumps(nested, indent=1)
    keys = [key for key in section if key != "name" and (stored or key not in OVERRIDDEN)]
    key = random.choice(keys)
    how = random.randrange(8 if stored else 7)
    if how == 0:
        return text[: random.randrange(len(text) - 1)].encode()
    if how == 1:
        return bytes(random.choices(range(256), k=random.randint(1, 300)))
    if how == 2:
        return random.choice([b"[1, 2]", b"null", b"7", b'"x"', b"{" * 50, b"[" * 100_000, b'{"run": [}', b"\xff{}"])
    if how == 3:
        section[key + random.choice("xyz")] = section.pop(key)
    elif how == 4:
        section[key] = random.choice([*WRONG_TYPES[type(section[key])], [1], [None], ["x", {}]])
    elif how == 5:
        nested[part] = random.choice([[], 3, "text", None, True])
    elif how == 6:
        nested[part + random.choice("xyz")] = nested.pop(part)
    else:
        del nested[part]
    return json.dumps(nested).encode()


def bad_config_file(random: Random, home: Path) -> tuple[list[str], dict[str, bytes]]:
    nested = {part: values for part, values in _options(home, "whole").items() if part in cfg.PARTS}
    argv = ["train", "--experiment-name", "new", "--config", "bad.json", *QUICK]
    return argv, {"bad.json": bad_json(random, nested, stored=False)}


def bad_experiment_config(random: Random, home: Path) -> tuple[list[str], dict[str, bytes]]:
    command = random.choice(["eval", "render", "analyze", "train"])
    name = "half" if command == "train" else "whole"
    argv = [command, "--experiment-name", name, *(["--resume"] if command == "train" else [])]
    return argv, {f"experiments/{name}/config.json": bad_json(random, _options(home, name), stored=True)}


TOML = """\
command = "train"
name = "s{seed}-h{hidden_dim}"
seeds = 2

[fixed]
total_steps = 40
num_envs = 2

[grid]
hidden_dim = [4, 8]
"""


def bad_toml(random: Random, _: Path) -> tuple[list[str], dict[str, bytes]]:
    text, lines = TOML, TOML.splitlines()
    how = random.randrange(5)
    if how == 0:
        text = "\n".join(lines[: random.randrange(6, 9)]) + random.choice(["\n[", "\nx = ", '\ny = "', "\n= 1"])
    elif how == 1:
        text = text.replace("hidden_dim = [", random.choice(["hiden_dim = [", "hidden-dims = [", "depth = ["]))
    elif how == 2:
        text = text.replace("[4, 8]", random.choice(['["x"]', "[-1]", "[0]", "[1.5]", "[true]", "[[4]]", "{a = 1}"]))
    elif how == 3:
        text = text.replace('"train"', random.choice(['"tarin"', "3", '"eval --x"', '""', "[]"]))
    else:
        return ["sweep", random.choice(["check", "expand", "run"]), "bad.toml"], {
            "bad.toml": bytes(random.choices(range(128, 256), k=random.randint(1, 200)))
        }
    return ["sweep", random.choice(["check", "expand"]), "bad.toml"], {"bad.toml": text.encode()}


JOB = """\
universe = vanilla
executable = run.sh
arguments = train --total-steps 40 --resume auto --experiment-name $(name) --seed $(seed) --eta $(eta)
queue name, seed, eta from rows.txt
"""
WRAPPER = """\
#!/bin/bash
exec python main.py "$@"
"""


def bad_rows(random: Random, _: Path) -> tuple[list[str], dict[str, bytes]]:
    rows = [f"row{number}, {number}, {number / 10}" for number in range(random.randint(2, 30))]
    place = random.randrange(len(rows))
    job = JOB
    how = random.randrange(9)
    if how == 0:
        rows.insert(place, random.choice(["", "   "]))
    elif how == 1:
        rows.insert(place, "# a comment")
    elif how == 2:
        rows[place] = rows[place].rpartition(",")[0]
    elif how == 3:
        rows[place] += ", 7"
    elif how == 4:
        rows[place] = rows[place].replace(
            f", {place},", random.choice([", -1,", ", x,", ", 1.5,", ", 99999999999,"]), 1
        )
    elif how == 5:
        rows.append(rows[place])
    elif how == 6:
        rows[place] = rows[place].replace("row", random.choice(['"row', "a/row", ".row"]))
    elif how == 7:
        job = job.replace("$(eta)\nq", random.choice(["$(etta)\nq", "$(eta) $(x)\nq"]))
    else:
        job = job.replace("universe = ", random.choice(["univers = ", "request_memry = 4\nuniverse = ", "univese = "]))
    return ["sweep", "check", "bad.job"], {
        "bad.job": job.encode(), "rows.txt": ("\n".join(rows) + "\n").encode(), "run.sh": WRAPPER.encode(),
    }  # fmt: skip


# --- damaged checkpoints ------------------------------------------------------------------------------------


def _damaged(
    random: Random, home: Path, damage: Callable[[Random, bytes], bytes]
) -> tuple[list[str], dict[str, bytes]]:
    command = random.choice(["eval", "render", "analyze", "train"])
    name, file = ("half", "last.pt") if command == "train" else ("whole", "best_model.pt")
    path = f"experiments/{name}/checkpoints/{file}"
    argv = [command, "--experiment-name", name, *(["--resume"] if command == "train" else [])]
    return argv, {path: damage(random, (home / path).read_bytes())}


def truncated(random: Random, home: Path) -> tuple[list[str], dict[str, bytes]]:
    return _damaged(random, home, lambda random, whole: whole[: random.randrange(len(whole))])


def bit_flipped(random: Random, home: Path) -> tuple[list[str], dict[str, bytes]]:
    """One changed bit of a file's contents; a bit of the padding between entries would change nothing."""

    def flip(random: Random, whole: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            entry = random.choice([entry for entry in archive.infolist() if entry.file_size])
        header = whole[entry.header_offset : entry.header_offset + 30]
        start = (
            entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        place = start + random.randrange(entry.compress_size)
        return whole[:place] + bytes([whole[place] ^ (1 << random.randrange(8))]) + whole[place + 1 :]

    return _damaged(random, home, flip)


def foreign(random: Random, home: Path) -> tuple[list[str], dict[str, bytes]]:
    """Another file: random bytes, an empty file, text, or a checkpoint of another network."""

    def replace(random: Random, whole: bytes) -> bytes:
        other = (home / "experiments" / "other" / "checkpoints" / "best_model.pt").read_bytes()
        return random.choice([b"", bytes(random.choices(range(256), k=2000)), b"PK\x03\x04" + whole[9:], b"{}", other])

    return _damaged(random, home, replace)


Maker = Callable[[Random, Path], tuple[list[str], dict[str, bytes]]]
KINDS: dict[str, tuple[int, Maker]] = {
    "value of an option": (25, bad_flag_value),
    "misspelt option": (10, misspelt_flag),
    "option that does nothing": (5, idle_flag),
    "command line": (15, bad_command),
    "--config file": (8, bad_config_file),
    "config.json": (8, bad_experiment_config),
    "sweep file": (5, bad_toml),
    "args file and submit file": (6, bad_rows),
    "checkpoint cut short": (6, truncated),
    "checkpoint with a bit flipped": (8, bit_flipped),
    "checkpoint of another kind": (4, foreign),
}


# --- the answer ---------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder, with size and time of change, except error.txt, which a failed row writes."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "error.txt":
            continue
        stat = path.lstat()
        result[str(path.relative_to(folder))] = (stat.st_size, stat.st_mtime_ns) if path.is_file() else (0, 0)
    return result


@contextlib.contextmanager
def laid(case: Case, home: Path) -> Iterator[None]:
    """The bad files of the case within `with`; afterwards, the files are as before."""
    before = {path: (home / path).read_bytes() if (home / path).exists() else None for path in case.files}
    for path, content in case.files.items():
        (home / path).write_bytes(content)
    try:
        yield
    finally:
        for path, old in before.items():
            (home / path).unlink() if old is None else (home / path).write_bytes(old)


def fault(status: object, err: str, before: dict, after: dict) -> str | None:
    """The fault of an answer, or None."""
    lines = err.strip().splitlines()
    if "Traceback" in err:
        return f"traceback: {lines[-1]}"
    if status != 2:
        return f"exit status {status}: {' | '.join(lines[-2:])}"
    if before != after:
        changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        return f"created or changed {', '.join(changed[:3])}"
    mistakes = lines[:-1] if "sweep" in lines[-1] else []  # `sweep` names every mistake, and then counts them
    if len(lines) - len(mistakes) != 1 or not lines[-1].startswith("main.py"):
        return f"{len(lines)} lines: {' | '.join(lines[:3])}"
    return None


def _too_long(*_: object) -> None:
    raise TimeoutError(f"no answer after {LIMIT_S} s")


def answer(case: Case, home: Path) -> str | None:
    """Run a case in this process, in the working folder `home`; returns the fault of the answer."""
    out, err = io.StringIO(), io.StringIO()
    with laid(case, home):
        before = snapshot(home)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(LIMIT_S)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status: object = program.main(case.argv)
        except SystemExit as left:
            status = left.code
        except BaseException:  # any at all is what this looks for
            return "traceback: " + traceback.format_exc().strip().splitlines()[-1]
        finally:
            signal.alarm(0)
        return fault(status, err.getvalue(), before, snapshot(home))


def options_known() -> int:
    """The number of options that the mistakes use."""
    return len({flag_of(field) for field, _ in _fields()})
