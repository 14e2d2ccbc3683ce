"""How many mutations of the code the tests detect: `make mutation`, or python tests/mutation.py --minutes 30.

Cosmic Ray changes one operator, number or condition at a time. A mutant is killed where a test of its module fails or
takes ten times as long as without it. Mutants are drawn at random, in turn from each module of MODULES, until the time
is up. The working tree is not touched: every worker has its own copy.

Mutants in EQUIVALENT do not change what the code computes; they do not count.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent
# Maths, replay, statistics and persistence, with the tests of each.
MODULES = {
    "mpn_rl/returns.py": "tests/package/test_returns.py",
    "mpn_rl/statistics.py": "tests/package/test_statistics.py tests/analysis/test_confidence_intervals.py",
    "mpn_rl/analysis/confidence_intervals.py": "tests/analysis/test_confidence_intervals.py",
    "mpn_rl/analysis/decoding.py": "tests/analysis/test_decoding.py",
    "mpn_rl/analysis/demixed.py": "tests/analysis/test_demixed.py",
    "mpn_rl/analysis/fixed_points.py": "tests/analysis/test_fixed_points.py",
    "mpn_rl/analysis/behaviour.py": "tests/analysis/test_behaviour.py",
    "mpn_rl/analysis/trials.py": "tests/analysis/test_trials.py tests/analysis/test_behaviour.py",
    "pca_analysis.py": "tests/test_pca_analysis.py",
    "mpn_module.py": "tests/test_mpn_module.py",
    "mpn_rl/expansion/plasticity_metrics.py": "tests/expansion/test_plasticity_metrics.py",
    "trial_replay.py": "tests/test_trial_replay.py",
    "mpn_rl/learners/transition_replay.py": "tests/learners/test_transition_replay.py",
    "mpn_rl/tasks/lanes.py": "tests/tasks/test_lanes.py tests/package/test_rollout.py",
    "mpn_rl/rollout.py": "tests/package/test_rollout.py",
    "model_utils.py": "tests/test_model_utils.py",
    "mpn_rl/storage/json_files.py": "tests/storage/test_json_files.py",
    "mpn_rl/storage/npz_files.py": "tests/storage/test_npz_files.py",
}
SWAPS = {
    "BinaryOperator": {("Add", "Sub"), ("Sub", "Add"), ("Mul", "Div"), ("Div", "Mul"), ("Pow", "Mul"),
                       ("FloorDiv", "Mul"), ("Mod", "Mul"), ("BitOr", "BitAnd"), ("BitAnd", "BitOr")},
    "ComparisonOperator": {("Lt", "LtE"), ("LtE", "Lt"), ("Gt", "GtE"), ("GtE", "Gt"), ("Lt", "Gt"), ("Gt", "Lt"),
                           ("Eq", "NotEq"), ("NotEq", "Eq"), ("Is", "IsNot"), ("IsNot", "Is")},
}  # fmt: skip
OPERATORS = {
    f"core/Replace{kind}_{old}_{new}" for kind, pairs in SWAPS.items() for old, new in pairs
} | {
    f"core/{name}" for name in ("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not",
                                "ReplaceUnaryOperator_Delete_Invert", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue",
                                "ReplaceAndWithOr", "ReplaceOrWithAnd", "NumberReplacer", "AddNot",
                                "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop")
}  # fmt: skip
# (module, the mutated line without spaces around it)
EQUIVALENT: set[tuple[str, str]] = {
    # Another default seed chooses other trials, as good as these.
    ("mpn_rl/analysis/trials.py", "def balanced_trials("
     "cell: np.ndarray, cells: int, stratum: np.ndarray | None = None, seed: int = 0) -> np.ndarray:"),
    # Both products of a square matrix have its singular values.
    ("mpn_rl/expansion/plasticity_metrics.py", "gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T"),
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: the module, the name and occurrence of the operator, and the line, counted from 1."""

    module: str
    operator: str
    occurrence: int
    line: int


def not_executed(source: str) -> Iterator[tuple[int, int]]:
    """(first, last line) of annotations of one line or more, which `from __future__ import annotations` never runs."""
    for node in ast.walk(ast.parse(source)):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        yield from ((part.lineno, part.end_lineno or part.lineno) for part in found if isinstance(part, ast.expr))


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of a module, except of its annotations."""
    source = (ROOT / module).read_text()
    annotations = {line for first, last in not_executed(source) for line in range(first, last + 1)}
    tree = get_ast(source)
    found = []
    for name in sorted(OPERATORS & set(operator_names())):
        operator = get_operator(name)()
        places = (start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node))
        for occurrence, (line, _) in enumerate(places):
            if not (line in annotations and "BitOr" in name):
                found.append(Mutant(module, name, occurrence, line))
    return found


def in_turn(seed: int, modules: list[str]) -> Iterator[Mutant]:
    """Mutants of every module in a random order, one of each module in turn."""
    rng = random.Random(seed)
    queues = [mutants_of(module) for module in modules]
    for queue in queues:
        rng.shuffle(queue)
    for place in range(max(map(len, queues))):
        yield from (queue[place] for queue in queues if place < len(queue))


class Worker(threading.Thread):
    """Tests mutants in a copy of the repository until the time is up.

    Args:
        mutants: shared with other workers.
        lock: of `mutants` and `results`.
        results: {mutant: whether it was killed}.
        end: on the clock of time.monotonic.
    """

    def __init__(
        self, mutants: Iterator[Mutant], lock: threading.Lock, results: dict[Mutant, bool], end: float
    ) -> None:
        super().__init__()
        self.mutants, self.lock, self.results, self.end = mutants, lock, results, end
        self.baseline: dict[str, float] = {}

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.copy = Path(folder) / "copy"
            ignored = shutil.ignore_patterns(".venv", ".git", "experiments", "*_cache", "__pycache__", "shared", "*.so")
            shutil.copytree(ROOT, self.copy, ignore=ignored, symlinks=True)
            while time.monotonic() < self.end:
                with self.lock:
                    mutant = next(self.mutants, None)
                if mutant is None:
                    return
                source = (ROOT / mutant.module).read_text()
                text = source.splitlines()[mutant.line - 1].strip()
                mutated = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
                if mutated is None or (mutant.module, text) in EQUIVALENT:
                    continue
                if mutant.module not in self.baseline:
                    start = time.monotonic()
                    if not self.passes(mutant.module, None):
                        raise RuntimeError(f"{MODULES[mutant.module]} fails without a mutation")
                    self.baseline[mutant.module] = time.monotonic() - start
                (self.copy / mutant.module).write_text(mutated)
                killed = not self.passes(mutant.module, 20 + 5 * self.baseline[mutant.module])
                (self.copy / mutant.module).write_text(source)
                with self.lock:
                    self.results[mutant] = killed
                    verdict = "killed  " if killed else "SURVIVED"
                    print(f"{verdict} {mutant.module}:{mutant.line} {mutant.operator[5:]}: {text}", flush=True)

    def passes(self, module: str, timeout: float | None) -> bool:
        """Whether the tests of a module pass in time."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *MODULES[module].split()]
        environment = {**os.environ, "PYTHONPATH": str(self.copy), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, cwd=self.copy, env=environment, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="time in total")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.9, help="smallest share of killed mutants")
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    args = parser.parse_args()
    mutants, lock, results = in_turn(args.seed, args.modules), threading.Lock(), dict[Mutant, bool]()
    end = time.monotonic() + 60 * args.minutes
    workers = [Worker(mutants, lock, results, end) for _ in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if not results:
        print("no mutant was tested in this time")
        return 1
    for module in args.modules:
        own = [killed for mutant, killed in results.items() if mutant.module == module]
        if own:
            print(f"{module}: {sum(own)} of {len(own)} killed")
    share = sum(results.values()) / len(results)
    print(f"{sum(results.values())} of {len(results)} mutants killed: {100 * share:.1f} %")
    return 0 if share >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
