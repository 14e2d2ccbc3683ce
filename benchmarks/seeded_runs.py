"""Short seeded runs of every learner, replay, core and expansion, and a digest of everything that they produce.

    python benchmarks/seeded_runs.py record FILE     # before a change that must not move results
    python benchmarks/seeded_runs.py compare FILE    # after it: lists the runs that differ, exit status 1 if any does

A digest covers the final weights, metrics.jsonl and the evaluation's JSON, bit for bit. Bits depend on the processor
and on PyTorch's version, so record and compare on one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import main

TINY = "--hidden-dim 6 --num-envs 3 --eval-episodes 2 --eval-freq 60 --no-plot-training --seed 3"
TINY += " --plasticity-metrics-freq 50"
OFF_POLICY = "--batch-size 4 --learning-starts 40 --buffer-size 200"
SEQUENCES = f"{OFF_POLICY} --sequence-length 8 --sequence-stride 4 --update-every 4"
NEUROGYM = f"train-neurogym {TINY} --max-episode-steps 25 --total-steps 240"
GYMNASIUM = f"train {TINY} --max-episode-steps 25 --total-steps 240"
PENDULUM = f"train --env-name Pendulum-v1 --algo td3 {TINY} --max-episode-steps 25 --total-steps 240 {OFF_POLICY}"
MAZE = f"train --env-name GridMaze-v0 --env-arg episode_steps=15 {TINY} --total-steps 240"
CUES = f"train --env-name CueReward-v0 --env-arg episode_steps=15 {TINY} --total-steps 240"
CORES = ("mpn", "mpn-frozen", "mpn-recurrent", "rnn", "gru", "lstm", "mlp", "backpropamine",
         "backpropamine-simplemaze", "backpropamine-maze", "backpropamine-cue-reward")  # fmt: skip
EXPANSIONS = ("paper", "reference", "grow", "static", "rigl", "redo", "l2-init", "shrink-perturb", "continual-backprop")
QUICK = {"static": "", "l2-init": "", "continual-backprop": "--maturity 2 --replacement-rate 0.1"}  # else an interval


def runs() -> dict[str, str]:
    """Command lines by name."""
    table = {}
    for core in CORES:
        table[f"dqn {core}"] = f"{NEUROGYM} --core {core} {SEQUENCES}"
        table[f"a2c {core}"] = f"{MAZE} --core {core} --algo a2c --rollout-steps 7"
    for core in ("mlp", "mpn", "rnn", "gru", "lstm"):
        table[f"td3 {core} sequences"] = (
            f"{PENDULUM} --core {core} --replay sequence --sequence-length 8 --sequence-stride 4"
        )
    for expansion in EXPANSIONS:
        grows = f"--expansion {expansion} {QUICK.get(expansion, '--update-interval 40')}"
        table[f"dqn mpn {expansion}"] = f"{NEUROGYM} {SEQUENCES} {grows}"
        table[f"td3 mlp {expansion}"] = f"{PENDULUM} --core mlp --replay transition {grows}"
        table[f"a2c lstm {expansion}"] = f"{CUES} --core lstm --algo a2c --rollout-steps 7 {grows}"
    trials = "--learning-starts 40 --buffer-size 20 --replay trial --trial-batch-size 3 --update-every 4"
    return table | {
        "dqn cartpole": f"{GYMNASIUM} {SEQUENCES}",
        "dqn cartpole masked": f"{GYMNASIUM} {SEQUENCES} --mask-velocity",
        "dqn cues": f"{CUES} {SEQUENCES}",
        "dqn trials": f"{NEUROGYM} {trials}",
        "dqn trials stored, chunks": f"{NEUROGYM} {trials} --bptt-chunk-size 5",
        "dqn trials prioritized": f"{NEUROGYM} {trials} --prioritized --reset-state-on-trial",
        "dqn transitions": f"{NEUROGYM} {OFF_POLICY} --update-every 4 --replay transition",
        "dqn prioritized": f"{NEUROGYM} {SEQUENCES} --prioritized",
        "dqn periodic": f"{NEUROGYM} {SEQUENCES} --target-update periodic --target-update-freq 5 --lr-final 0.1",
        "dqn two layers, M(0)": f"{NEUROGYM} {SEQUENCES} --num-layers 2 --train-m0",
        "dqn plain PyTorch": f"{NEUROGYM} {SEQUENCES} --kernel reference",
        "dqn additive oja": f"{NEUROGYM} {SEQUENCES} --form additive --rule oja --eta 0.1",
        "dqn presynaptic relu": f"{NEUROGYM} {SEQUENCES} --rule presynaptic --activation relu --eta-shape pre",
        "dqn postsynaptic": f"{NEUROGYM} {SEQUENCES} --rule postsynaptic --lambda-shape post --constant-input",
        "dqn matrix": f"{NEUROGYM} {SEQUENCES} --eta-shape matrix --lambda-shape matrix",
        "a2c backpropamine retroactive": f"{MAZE} --core backpropamine --modulation retroactive --algo a2c",
        "a2c backpropamine lstm": f"{MAZE} --core backpropamine --cell lstm --modulation fanout --algo a2c",
        "a2c backpropamine oja": f"{CUES} --core backpropamine --trace-rule oja --algo a2c",
        "a2c backpropamine reference": f"{CUES} --core backpropamine --kernel reference --algo a2c",
        "td3 mlp transitions": f"{PENDULUM} --core mlp --replay transition",
        "td3 mlp n-step": f"{PENDULUM} --core mlp --replay transition --n-step 3",
        "td3 mlp review": f"{PENDULUM} --core mlp --replay transition --experience-review --dynamic-buffer "
        "--buffer-adjustment-interval 40",
        "td3 prioritized": f"{PENDULUM} --core lstm --replay sequence --prioritized --sequence-length 8 "
        "--sequence-stride 4",
        "train a2c cartpole": f"{GYMNASIUM} --algo a2c --core gru",
    }


def command(line: str, *more: str) -> str:
    """Run one command line of the toolkit; returns its output. Raises: SystemExit if it fails."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main.main([*line.split(), *more])
    if status:
        raise SystemExit(f"{line}: exit status {status}\n{out.getvalue()}")
    return out.getvalue()


def digest(line: str, folder: Path) -> dict[str, str]:
    """Run a command line in `folder` and hash its files."""
    import torch

    where = ("--experiment-name", "run", "--experiments-dir", str(folder))
    command(line, *where)
    command("eval --num-eval-episodes 3", *where)
    run = folder / "run"
    weights = torch.load(run / "checkpoints" / "final_model.pt", weights_only=True)
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors(weights)):
        hashed.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    parts = {"weights": hashed.hexdigest()}
    for name, path in (("metrics", run / "metrics.jsonl"), ("eval", next((run / "eval").glob("*.json")))):
        parts[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return parts


def tensors(tree, name: str = ""):
    """Every tensor of a nested dictionary with its path."""
    import torch

    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors(value, f"{name}/{key}")


def main_() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    digests = {}
    for name, line in runs().items():
        with tempfile.TemporaryDirectory() as folder:
            digests[name] = digest(line, Path(folder))
    if args.action == "record":
        args.file.write_text(json.dumps(digests, indent=1) + "\n")
        print(f"{len(digests)} runs recorded in {args.file}")
        return 0
    recorded = json.loads(args.file.read_text())
    for name, parts in digests.items():
        if parts != recorded.get(name):
            changed = [part for part in parts if parts[part] != recorded.get(name, {}).get(part)]
            print(f"{name}: {', '.join(changed)} differ")
    same = digests == recorded
    print(f"{len(digests)} runs, {'all equal' if same else 'not all equal'}")
    return not same


if __name__ == "__main__":
    sys.exit(main_())
