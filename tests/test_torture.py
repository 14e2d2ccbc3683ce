"""A short round of `make torture`: kills, bad inputs, a full disk, a hostile file, two processes, a wrong clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_every_mistake_is_answered(tmp_path: Path) -> None:
    results = tmp_path / "torture.json"
    command = [sys.executable, ROOT / "benchmarks" / "torture.py", "--kills", "5", "--inputs", "100", "--steps", "600"]
    command += ["--hostile", "0", "--triples", "4"]
    done = subprocess.run([*command, "--results", results], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert found["kills"]["survived"] >= 5
    assert found["bad inputs"]["answered"] == found["bad inputs"]["asked"] >= 95
