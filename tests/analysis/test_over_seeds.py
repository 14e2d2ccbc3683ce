"""Numbers and curves of single runs as means over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import main
from mpn_rl.analysis.comparison import over_seeds, stored_results
from mpn_rl.options import ConfigError

TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--eval-episodes", "2", "--learning-starts", "20",
        "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8", "--batch-size", "4",
        "--num-episodes", "3", "--max-episode-steps", "60", "--no-plot-training", "--kernel", "reference"]  # fmt: skip


def write_results(folder: Path, accuracy: list[float], ratio: float) -> Path:
    """The files of a run with two periods: one step of fixation, the others of delay."""
    folder.mkdir()
    time = [100.0 * step for step in range(len(accuracy))]
    decoded = {"M": {"stimulus": {"accuracy": accuracy}}, "missing": {"evidence": "not available: none"},
               "time": time, "onsets": {"fixation": 0, "delay": 1}, "unit": "ms", "table": []}  # fmt: skip
    (folder / "decoding.json").write_text(json.dumps(decoded))
    table = [{"what": "participation ratio of M", "value": ratio}, {"what": "unknown", "value": None}]
    (folder / "pca_variance.json").write_text(json.dumps({"table": table}))
    return folder


def test_the_mean_over_seeds_has_students_interval_and_holds_the_truth() -> None:
    """Participation ratios of five seeds, drawn around 4: the interval is SciPy's, and holds 4 in 90 to 99 %."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        values = rng.normal(4.0, 0.5, 5)
        (line,) = over_seeds.number_over_seeds("participation ratio", {"mpn": values.tolist()})
        low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        assert line.iqm == pytest.approx((values.mean(), low, high, 5))
        held.append(low <= 4.0 <= high)
    assert 0.90 <= np.mean(held) <= 0.99


def test_curves_of_runs_meet_at_the_steps_of_a_period_that_all_have(tmp_path: Path) -> None:
    long = stored_results.stored(write_results(tmp_path / "a", [0.5, 0.8, 0.9, 1.0], 3.0))
    short = stored_results.stored(write_results(tmp_path / "b", [0.5, 0.6, 0.7], 5.0))
    assert long.numbers == {("pca_variance", "participation ratio of M"): 3.0}
    assert long.missing == [stored_results.PROBE]
    name = "stimulus decoded from M"
    over = over_seeds.curve_over_seeds({"mpn": [long.curves[name], short.curves[name]]})
    x, estimate = over.groups["mpn"]
    np.testing.assert_allclose(x, [0, 100, 200])
    np.testing.assert_allclose(estimate.value, [0.5, 0.7, 0.8])
    assert np.isnan(estimate.low[0]) and estimate.high[1] == 1.0 and over.marks == {"fixation": 0.0, "delay": 100.0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("decoding", {"table": {}}, "it has no table of up to 10,000 lines; run analyze plot again"),
        ("lesions", {"table": [{"what": "a", "value": "b"}]}, r"table\[0\].value must be a number"),
        ("decoding", {"table": [], "onsets": {}, "time": [1.0], "unit": "ms", "M": {"choice": {"accuracy": [1, 2]}}},
         "differ in length"),
    ],
)  # fmt: skip
def test_files_that_no_stage_has_written_are_refused(tmp_path: Path, name: str, content: dict, message: str) -> None:
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        stored_results.stored(tmp_path)


def test_compare_names_the_run_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        argv = ["train-neurogym", "--env-name", "PerceptualDecisionMaking-v0", "--experiment-name", f"seed-{seed}"]
        assert main.main([*argv, "--seed", str(seed), *TINY]) == 0
    argv = ["analyze", "compare", "--experiment-name", "seed-*", "--num-eval-episodes", "2", "--output", "out"]
    assert main.main(argv) == 0
    captured = capsys.readouterr()
    assert "measures over seeds: not available: no run has results of analyze or analyze probe" in captured.out
    assert "measures of" not in captured.err and not list(Path("out").glob("measures*"))
    assert main.main(["analyze", "--experiment-name", "seed-0", "--num-episodes", "6", "--epsilon", "1"]) == 0
    assert main.main([*argv, "--overwrite"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "note: measures of seed-1: no recording (analyze), no probes (analyze probe)" in err
    lines = Path("out/measures.csv").read_text().splitlines()
    (ratio,) = [line.split(",") for line in lines if "participation ratio of M" in line]
    assert ratio[-1] == "1" and Path("out/measures.png").stat().st_size > 0
    page = json.loads(Path("experiments/seed-0/analysis/pca_variance.json").read_text())
    (value,) = [line["value"] for line in page["table"] if line["what"] == "participation ratio of M"]
    assert float(ratio[5]) == pytest.approx(value, rel=1e-5)
    weights = Path("experiments/seed-0/checkpoints")
    (weights / "best_model.pt").write_bytes((weights / "last.pt").read_bytes())  # other weights than were recorded
    assert main.main([*argv, "--overwrite"]) == 0
    assert "not available" in capsys.readouterr().out and not Path("out/measures.csv").exists()
    assert main.main(["analyze", "probe", "--experiment-name", "seed-0", "--num-trials", "4"]) == 0
    assert main.main([*argv, "--overwrite"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "measures of seed-0: the results of analyze are not of best_model.pt as it is now" in err
