"""What every test shares: no screen, no surprise threads, the same random numbers in any order of tests."""

from __future__ import annotations

import os
import random
import sys

import pytest

# Before anything imports them: pygame and matplotlib must not look for a screen, and tests of small tensors
# are fastest on one thread. Commands started by tests inherit this.
os.environ.update(MPLBACKEND="Agg", SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", PYGAME_HIDE_SUPPORT_PROMPT="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton decides when it is imported, and torch's optimisers import it: without a GPU its kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")


# The files that take longest come first: with several workers, none of them is left over at the end.
LONGEST = (
    *("test_documentation.py", "test_cores.py", "test_sweep_commands.py", "test_every_task.py"),
    *("test_mpn_kernels.py", "test_report.py", "test_neurogym_wrapper.py", "test_sweep_files.py", "test_main.py"),
    "test_stages.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by LONGEST; the order within a file stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Seeds the global generators, so that a test fails alone as it fails in the suite."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _legends_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A legend at "best" searches all points, and Matplotlib warns when that takes a second on a busy machine."""
    if "matplotlib.legend" in sys.modules:

        def search(*_: object) -> None:
            raise AssertionError('a legend without a place of its own: loc="best" is slow')

        monkeypatch.setattr(sys.modules["matplotlib.legend"].Legend, "_find_best_position", search)
