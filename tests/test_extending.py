"""Follow docs/extending.md exactly: its blocks go into a copy of the project, and its commands run there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from lint_imports import lint_imports

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
# Each command of the page runs with these options appended; the last of two equal options counts.
SHORT = {
    "train": "--total-steps 500 --hidden-dim 6 --embed-dim 4 --num-envs 4 --eval-episodes 4 --no-plot-training",
    "--resume": "--total-steps 700 --no-plot-training",
    "dqn": "--kernel reference --learning-starts 100 --batch-size 4 --buffer-size 400",
    "--expansion": "--update-interval 100",
    "eval": "--num-eval-episodes 4",
    "render": "--max-steps 12",
    "analyze": "--num-episodes 6",
}


class Block(NamedTuple):
    """One code block of the page: where it goes, by its own first line, and what goes there."""

    file: str
    place: str
    code: str


def fenced(page: str, language: str) -> list[str]:
    matches = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [block for name, block in matches if name == language]


def blocks(page: str) -> list[Block]:
    """The blocks that go somewhere: `# file.py, place`, and then the code."""
    matches = [block.partition("\n") for block in fenced(page, "python")]
    heads = [re.fullmatch(r"# ([\w/.]+), (.+)", head) for head, _, _ in matches]
    assert all(heads), "a Python block that does not say where it goes"
    return [Block(head[1], head[2], code) for head, (_, _, code) in zip(heads, matches, strict=True) if head]


def commands(page: str) -> list[list[str]]:
    """The page's command lines, in its order."""
    lines = [line for block in fenced(page, "") for line in block.splitlines()]
    assert all(line.startswith("python ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def put(block: Block, tree: Path) -> None:
    """Put the block where its first line states. Raises: AssertionError if there is not exactly one such place."""
    path = tree / block.file
    if block.place == "a new file":
        assert not path.exists(), f"{block.file} is there already"
        path.write_text(block.code)
        return
    lines = path.read_text().splitlines(keepends=True)
    if block.place == "among its imports":
        at = only(lines, r"import .*|from __future__ .*", first=True) + 1
    elif place := re.fullmatch(r"at the end of its (\w+)", block.place):
        start = only(lines, rf"# --- {place[1]} -+")
        at = start + 1 + only(lines[start + 1 :], r"# --- .* -+", first=True)
    elif place := re.fullmatch(r"(?:the last rows? of|among its) ([\w-]+)", block.place):
        start = only(lines, rf"{place[1]}\b.* = [{{\[]")
        at = start + only(lines[start:], r"[}\]].*", first=True)
    else:
        raise AssertionError(f"{block.file}: no place is called {block.place!r}")
    section = block.place.startswith("at the end")
    lines.insert(at, f"{block.code}\n\n" if section else block.code)
    path.write_text("".join(lines))


def only(lines: list[str], pattern: str, first: bool = False) -> int:
    """The line that matches; with `first`, the first of them."""
    matches = [number for number, line in enumerate(lines) if re.fullmatch(pattern, line.rstrip("\n"))]
    assert matches and (first or len(matches) == 1), f"{len(matches)} lines are like {pattern}"
    return matches[0]


def copy_tree(tree: Path) -> Path:
    (tree / "tests").mkdir(parents=True)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "constraints.txt"]:
        shutil.copy(path, tree)
    for folder in ("mpn_rl", "configs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest", "networks/test_cores", "package/test_contracts", "test_packaging"):
        path = tree / "tests" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / f"{name}.py", path)
    return tree


def python(tree: Path, *argv: str) -> subprocess.CompletedProcess:
    """A Python of its own that sees the copy alone, whatever is installed."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, *argv], cwd=tree, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with everything that the page adds."""
    tree = copy_tree(tmp_path_factory.mktemp("extended") / "tree")
    for block in blocks(PAGE):
        put(block, tree)
    return tree


def shortened(command: list[str]) -> list[str]:
    """A command of the page, shortened so that it runs quickly."""
    kind = command[1].partition("-")[0]
    if "--resume" in command:
        return [*command, *SHORT["--resume"].split()]
    more = [] if "--num-eval-trials" in command else SHORT[kind].split()
    if kind == "train" and "--algo" not in command:
        dqn = SHORT["dqn"].split()
        more += dqn[2:] if "--core" in command else dqn  # the page's core has no kernels
    return [*command, *more, *(SHORT["--expansion"].split() if "--expansion" in command else [])]


# Runs command lines in one process, for importing torch takes longer than any of them.
DRIVER = """
import json, sys
import main
for line in json.load(sys.stdin):
    print("$", *line, flush=True)
    if status := main.main(line):
        sys.exit(status)
"""


def test_the_page_has_a_core_a_task_and_a_learner_within_three_touches() -> None:
    """One new module each, and beside it only the dataclass and the row with its import."""
    sections = dict(re.findall(r"^## (A \w+)\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE))
    touched = {title: [block.file for block in blocks(text)] for title, text in sections.items()}
    assert touched == {
        "A core": ["mpn_rl/networks/gated_mpn.py", "mpn_rl/config.py", "mpn_rl/registry.py", "mpn_rl/registry.py"],
        "A task": ["mpn_rl/tasks/delayed_recall.py", "mpn_rl/tasks/gymnasium_tasks.py"],
        "A learner": ["mpn_rl/learners/reinforce.py", "mpn_rl/config.py", "mpn_rl/registry.py", "mpn_rl/registry.py"],
    }


def test_every_command_of_the_page_runs(extended: Path) -> None:
    lines = [shortened(command)[1:] for command in commands(PAGE) if command[0] == "main.py"]
    assert {line[0] for line in lines} == {"train-neurogym", "train", "eval", "analyze", "render"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(lines), cwd=extended, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = done.stdout.split("$ ")[1:]
    assert len(outputs) == len(lines)
    assert all("done:" in text for text in outputs if text.startswith("train"))
    stored = json.loads((extended / "experiments" / "gated" / "config.json").read_text())
    assert stored["core"] == {"name": "gated-mpn", "hidden_dim": 6, "eta": 1.0, "lambda_decay": 0.85}
    assert stored["run"]["total_steps"] == 700  # resumed
    gated, recall = (extended / "experiments" / name / "analysis" for name in ("gated", "recall"))
    for folder in (gated, recall):
        assert {"behaviour.png", "trajectories_M.png"} <= {path.name for path in folder.iterdir()}


def test_the_new_parts_keep_their_contracts(extended: Path) -> None:
    """The page's own test commands, in one."""
    given = [command for command in commands(PAGE) if command[0] == "-m"]
    assert [command[:2] for command in given] == [["-m", "pytest"]] * len(given)
    files = {command[2] for command in given}
    words = " or ".join(command[command.index("-k") + 1] for command in given)
    done = python(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(files), "-k", words, "-rA")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("networks/test_cores.py::test_unroll_equals_stepping_resets_included[gated-mpn-1]",
                 "package/test_contracts.py::test_a_resumed_run_ends_as_the_uninterrupted_one[reinforce]",
                 "package/test_contracts.py::test_lanes_come_back_in_the_middle_of_their_episodes[DelayedRecall-v0]",
                 ):  # fmt: skip
        assert f"PASSED tests/{name}" in done.stdout, name


def test_the_new_modules_keep_the_import_rule(extended: Path) -> None:
    done = lint_imports(extended)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_and_mistakes_know_the_new_parts(extended: Path) -> None:
    shown = "".join(python(extended, "main.py", "train", "--help").stdout.split())  # where lines break or not
    assert "cue-reward,gated-mpn(default:" in shown and "supervised,reinforce(default:" in shown
    refused = python(extended, "main.py", "train", "--core", "gated-mpn", "--rule", "oja")
    assert refused.returncode == 2 and "--rule does nothing with" in refused.stderr
    near = python(extended, "main.py", "train", "--core", "gated-mp")
    assert near.returncode == 2 and "did you mean 'gated-mpn'" in near.stderr


def test_a_block_for_a_place_that_is_gone_is_noticed(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    for file, place in (("mpn_rl/config.py", "at the end of its brains"),
                        ("mpn_rl/registry.py", "the last row of BRAINS"),
                        ("mpn_rl/registry.py", "somewhere"), ("mpn_rl/registry.py", "a new file")):  # fmt: skip
        with pytest.raises(AssertionError):
            put(Block(file, place, "pass\n"), tree)
