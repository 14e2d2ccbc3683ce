"""Every command of README.md, CONTRIBUTING.md and docs/ runs, in short form.

The test recognises commands by their form, in code blocks and in `code` within the text, so it includes a new command
at once, and fails for a command of an unknown kind. A training gets further options that make it small (`SHORT`); they
replace no option of the page except its length.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import condor_tools
import pytest

import main
from mpn_rl import arguments
from mpn_rl import config as cfg
from mpn_rl.options import flag_of

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
# Upper bounds by field; a training gets those that lower a value of its own.
SHORT = {"total_steps": 240, "hidden_dim": 6, "embed_dim": 3, "num_envs": 2, "max_episode_steps": 60,
         "eval_episodes": 1, "learning_starts": 60, "buffer_size": 300, "batch_size": 4, "burn_in": 4,
         "sequence_length": 8, "sequence_stride": 8, "rollout_steps": 10, "warmup_updates": 1,
         "update_interval": 40, "change_every": 100}  # fmt: skip
LENGTHS = {"total_steps", "change_every"}  # which are lowered where the page gives them, too
# Random actions, so that an agent that has learned nothing makes every choice.
RECORD = "--num-episodes 12 --epsilon 1"
STAGES = {
    None: RECORD,
    "collect": RECORD,
    "plot": "",
    "probe": "--num-trials 4",
    "report": f"{RECORD} --num-trials 4",
    "compare": "--num-eval-episodes 2",
    "export": "",
    **dict.fromkeys(arguments.TABLES, ""),
}
# Placeholders for names that the reader chooses.
PLACEHOLDERS = {"FILE": "FILE.toml"}
SHELLS = {"bash", "sh", "console"}
# Definitions that the Python blocks of a page assume.
GIVEN = {
    "docs/neuroplastic_expansion.md": """
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.Adam(model.parameters())
class Loss:
    def backward(self):
        model(torch.ones(3, 4)).square().sum().backward()
loss = Loss()
""",
    "docs/td3.md": """
import numpy as np, torch
state_dim, action_dim, max_action, state = 3, 1, 2.0, np.zeros(3)
class Replay:
    def sample(self, n):
        state, action, next_state = torch.randn(n, 3), torch.rand(n, 1), torch.randn(n, 3)
        return state, action, next_state, torch.randn(n), torch.ones(n)
replay = Replay()
""",
}
# Pages whose Python a test of their own runs; the first one adds to the code, so that its commands run only there.
PYTHON_ELSEWHERE = {"docs/extending.md": "test_extending.py", "docs/torchrl.md": "networks/test_torchrl_modules.py"}
COMMANDS_ELSEWHERE = ["docs/extending.md"]


# --- the contents of a page ---------------------------------------------------------------------------------------


class Block(NamedTuple):
    line: int  # of the page, of its first line
    language: str
    lines: list[str]


class Item(NamedTuple):
    line: int
    text: str  # a command line, or Python
    python: bool = False
    shown: tuple[str, ...] = ()  # the output that the page shows


def read_page(page: str) -> tuple[list[Block], list[str]]:
    """The code blocks, fenced or indented, and the page's lines with nothing where the blocks were."""
    blocks: list[Block] = []
    prose: list[str] = []
    fence, indent, indented = "", 0, False
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        mark = re.match(r"(\s*)(```+)\s*(\w*)", line)
        after_blank = not prose or not prose[-1].strip()
        prose.append("")
        if fence and line.strip() == fence:
            fence = ""
        elif fence:
            blocks[-1].lines.append(line[indent:])
        elif mark:
            indent, fence, indented = len(mark[1]), mark[2], False
            blocks.append(Block(number + 1, mark[3], []))
        elif line.startswith("    ") and (indented or after_blank):
            if not indented:
                blocks.append(Block(number, "", []))
            blocks[-1].lines.append(line[4:])
            indented = True
        elif indented and not line.strip():
            blocks[-1].lines.append("")  # an indented block continues after a blank line
        else:
            prose[-1], indented = line, False
    return blocks, prose


def inline_code(prose: list[str]) -> Iterator[tuple[int, str]]:
    """`code` within the text, which may continue in the next line."""
    text = "\n".join(prose)
    for found in re.finditer(r"(?<!`)`((?:[^`\n]|\n(?!\n))+)`(?!`)", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())


def looks_like_a_command(line: str) -> bool:
    """Whether a line starts with a known program, or has an option behind a word, unlike equations and diagrams."""
    return bool(line) and (
        kind_of(line.split()) is not None or bool(re.match(r"[a-z][\w./-]*\w (?!=)([^=]* )?--[a-z]", line))
    )


def commands_of(block: Block) -> Iterator[Item]:
    """The command lines of a block: those after "$ " if there are any, else all of a block that has a command."""
    lines = [line.rstrip() for line in block.lines]
    prompt = any(line.startswith("$ ") for line in lines)
    commands = prompt or block.language in SHELLS or any(map(looks_like_a_command, lines))
    if block.language not in ("", *SHELLS) or not commands:
        return
    at = 0
    while at < len(lines):
        begun, text = at, lines[at]
        while text.endswith("\\"):
            at += 1
            text = text[:-1] + lines[at].strip()
        at += 1
        if prompt and text.startswith("$ "):
            shown = itertools.takewhile(lambda line: not line.startswith("$ "), lines[at:])
            yield Item(block.line + begun, text[2:], shown=tuple(shown))
        elif not prompt and text.strip() and not text.startswith("#"):
            yield Item(block.line + begun, text)


def items_of(page: str) -> list[Item]:
    """All commands to run: blocks in the page's order, then those in its text."""
    blocks, prose = read_page(page)
    items = [item for block in blocks for item in commands_of(block)]
    for block in blocks:
        if block.language == "python" or (not block.language and re.match(r"(from|import) \w+", block.lines[0])):
            items.append(Item(block.line, "\n".join(block.lines), python=True))
    items.sort(key=lambda item: item.line)
    # In the text, a word such as `python` or `make` alone is not a command.
    return items + [Item(line, code) for line, code in inline_code(prose) if " " in code and kind_of(code.split())]


def split(line: str) -> list[list[str]]:
    """The words of each command of a shell's line, parted by |, ; and &&.

    Comments, redirections and settings in front (NAME=value) are left out.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            found.append([])
        elif set(word) == {">"}:
            next(lexer)
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [words for words in found if words]


# --- a place to try it in -----------------------------------------------------------------------------------


class Home:
    """A folder with the files that a page's commands read, the names that they created, and the finished commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[tuple[str, ...]] = set()
        (folder / "main.py").symlink_to(ROOT / "main.py")
        for name in ("condor", "slurm", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.gz", ".*"))
        (folder / ".slurm_logs").mkdir()
        for template in folder.glob("condor/*.job"):
            text = template.read_text()
            command = "train-neurogym" if "train_neurogym" in template.name else "train"
            words = "--checkpoint-exit-every 60"
            template.write_text(text.replace(words, f"{words} {shlex.join(shorter([command, '--hidden-dim', '6']))}"))
        for script in folder.glob("slurm/train*.sbatch"):
            command = "train-neurogym" if "train_neurogym" in script.name else "train"
            words = "--checkpoint-exit-code 85"
            text = script.read_text().replace(words, f"{words} {shlex.join(shorter([command, '--hidden-dim', '6']))}")
            script.write_text(text)
        for path in folder.glob("configs/*.toml"):
            path.write_text(shorter_sweep(path.read_text()))
        shutil.copy(folder / "configs" / "sweep_context.toml", folder / "FILE.toml")
        self._make_a_wrong_job()

    def _make_a_wrong_job(self) -> None:
        """big.job: lambda is 1.5 in row 412, from column 15 on."""
        shutil.copy(self.folder / "condor" / "run.sh", self.folder)
        text = (self.folder / "condor" / "train.job").read_text()
        text = text.replace("train_args.txt", "big_args.txt").replace("$(SUBMIT_FILE)..", "$(SUBMIT_FILE)")
        (self.folder / "big.job").write_text(text)
        rows = [f"r{row:03}, 1, 0.5, {1.5 if row == 412 else 0.9}, 6\n" for row in range(1, 501)]
        (self.folder / "big_args.txt").write_text("".join(rows))

    def need(self, pattern: str) -> None:
        """An experiment of that name, trained now if it is missing."""
        if not fnmatch.filter(os.listdir("experiments") if os.path.isdir("experiments") else [], pattern):
            core = pattern.partition("-")[0]
            core = core if core in cfg.choices("core") else "mpn"
            name = pattern.replace("*", "1")
            argv = ["train-neurogym", "--experiment-name", name, "--core", core]
            assert run([*argv, *shorter(argv)]) == 0

    def has(self, path: str) -> bool:
        """Whether a file that a command names is there, is written by the pool, or is git's to ignore."""
        logs = re.findall(
            r"(?m)^(?:output|error|log) += (\S+)", "".join(p.read_text() for p in Path("condor").glob("*.job"))
        )
        logs = [log.replace("$(Cluster)", "7").replace("$(Process)", "0") for log in logs]
        for script in Path("slurm").glob("*.sbatch"):
            logs.append(f".slurm_logs/mpn_{script.stem}_7_1.out")
        ignored = (ROOT / ".gitignore").read_text().splitlines()
        return (
            any(Path().glob(path))
            or bool(fnmatch.filter(logs, path))
            or (ROOT / path).exists()
            or f"/{path}" in ignored
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def at_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(home.folder)
    monkeypatch.setenv("MPN_RL_PYTHON", sys.executable)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of the `make test` that may have started this
        monkeypatch.delenv(name, raising=False)
    # A benchmark's module, and the path that it extends, are gone after the test.
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    return home


def shorter(argv: list[str]) -> list[str]:
    """Options that make a training short, of those that its parts have. Raises: ConfigError where main.py would."""
    args = arguments.parse(argv)
    config, given, options = arguments.config_of(args), arguments.config_flags(args), []
    for part in cfg.PARTS:
        section = getattr(config, part)
        for field in dataclasses.fields(section):
            value, bound = getattr(section, field.name), SHORT.get(field.name)
            if (
                bound is not None
                and not cfg.idle_reason(field, config)
                and (value is None or value > bound)
                and (field.name not in given or field.name in LENGTHS)
                and not (field.name == "hidden_dim" and args.match_weights)
            ):
                options += [flag_of(field), str(bound)]
            elif field.name == "kernel" and "kernel" not in given:
                options += ["--kernel", "reference"]
    return options if "plot_training" in given else [*options, "--no-plot-training"]


def shorter_sweep(text: str) -> str:
    """A sweep's file whose rows are short; their number stays."""
    words = shorter([tomllib.loads(text)["command"]])
    values = {flag.removeprefix("--"): value for flag, value in zip(words[:-1:2], words[1:-1:2], strict=True)}
    lines = [f"{flag} = {json.dumps(value) if flag == 'kernel' else value}" for flag, value in values.items()]
    text = re.sub(r"(?m)^(total-steps|eval-freq).*\n", "", text)
    text = re.sub(r"(?m)^n = .*$", "n = 1", text)  # trials of a search
    return text.replace("[fixed]\n", "[fixed]\n" + "\n".join([*lines, "plot-training = false", ""]))


def run(argv: list[str]) -> int | str | None:
    """The exit status of one of main.py's command lines."""
    try:
        return main.main(argv)
    except SystemExit as leaving:
        return leaving.code or 0


# --- the kinds of commands ----------------------------------------------------------------------------------


class Trial(NamedTuple):
    """What a kind is given to try a command with."""

    home: Home
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture
    shown: tuple[str, ...] = ()


def try_toolkit(words: list[str], trial: Trial) -> None:
    """main.py itself, in this process."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if not words:  # the program's name, and no command
        return
    if words[:2] == ["sweep", "search"] or "--search-workers" in words:  # which needs a table [search]
        words = ["configs/search_context.toml" if word == "FILE.toml" else word for word in words]
    if "..." in words:  # a part is left out: the rest must be what the parser knows
        arguments.parse([word for word in words if word != "..."])
        return
    refusal = [line for line in trial.shown if re.match(r"main\.py [\w-]+: |\S+:\d+:\d+: ", line)]
    argv = [*words, *further(words, trial.home)]
    trial.capsys.readouterr()
    status = run(argv) if "--wandb" not in argv else offline("main.py", argv)
    told = trial.capsys.readouterr().err
    # `further` lets a sweep run its first row only, so others remain.
    expected = {2} if refusal else {0, 75} if argv[:2] == ["sweep", "run"] else {0}
    assert status in expected, f"exit status {status} of main.py {shlex.join(argv)}\n{told}"
    assert not refusal or told.splitlines() == refusal, told


def offline(path: str, argv: list[str]) -> int:
    """A process, whose exit status this is, that logs to W&B's files alone."""
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, path, *argv], env=environment, stdout=subprocess.DEVNULL).returncode


def further(words: list[str], home: Home) -> list[str]:
    """The options that shorten a command; creates the files that it needs."""
    if words[0] in ("train", "train-neurogym"):
        again = "--experiment-name" in words and not {"--resume", "--overwrite"} & set(words)
        return [*shorter(words), *(["--overwrite"] if again else [])]
    if words[0] in ("eval", "render", "analyze"):
        args = arguments.parse(words)
        names = [args.experiment_name] if isinstance(args.experiment_name, str) else args.experiment_name
        for name in names or []:
            home.need(name)
        if words[0] == "eval":
            return ["--num-eval-trials", "4"] if args.num_eval_trials else ["--num-eval-episodes", "2"]
        return ["--max-steps", "5"] if words[0] == "render" else STAGES[args.stage].split()
    # A sweep runs its first row, and its check accepts rows that an earlier page's commands have started.
    # No scheduler is here, so a submission is shown only.
    more = {"run": ["--limit", "1"], "check": ["--resume"], "submit": ["--dry-run"]}
    if words[:2] == ["sweep", "submit"] and "--scheduler" not in words:
        return ["--dry-run", "--scheduler", "slurm"]
    return more.get(words[1], []) if words[0] == "sweep" else []


def try_script(words: list[str], trial: Trial) -> None:
    """A file of the project: a module's self-check runs, of a benchmark or tool its parser takes the options."""
    path, *options = words
    assert (ROOT / path).is_file(), f"no {path}"
    if "/" not in path:
        done = subprocess.run([sys.executable, ROOT / path, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif "ArgumentParser" in (ROOT / path).read_text():
        takes(ROOT / path, options, trial.monkeypatch)
    else:
        assert not options, f"{path} takes no options"


def takes(path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's main() accepts the options; it is left where it has parsed them."""

    class Parsed(Exception):  # noqa: N818
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *options])
        patch.setattr(sys, "path", list(sys.path))
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their module
        spec.loader.exec_module(module)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
        with pytest.raises(Parsed):
            module.main()


def try_python(words: list[str], trial: Trial) -> None:
    """`python FILE ...` or `python -m MODULE ...`."""
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
    elif words[1] == "main.py":
        try_toolkit(words[2:], trial)
    else:
        try_script(words[1:], trial)


def try_make(words: list[str], trial: Trial) -> None:
    """A target's recipe as `make -n` prints it; the toolkit's commands in it are tried like a page's own."""
    makefile = (ROOT / "Makefile").read_text()
    for variable in (word.partition("=")[0] for word in words if "=" in word):
        assert re.search(rf"(?m)^{variable} \?=", makefile), f"the Makefile has no {variable}"
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in re.findall(r"(?m)^\S*python ((?:main|benchmarks/\w+)\.py.*)$", done.stdout):
        try_line(f"python {line}", trial)


def try_pip(words: list[str], trial: Trial) -> None:
    """What is installed is the project with extras that it has, or a package that it requires."""
    words = words[words[0] == "uv" :]
    if words[0] == "venv":
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("requirements", nargs="*")
    for flags in (("-e", "--editable"), ("-c", "--constraint"), ("-r", "--requirement")):
        parser.add_argument(*flags, action="append", default=[])
    parser.add_argument("--index-url")
    parser.add_argument("--no-deps", action="store_true")
    parser.add_argument("--no-build-isolation", action="store_true")
    assert words[1] == "install", f"pip {words[1]}"
    args = parser.parse_args(words[2:])
    for file in args.constraint + args.requirement:
        assert (ROOT / file).is_file(), f"no {file}"
    pinned = [(ROOT / file).read_text() for file in ("constraints.txt", "benchmarks/third_party.txt")]
    known = re.findall(r"(?m)^([\w.-]+)==", "\n".join(pinned))
    known.append(f"dist/mpn_rl-{PROJECT['version']}-py3-none-any.whl")  # by `make wheel`
    for requirement in args.requirements + args.editable:
        name, _, extras = requirement.partition("==")[0].rstrip("]").partition("[")
        assert name in (".", "mpn-rl", *known), f"{name} is nothing that the project is or requires"
        assert set(extras.split(",")) - {""} <= EXTRAS, requirement


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])


def try_conda(words: list[str], trial: Trial) -> None:
    """An environment is built from a file that exists, and is activated under the name in the file."""
    if words[1] == "activate":
        assert re.search(rf"(?m)^name: {words[2]}$", (ROOT / "environment.yml").read_text())
    else:
        assert words[1:4] == ["env", "create", "-f"] and (ROOT / words[4]).is_file(), words


def try_wandb(words: list[str], trial: Trial) -> None:
    """Logging in and uploading are W&B's own; what is uploaded is there."""
    assert words[1] in ("login", "sync"), words
    assert all(any(Path().glob(path)) for path in words[2:]), words


def try_eval(words: list[str], trial: Trial) -> None:
    """eval "$(COMMAND)" runs what that prints."""
    for command in re.findall(r"\$\(([^)]*)\)", words[1]):
        try_line(command, trial)


def try_condor(words: list[str], trial: Trial) -> None:
    """Here the pool is this machine: a submitted training's first row runs. (The options: see below.)"""
    if words[0] == "condor_submit":
        job = words[-1] if os.path.exists(words[-1]) else f"condor/{words[-1]}"  # to be typed inside condor/
        assert os.path.exists(job), f"no {words[-1]}"
        if re.search("(?m)^arguments += train", Path(job).read_text()) and "-dry-run" not in words:
            try_toolkit(["sweep", "run", job], trial)


def try_slurm(words: list[str], trial: Trial) -> None:
    """Here the cluster is this machine: a submitted training's first row runs."""
    if words[0] == "sbatch":
        assert os.path.exists(words[-1]), f"no {words[-1]}"
        if "/train" in words[-1]:
            try_toolkit(["sweep", "run", words[-1]], trial)


def try_container(words: list[str], trial: Trial) -> None:
    """An image is built from the Dockerfile."""
    assert (ROOT / "Dockerfile").is_file()


def try_wrapper(words: list[str], trial: Trial) -> None:
    """A script of condor/ or slurm/, which hands further options on."""
    done = subprocess.run([f"./{words[0]}", *words[1:], "--total-steps", "240"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def try_unix(words: list[str], trial: Trial) -> None:
    """Common programs: what they name is there."""
    paths = [word for word in words[1:] if re.fullmatch(r"(?!\.venv/|-)[\w.*/-]+/[\w.*/-]+", word)]
    assert [path for path in paths if not trial.home.has(path)] == []


KINDS: dict[str, Callable[[list[str], Trial], None]] = {
    r"python3?(\.\d+)?|\.venv/bin/python": try_python,
    r"mpn-rl": lambda words, trial: try_toolkit(words[1:], trial),
    r"make": try_make,
    r"pip|uv": try_pip,
    r"condor_\w+": try_condor,
    r"(condor|slurm)/\w+\.sh": try_wrapper,
    r"sbatch|squeue|scancel|scontrol": try_slurm,
    r"docker|apptainer": try_container,
    r"conda|mamba": try_conda,
    r"wandb": try_wandb,
    r"eval": try_eval,
    r"mkdir|vi|cat|tail|head|rm|ls|cd|cp|sed|source|git": try_unix,
}


def kind_of(words: list[str]) -> Callable[[list[str], Trial], None] | None:
    return next((kind for names, kind in KINDS.items() if re.fullmatch(names, words[0].removeprefix("$ "))), None)


def try_line(line: str, trial: Trial) -> None:
    for words in split(line):
        key = (os.getcwd(), *words)
        if key not in trial.home.done:
            kind = kind_of(words)
            assert kind is not None, "no test knows this kind of command: see KINDS"
            kind(words, trial)
            trial.home.done.add(key)


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("page", [page for page in PAGES if page not in COMMANDS_ELSEWHERE])
def test_every_command_and_every_python_block_of_a_page_runs(
    page: str, at_home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(GIVEN.get(page, ""), names)
    failures = []
    for item in items_of(page):
        try:
            if item.python and page not in PYTHON_ELSEWHERE:
                run_block(item, names, at_home, monkeypatch)
            elif not item.python:
                try_line(item.text, Trial(at_home, monkeypatch, capsys, item.shown))
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            told = capsys.readouterr().err.strip()
            failures.append(f"{page}:{item.line}: {item.text}\n{type(error).__name__}: {error} {told}")
    if failures:
        pytest.fail("\n\n".join(failures), pytrace=False)


def run_block(item: Item, names: dict[str, Any], home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Python as the page has it, once the experiments and recordings that it opens are there."""
    for name in re.findall(r'(?:Experiment\.open|load_agent)\("(\w+)"\)|experiments/(\w+)/', item.text):
        home.need("".join(name))
    for name in re.findall(r"experiments/(\w+)/analysis/activity.npz", item.text):
        if not Path(f"experiments/{name}/analysis/activity.npz").exists():
            assert run(["analyze", "collect", "--experiment-name", name, *RECORD.split()]) == 0
    if name := re.match(r"# (\w+\.py)\n", item.text):  # a module that commands of the page import
        Path(name[1]).write_text(item.text)
    with monkeypatch.context() as patch:
        # pandas and xarray read dictionaries of arrays; `make third-party` tries the real minigrid.
        for module, makes in (("pandas", "DataFrame"), ("xarray", "Dataset"), ("minigrid.wrappers", "ImgObsWrapper")):
            package = module.partition(".")[0]
            if re.search(rf"(import|from) .*\b{package}\b", item.text) and importlib.util.find_spec(package) is None:
                stub = types.ModuleType(module)
                setattr(stub, makes, dict)
                patch.setitem(sys.modules, package, stub)
                patch.setitem(sys.modules, module, stub)
        exec(compile(item.text, f"line {item.line}", "exec"), names)


@pytest.mark.parametrize("page", PYTHON_ELSEWHERE)
def test_a_page_whose_python_is_left_out_here_is_read_by_its_own_test(page: str) -> None:
    assert f'/ "{Path(page).name}").read_text()' in (ROOT / "tests" / PYTHON_ELSEWHERE[page]).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_every_condor_command_is_one_of_htcondors_and_has_its_options(page: str) -> None:
    commands = [words for item in items_of(page) if not item.python for words in split(item.text)]
    commands = [words for words in commands if words[0].startswith("condor_")]
    if not commands:
        return
    try:
        root = condor_tools.condor_root()
    except condor_tools.UnavailableError as reason:
        pytest.skip(str(reason))
    for program, *words in commands:
        assert (root / "bin" / program).exists(), program
        help_text = condor_tools.run(root, program, "-help")
        for option in (word for word in words if re.match(r"-\w", word)):
            assert option in help_text.stdout + help_text.stderr, f"{program} {option}"


def slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(read_page(page)[1])):
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        if "://" not in target:
            assert path.exists(), f"{page}: {target}"
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text()) if anchor else []
            assert not anchor or anchor in map(slug, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_project_that_is_named_is_there(page: str, at_home: Home) -> None:
    """In code within the text: docs/a2c.md, configs/td3_NAME.json, benchmarks/results/*.json; and [extras]."""
    prose = read_page(page)[1]
    for line, code in inline_code(prose):
        if re.fullmatch(r"(benchmarks|condor|slurm|configs|docs|tests)/[\w./*-]*", code):
            pattern = re.sub("NAME|FILE", "*", code)
            assert any(ROOT.glob(pattern)) or at_home.has(code), f"{page}:{line}: {code}"
        extras = re.fullmatch(r"\[([a-z,]+)\]", code)
        if extras and "xtra" in prose[line - 1]:
            assert set(extras[1].split(",")) <= EXTRAS, f"{page}:{line}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_a_shown_mistake_has_exactly_that_message(page: str, capsys: pytest.CaptureFixture) -> None:
    """`--x does nothing with [env.name E,] --core C, --algo A, ...`"""
    for line, code in inline_code(read_page(page)[1]):
        if " does nothing with " in code:
            flag, *kinds = re.findall(r"--[\w-]+(?: [\w-]+)?", code.partition(";")[0])
            command = "train-neurogym" if "env.name neurogym" in code else "train"
            assert run([command, *" ".join(kinds).split(), flag.split()[0], "1"]) == 2
            told = capsys.readouterr().err
            assert told == f"main.py {command}: {code}\n", f"{page}:{line}: {told}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_a_sweeps_file_that_is_shown_is_the_one_that_is_there() -> None:
    shown = next(block for block in read_page("docs/sweeps.md")[0] if block.language == "toml")
    assert tomllib.loads("\n".join(shown.lines)) == tomllib.loads((ROOT / "configs/sweep_context.toml").read_text())


def pictures_of(page: str) -> list[str]:
    """Paths from the root of the pictures that a page shows."""
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / page).read_text())
    return [str(((ROOT / page).parent / picture).resolve().relative_to(ROOT)) for picture in shown]


# --- docs/reproducing.md ------------------------------------------------------------------------------------


def test_every_picture_result_and_measuring_command_has_its_line_on_how_to_reproduce_it() -> None:
    told, makefile = (ROOT / "docs/reproducing.md").read_text(), (ROOT / "Makefile").read_text()
    pictures = {picture for page in PAGES for picture in pictures_of(page)}
    results = [path.name for path in ROOT.glob("benchmarks/results/*.json")]
    commands = {" ".join(words[:2]) for page in PAGES for item in items_of(page) if not item.python
                for words in split(item.text) if words[1:] and words[1].startswith("benchmarks/")}  # fmt: skip
    commands |= {
        f"make {target}" for target in re.findall(r"(?m)^([\w-]+):.*\n(?:\t.*\n)*\t.*python\) benchmarks/", makefile)
    }
    assert [name for name in [*pictures, *results, *commands] if name not in told] == []


@pytest.mark.timeout(900)  # on a busy machine
def test_the_pictures_of_agents_are_those_that_make_figures_draws(
    tmp_path: Path, at_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec and spec.loader
    figures = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", figures)
    spec.loader.exec_module(figures)
    images = tmp_path / "images"
    images.mkdir()
    with contextlib.chdir(tmp_path):
        assert figures.main(["--steps", "1200", "--experiments-dir", "agents", "--images", "images"]) == 0
    shown = {Path(picture).name for page in PAGES for picture in pictures_of(page) if "docs/images" in picture}
    assert sorted(os.listdir(images)) == sorted(shown)
