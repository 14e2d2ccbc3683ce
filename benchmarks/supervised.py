"""Supervised MPNs: the paper's integration task, and NeuroGym's tasks against their ideal observers.

    python benchmarks/supervised.py [integration | neurogym] [--seeds 0 1 2] [--only Context]

integration: Integration-v0 with 3 classes, 20 words and 50 inputs, H = 100, 2,000 updates of 64 sequences, without an
embedding; the MPN with one and two layers, and the recurrent MPN, also with a falling learning rate (3e-3 to 3e-4).
Accuracy on 5,000 new sequences, participation ratio of each layer's h on 300 of them over all steps, and processor
time; with one layer beside a plain loop over time with autograd, on the same batches in the same process.

neurogym: H = 100, at most 600 updates of 32 x 100 steps (20,000 were allowed), the state reset at each trial. A run
stops when greedy episodes come halfway from the goal to the best possible accuracy. The goal is 0.99, or the ideal
observer less 0.01 where there is one. Then the final weights play at least 2,000 trials of other seeds. NeuroGym's
accuracy is at most about 0.5 in tasks in which doing nothing may be right (GoNogo, DelayPairedAssociation): there, the
share of right decision steps counts.

All on one thread. Resumable: benchmarks/results/supervised.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import learning  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mpn_module import MPN  # noqa: E402
from mpn_rl import config as cfg  # noqa: E402
from mpn_rl import registry  # noqa: E402
from mpn_rl.contracts import MetricsRow, Sequences, state_parts  # noqa: E402
from mpn_rl.learners.supervised import SupervisedNetwork  # noqa: E402
from mpn_rl.networks.recurrent_mpn import RecurrentMPN  # noqa: E402
from mpn_rl.rollout import evaluate  # noqa: E402
from mpn_rl.tasks.lanes import EpisodeSeeds  # noqa: E402
from mpn_rl.training import Run  # noqa: E402
from neurogym_wrapper import reference_scores  # noqa: E402
from pca_analysis import participation_ratio  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "supervised.json"
UPDATES, ROWS, STEPS = 2_000, 64, 21
LOOP_UPDATES = 40  # of the plain loop, which are then scaled
HELD_OUT, FOR_RATIO = 5_000, 300
TASKS = [
    "ContextDecisionMaking",
    "DelayComparison",
    "DelayMatchSample",
    "DelayMatchSampleDistractor1D",
    "DelayPairedAssociation",
    "GoNogo",
    "IntervalDiscrimination",
    "MultiSensoryIntegration",
    "PerceptualDecisionMaking",
    "PerceptualDecisionMakingDelayResponse",
    "ProbabilisticReasoning",
]
MOST_UPDATES, MOST_SECONDS = 600, 180.0  # in 3 minutes of processor time


class Unsaved(Run):
    """A run that writes no file."""

    def _log(self, rows: list[MetricsRow]) -> None:
        pass

    def _save_model(self, name: str) -> None:
        pass

    def save(self) -> None:
        pass


# --- the paper's task ---------------------------------------------------------------------------------------


class PlainLoop(nn.Module):
    """The same network as a loop over time, whose gradients are autograd's."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(hidden, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.eta, self.decay = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.85))
        self.head = nn.Linear(hidden, classes)

    def forward(self, xs: Tensor) -> Tensor:
        m = xs.new_zeros(len(xs), *self.weight.shape)
        outputs = []
        for x in xs.unbind(1):
            h = torch.tanh(self.bias + torch.einsum("bhd,bd->bh", self.weight * (m + 1.0), x))
            m = self.decay * m + self.eta * h[:, :, None] * x[:, None, :]
            outputs.append(self.head(h))
        return torch.stack(outputs, 1)


def loop_seconds(batches: list[Sequences]) -> float:
    """Processor time per update of the plain loop."""
    torch.manual_seed(0)
    network = PlainLoop(batches[0].obs.shape[2], 100, 3)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    times = []
    for batch in batches:
        started = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(network(batch.obs).movedim(-1, 1), batch.target, ignore_index=-1)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        times.append(time.process_time() - started)
    return float(np.mean(times[len(times) // 4 :]))


def integration(seed: int, layers: int, core: str = "mpn", **changed: float) -> dict[str, Any]:
    """One run on Integration-v0, with other options than the demonstration's where `changed` says so."""
    flags = {"learner": "supervised", "env_name": "Integration-v0", "seed": seed, "hidden_dim": 100, "embed_dim": 0}
    flags |= {
        "core": core,
        "num_layers": layers,
        "batch_size": ROWS,
        "sequence_length": STEPS,
        "total_steps": UPDATES * ROWS * STEPS,
    }
    flags |= {"learning_rate": 1e-3, "lr_final": 1.0, "eta": 0.1, "l1": 1e-4, "eval_freq": 0}
    config = cfg.make_config("train", {**flags, "plasticity_metrics_freq": 0, "log_freq": 10**6, **changed})
    warm = Unsaved(config)
    for _ in range(5):  # compiles the kernels
        warm.advance()
    run = Unsaved(config)
    started = time.process_time()
    while not run.done:
        run.advance()
    spent = time.process_time() - started
    network = run.learner.policy
    assert isinstance(network, SupervisedNetwork)
    source = registry.make_sequences(config)
    held = source.sample(HELD_OUT, np.random.default_rng([seed, 2**31]))
    with torch.no_grad():
        outputs, _ = network.unroll(held.obs, network.init_state(HELD_OUT))
        right = outputs[:, -1].argmax(-1) == held.target[:, -1]
        hs, state = network.encoder(held.obs[:FOR_RATIO]), state_parts(network.init_state(FOR_RATIO))
        parts, ratios, groups = len(state) // layers, [], np.repeat(np.arange(FOR_RATIO), STEPS)
        assert isinstance(network.core, MPN | RecurrentMPN)
        for i, layer in enumerate(network.core.layers):
            hs, _ = layer(hs, state[i] if parts == 1 else state[i * parts : (i + 1) * parts], None)
            ratios.append(participation_ratio(hs.flatten(0, 1).double().numpy(), groups))
    row = {"accuracy": float(right.double().mean()), "participation_ratio_h": ratios[-1], "cpu_s": spent}
    if layers > 1:
        row |= {"participation_ratio_h_by_layer": ratios}
    elif core == "mpn":
        rng = np.random.default_rng(seed)
        seconds = loop_seconds([source.sample(ROWS, rng) for _ in range(LOOP_UPDATES)])
        row |= {"plain_loop_cpu_s": seconds * UPDATES, "times_less": seconds * UPDATES / spent}
    return row


# --- NeuroGym -----------------------------------------------------------------------------------------------


def neurogym(task: str, seed: int) -> dict[str, Any]:
    """One run on a NeuroGym task, until an evaluation reaches the goal or the time is over."""
    name = f"{task}-v0"
    ideal = reference_scores(name, {}).get("ideal")
    goal = 0.99 if ideal is None else min(0.99, ideal - 0.01)
    flags = {"learner": "supervised", "env_name": name, "seed": seed, "hidden_dim": 100, "lr_final": 0.02}
    flags |= {"total_steps": MOST_UPDATES * 3_200, "eval_freq": 100 * 3_200, "plasticity_metrics_freq": 0}
    flags |= {"target_accuracy": goal + 0.005, "reset_state_on_trial": True, "learning_rate": 0.01}
    run = Unsaved(cfg.make_config("train-neurogym", flags))
    started, curve = time.process_time(), []
    while not run.done and time.process_time() - started < MOST_SECONDS:
        curve += [round(row["accuracy"], 4) for row in run.advance() if row["kind"] == "eval"]
    spent = time.process_time() - started
    trials, seeds = 0, EpisodeSeeds("eval", seed)
    envs, results = [registry.make_env(run.config.env) for _ in range(50)], []
    while trials < 2_000:
        results.append(evaluate(run.learner.policy, envs, [seeds() for _ in envs], True))
        trials += len(results[-1].performance)
    scores = np.concatenate([result.performance for result in results])
    decisions = np.concatenate([result.decision_correct for result in results])
    row = {
        "accuracy": float(scores.mean()),
        "decision_accuracy": float(decisions.mean()),
        "trials": len(scores),
        "goal": goal,
        "ideal": ideal,
        "updates": run.learner.updates,
    }
    return row | {"cpu_s": spent, "stopped_at_goal": run.reached, "evaluations": curve}


# --- all rows -----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("integration", "neurogym"))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": learning.machine(), "rows": {}}
    rows: list[tuple[str, Any]] = []
    if args.part != "neurogym":
        for layers in (1, 2):
            for seed in args.seeds or range(5):
                rows.append((f"integration, {layers} layers, seed {seed}", lambda s=seed, n=layers: integration(s, n)))
        for seed in args.seeds or range(5):
            rows.append((f"integration, recurrent, seed {seed}", lambda s=seed: integration(s, 1, "mpn-recurrent")))
            falling = {"learning_rate": 3e-3, "lr_final": 0.1}
            name = f"integration, recurrent, falling rate, seed {seed}"
            rows.append((name, lambda s=seed, f=falling: integration(s, 1, "mpn-recurrent", **f)))
    if args.part != "integration":
        for seed in args.seeds or range(3):
            rows += [(f"{task}, seed {seed}", lambda t=task, s=seed: neurogym(t, s)) for task in TASKS]
    for name, measure in rows:
        if name in stored["rows"] or args.only not in name:
            continue
        stored["rows"][name] = measure()
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
        print(name, json.dumps(stored["rows"][name]), flush=True)


if __name__ == "__main__":
    main()
