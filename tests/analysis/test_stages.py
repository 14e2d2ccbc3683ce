"""The files of `analyze`, and known properties of an MPN in a small trained model."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

import main
import pca_analysis
from model_utils import Experiment
from mpn_rl import config as cfg
from mpn_rl import registry
from mpn_rl.analysis import compare_runs, stages, trials
from mpn_rl.analysis.pages import standard_pages
from mpn_rl.analysis.recording import ActivityWriter
from mpn_rl.options import ConfigError
from mpn_rl.rollout import join_episodes, record_episodes

TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--eval-episodes", "2", "--learning-starts", "20",
        "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8", "--batch-size", "4",
        "--num-episodes", "3", "--max-episode-steps", "60", "--no-plot-training"]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """'trained': 20,000 steps on PerceptualDecisionMaking; 'frozen': a frozen MPN on DelayMatchSample; tiny runs."""
    folder = tmp_path_factory.mktemp("analysis")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = [
            "--hidden-dim",
            "48",
            "--total-steps",
            "20000",
            "--eval-freq",
            "20000",
            "--eval-episodes",
            "20",
            "--no-plot-training",
        ]
        frozen = ["--core", "mpn-frozen", "--hidden-dim", "32", "--total-steps", "2000", "--no-plot-training"]
        frozen += ["--dueling"]
        for name, task, options in [
            ("trained", "PerceptualDecisionMaking-v0", trained),
            ("frozen", "DelayMatchSample-v0", frozen),
            ("seed-0", "PerceptualDecisionMaking-v0", [*TINY, "--kernel", "reference"]),
            ("seed-1", "PerceptualDecisionMaking-v0", [*TINY, "--kernel", "reference", "--seed", "1"]),
            ("rival", "PerceptualDecisionMaking-v0", [*TINY, "--core", "gru"]),
        ]:
            assert main.main(["train-neurogym", "--env-name", task, "--experiment-name", name, *options]) == 0
        argv = ["analyze", "--experiment-name", "trained", "frozen", "--num-episodes", "60"]
        assert main.main(argv) == 0
    return folder


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def numbers(home: Path, name: str, page: str) -> dict[str, Any]:
    return json.loads((home / "experiments" / name / "analysis" / f"{page}.json").read_text())


# --- what must be seen --------------------------------------------------------------------------------------


def test_evidence_is_decodable_from_m_when_the_decision_is_due(home: Path) -> None:
    """M holds the sign of the noisy evidence at 0.80 or more; h stands beside it, both with their intervals."""
    decoded = numbers(home, "trained", "decoding")
    at = decoded["onsets"]["decision"]
    found = {state: {part: decoded[state]["evidence"][part][at] for part in ("accuracy", "low", "high", "n")}
             for state in ("M", "h")}  # fmt: skip
    assert found["M"]["accuracy"] >= 0.80 and found["M"]["low"] > decoded["M"]["evidence"]["anywhere"]
    for state in found.values():
        assert state["low"] < state["accuracy"] < state["high"] and state["n"] > 300
    assert decoded["M"]["evidence"]["band"][1][at] < 0.65
    with np.load(home / "experiments/trained/analysis/decoding.npz") as arrays:
        assert arrays["M_evidence_shuffled"].shape == (200, len(decoded["time"]))


def test_the_psychometric_curve_rises_and_has_intervals(home: Path) -> None:
    """Fitted to the trained agent: no bias beyond its interval, a threshold within the coherences shown."""
    fit = numbers(home, "trained", "behaviour")["psychometric"]
    assert fit["n"] + fit["left_out"] > 300
    bias, threshold = fit["parameters"]["bias"], fit["parameters"]["threshold"]
    assert bias["low"] <= 0 <= bias["high"] or abs(bias["value"]) < 6.4
    assert 0 < threshold["low"] < threshold["value"] < threshold["high"] < 51.2
    curve = np.array(fit["curve"])
    assert curve[0] < 0.15 and curve[-1] > 0.85 and (np.diff(curve) >= 0).all()
    assert (np.array(fit["band"][0]) <= curve + 1e-9).all() and (np.array(fit["band"][1]) >= curve - 1e-9).all()


def test_a_frozen_mpn_holds_nothing_in_the_delay(home: Path) -> None:
    """The sample decoded in the delay stays inside the band in which the best step of 95 % of the shuffles lies."""
    decoded = numbers(home, "frozen", "decoding")
    delay = slice(decoded["onsets"]["delay"], decoded["onsets"]["test"])
    for state in ("M", "h"):
        of = decoded[state]["stimulus"]
        assert max(of["accuracy"][delay]) <= of["anywhere"]
        low, high = (np.array(edge[delay]) for edge in of["band"])
        assert (
            np.mean((low <= of["accuracy"][delay]) & (of["accuracy"][delay] <= high)) >= 0.7
        )  # each step leaves its own band in one case of twenty
    sample = slice(decoded["onsets"]["sample"] + 1, decoded["onsets"]["delay"])
    assert min(decoded["h"]["stimulus"]["accuracy"][sample]) > 0.95  # while it is shown, h shows it


def test_every_picture_has_its_numbers_beside_it(home: Path) -> None:
    folder = home / "experiments" / "trained" / "analysis"
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures >= {"behaviour", "decoding", "demixed", "fixed_points", "learning", "pca_variance", "readout",
                        "snapshots", "trajectories_M", "trajectories_hidden", "weights"}  # fmt: skip
    for name in pictures:
        settings = numbers(home, "trained", name)
        assert re.search(r"\bn = [\d,]+", settings["caption"]) or name == "weights", name
    assert "missing" in numbers(home, "trained", "modulator") and "modulator" not in pictures


def test_the_weights_drawn_are_those_of_the_checkpoint(home: Path) -> None:
    folder = home / "experiments" / "trained"
    saved = torch.load(folder / "checkpoints/best_model.pt", weights_only=True)["network"]
    with np.load(folder / "analysis/network.npz") as stored, np.load(folder / "analysis/weights.npz") as drawn:
        assert set(stored.files) == set(saved)
        np.testing.assert_array_equal(stored["head.weight"], saved["head.weight"].numpy())
        np.testing.assert_allclose(drawn["W"], saved["core.layers.0.weight"].numpy())


def test_the_readout_of_a_dueling_head_is_that_of_its_q_values(home: Path) -> None:
    folder = home / "experiments" / "frozen" / "analysis"
    with np.load(folder / "activity.npz") as activity, np.load(folder / "network.npz") as network:
        q, hidden, head = activity["q_values"].astype(float), activity["hidden"].astype(float), network["head.weight"]
    readout = head[:1] + head[1:] - head[1:].mean(0)
    offset = q - hidden @ readout.T  # the bias, and the rounding of the recording
    assert len(head) == 1 + q.shape[1] and np.ptp(offset, axis=0).max() < 0.01 * np.ptp(q, axis=0).min()
    with np.load(folder / "readout.npz") as drawn:
        inside = (drawn["cosines"] ** 2).sum(axis=1)
        assert drawn["cosines"].shape[0] == q.shape[1] and (inside <= 1 + 1e-6).all()


def test_the_encoder_in_numpy_is_the_networks_own() -> None:
    from mpn_rl.networks.encoder import Encoder

    for embed_dim, constant in ((3, False), (0, True), (3, True)):
        encoder = Encoder(2, embed_dim, constant)
        weights = {f"encoder.{name}": part.numpy() for name, part in encoder.state_dict().items()}
        obs = np.array([0.3, -2.0])
        expected = encoder(torch.tensor(obs, dtype=torch.float32)).detach().numpy()
        from mpn_rl.analysis.pages import mechanism_pages

        np.testing.assert_allclose(mechanism_pages.encoded(weights, obs, constant), expected, rtol=1e-6)


# --- collect ------------------------------------------------------------------------------------------------


def episodes_of(seeds: list[int], env_name: str = "GoNogo-v0") -> list[dict[str, np.ndarray]]:
    config = cfg.make_config(
        "train-neurogym",
        {"env_name": env_name, "hidden_dim": 4, "embed_dim": 3, "max_episode_steps": 40, "kernel": "reference"},
    )
    env = registry.make_env(config.env)
    torch.manual_seed(0)
    network = registry.make_network(config, registry.spaces(env)).requires_grad_(False)
    return list(record_episodes(network, [env], seeds, epsilon=0.3))


def test_a_recording_written_in_pieces_is_the_episodes_end_to_end(tmp_path: Path) -> None:
    episodes = episodes_of([1, 2, 3])
    with ActivityWriter(tmp_path) as writer:
        for episode in episodes:
            assert writer.add(dict(episode))
            assert max(array.ndim for held in writer.columns for array in held.values()) == 1  # the rest is on the disk
        writer.write(tmp_path / "a.npz", dt_ms=100.0)
    expected = {**join_episodes(episodes), "dt_ms": np.array(100.0)}
    found = pca_analysis.load_activity(tmp_path / "a.npz")
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_recording_never_exceeds_what_it_may(tmp_path: Path) -> None:
    episode = episodes_of([1])[0]
    size = sum(array.nbytes for array in episode.values())
    with ActivityWriter(tmp_path) as writer:
        assert writer.add(dict(episode), 2.5 * size) and writer.add(dict(episode), 2.5 * size)
        assert not writer.add(dict(episode), 2.5 * size)
        assert (writer.episodes, writer.nbytes) == (2, 2 * size)
        with pytest.raises(ConfigError, match="--states must be of h, M for this core, got 'H'"):
            ActivityWriter(tmp_path, ["H"]).add(dict(episode))


def test_the_same_seed_records_the_same_and_states_are_chosen(home: Path) -> None:
    path = home / "experiments/seed-0/analysis/activity.npz"
    options = ["analyze", "collect", "--experiment-name", "seed-0", "--num-episodes", "3", "--epsilon", "0.5"]
    recorded = []
    for more in ([], [], ["--seed", "1"], ["--states", "h"]):
        assert main.main([*options, *more]) == 0
        recorded.append(pca_analysis.load_activity(path))
    first, again, other, chosen = recorded
    assert all(np.array_equal(first[name], again[name], equal_nan=first[name].dtype.kind == "f") for name in first)
    assert not np.array_equal(first["actions"], other["actions"])
    assert "state_M" in first and set(first) - set(chosen) == {"state_M"}
    settings = json.loads(path.with_name("collected.json").read_text())
    assert (settings["episodes"], settings["steps"], settings["epsilon"], settings["states"]) == (3, 180, 0.5, ["h"])


def test_the_numbers_of_each_step_are_recorded_and_can_colour(tmp_path: Path) -> None:
    task = {"env_name": "GridMaze-v0", "env_args": {"episode_steps": 12, "size": 5}}
    config = cfg.make_config("train", {**task, "core": "gru", "hidden_dim": 4})
    env = registry.make_env(config.env)
    network = registry.make_network(config, registry.spaces(env)).requires_grad_(False)
    activity = next(record_episodes(network, [env], [0], epsilon=1.0))
    assert {"info_hit", "info_wall", "info_row", "info_col", "info_goal_row"} <= set(activity)
    assert activity["info_row"].shape == (12,)
    assert pca_analysis.colour_values(activity, "row").values.tolist() == activity["info_row"].tolist()
    assert "goal_col" in pca_analysis.colour_keys(activity)


def test_the_documented_lines_make_tables_and_datasets(home: Path) -> None:
    """The lines of docs/analysis.md: pandas and xarray are not needed here, what they are handed is."""
    path = home / "experiments/trained/analysis/activity.npz"
    activity = np.load(path)
    columns = {k: v for k, v in activity.items() if v.ndim == 1}
    assert {len(column) for column in columns.values()} == {len(activity["actions"])}
    dims = {k: (("step", f"{k}_1", f"{k}_2")[: v.ndim], v) for k, v in activity.items()}
    assert all(len(names) == array.ndim for names, array in dims.values())
    table = trials.trial_table(loaded := pca_analysis.load_activity(path), trials.complete_trials(loaded))
    assert len({len(column) for column in table.values()}) == 1
    text = (Path(__file__).parents[2] / "docs/analysis.md").read_text()
    for line in ('xr.Dataset({k: (("step", f"{k}_1", f"{k}_2")[: v.ndim], v) for k, v in activity.items()})',
                 "pd.DataFrame({k: v for k, v in activity.items() if v.ndim == 1})"):  # fmt: skip
        assert line in text


# --- several experiments ------------------------------------------------------------------------------------


def test_patterns_mean_experiments_each_once(home: Path) -> None:
    assert Experiment.matching(("seed-1", "seed-*", "rival")) == ["seed-1", "seed-0", "rival"]
    with pytest.raises(ConfigError, match="'none-\\*' matches no experiment in experiments/"):
        Experiment.matching(("none-*",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("plot --experiment-name seed-0 --output x", "--output belongs to analyze compare"),
        ("collect --experiment-name seed-0 --similarity", "--similarity belongs to analyze compare"),
        ("--experiment-name seed-0 --group-by core", "--group-by belongs to analyze compare"),
        (
            "compare --experiment-name seed-0 --group-by hiden_dim",
            "is no option of mpn runs; did you mean 'hidden_dim'",
        ),
        ("collect --experiment-name seed-0 --states H", "--states must be of h, M for this core, got 'H'"),
        (
            "collect --experiment-name seed-0 --max-megabytes 1 --num-episodes 1 --policy sample",
            "has no policy to sample",
        ),
    ],
)
def test_a_wrong_option_is_one_line(options: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["analyze", *options.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith("main.py analyze: ")


def test_compare_judges_groups_on_the_same_episodes(home: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["analyze", "compare", "--experiment-name", "seed-*", "rival", "--num-eval-episodes", "3", "--format", "svg"]
    assert main.main(argv) == 0
    captured = capsys.readouterr()
    assert "evaluating seed-0: 3 episodes" in captured.err
    assert "note: fewer than 5 seeds: mpn has 2, gru has 1; more seeds may change the order" in captured.err
    assert captured.out.startswith("checkpoint final of 3 runs, each on the same 3 episodes of seed 0\n")
    assert "P(mpn > gru)" in captured.out
    folder = home / "experiments" / "compare-mpn-gru"
    assert {path.name for path in folder.iterdir()} == {
        "comparison.png", "comparison.svg", "comparison.csv", "comparison.json", "runs.csv",
        "psychometric.png", "psychometric.svg", "psychometric.csv"}  # fmt: skip
    with open(folder / "runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert [(run["experiment"], run["group"], run["seed"]) for run in runs] == [
        ("seed-0", "mpn", "0"), ("seed-1", "mpn", "1"), ("rival", "gru", "0")]  # fmt: skip
    files = [home.glob(f"experiments/{run['experiment']}/eval/final_seed0_3ep_*.json") for run in runs]
    seeds = [json.loads(file.read_text())["episode_seeds"] for (file,) in files]
    assert seeds[0] == seeds[1] == seeds[2] and len(seeds[0]) == 3
    with open(folder / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    mean = next(row for row in rows if row["measure"] == "return" and row["group"] == "mpn")
    returns = [float(run["return_mean"]) for run in runs[:2]]
    assert float(mean["value"]) == pytest.approx(np.mean(returns)) and mean["n"] == "2"
    assert main.main(argv) == 0
    assert "evaluating" not in capsys.readouterr().err  # what eval has written serves again
    assert "rival" not in Experiment.names("experiments/compare-mpn-gru")
    assert main.main([*argv, "--group-by", "experiment"]) == 0
    assert "P(seed-0 > rival)" in capsys.readouterr().out


def test_compare_draws_the_choices_of_the_episodes_that_it_scores(home: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["analyze", "compare", "--experiment-name", "trained", "--num-eval-episodes", "10", "--checkpoint", "best"]
    assert main.main(argv) == 0
    (path,) = home.glob("experiments/trained/eval/best_seed0_10ep_*.json")
    scores = json.loads(path.read_text())
    right = sum(n for truth, choice, n in zip(*(scores["choices"][k] for k in ("ground_truth", "choice", "trials")),
                                              strict=True) if truth == choice)  # fmt: skip
    assert right == round(scores["accuracy"] * scores["trials"])
    folder = home / "experiments" / "compare-mpn"
    with open(folder / "psychometric.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["strength"] for row in rows] == ["-51.2", "-25.6", "-12.8", "-6.4", "0", "6.4", "12.8", "25.6", "51.2"]
    assert {row["evidence"] for row in rows} == {"coherence (%)"} and {row["n"] for row in rows} == {"1"}
    assert {row["low"] for row in rows} == {""}  # one seed has no interval
    counted = list(zip(*(scores["choices"][k] for k in ("coh", "ground_truth", "choice", "trials")), strict=True))
    strong = [(choice, n) for coherence, truth, choice, n in counted if (coherence, truth) == (51.2, 2)]
    share = sum(n for choice, n in strong if choice == 2) / sum(n for choice, n in strong if choice)
    assert float(rows[-1]["share"]) == pytest.approx(share) and share > 0.7
    del scores["choices"]  # as in files of earlier versions
    path.write_text(json.dumps(scores))
    assert main.main(argv) == 0
    assert "evaluating trained" in capsys.readouterr().err
    argv = ["analyze", "compare", "--experiment-name", "frozen", "--output", str(folder), "--num-eval-episodes", "2"]
    assert main.main([*argv, "--overwrite"]) == 0
    assert "psychometric curves: not available: the task's conditions have no coherence" in capsys.readouterr().out
    assert not list(folder.glob("psychometric.*"))


def test_a_comparison_of_one_group_is_pointed_out(home: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["analyze", "compare", "--experiment-name", "seed-*", "--num-eval-episodes", "3"]
    assert main.main(argv) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "note: all 2 runs are in one group (mpn), so nothing is compared; --group-by chooses groups" in err
    assert main.main([*argv, "--group-by", "seed"]) == 0
    assert "in one group" not in capsys.readouterr().err


def test_measures_are_taken_together_where_all_groups_have_all_tasks() -> None:
    def run(group: str, task: str, score: float) -> compare_runs.Run:
        scores = {"accuracy": score, "normalised_score": None, "return_mean": 10 * score}
        return compare_runs.Run("name", group, task, 0, 4805, scores, [])

    even = [run(group, task, score) for score, (group, task) in
            enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")])]  # fmt: skip
    assert compare_runs.measures_of(even) == {
        "accuracy": {"a": {"x": [0], "y": [1]}, "b": {"x": [2], "y": [3]}},
        "return, x": {"a": {"x": [0]}, "b": {"x": [20]}},
        "return, y": {"a": {"y": [10]}, "b": {"y": [30]}},
    }
    assert set(compare_runs.measures_of(even[:3])) == {"accuracy, x", "accuracy, y", "return, x", "return, y"}
    assert set(compare_runs.measures_of(even[:1])) == {"accuracy", "return"}


def test_groups_without_a_common_task_are_not_compared() -> None:
    from mpn_rl.analysis import confidence_intervals

    rows, pairs = confidence_intervals.compare({"accuracy": {"a": {"x": [0.5, 0.6]}, "b": {"y": [0.7, 0.8]}}})
    assert [row.group for row in rows] == ["a", "b"] and pairs == []


def test_groups_are_named_by_any_option() -> None:
    config = cfg.make_config("train-neurogym", {"hidden_dim": 64})
    assert compare_runs.group_of(config, ["core"]) == "mpn"
    assert compare_runs.group_of(config, ["algo", "hidden-dim"]) == "dqn, hidden_dim 64"


# --- probe and plot -----------------------------------------------------------------------------------------


def test_probes_leave_numbers_tables_and_pictures(home: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["analyze", "probe", "--experiment-name", "rival", "--num-trials", "4", "--delays", "100", "300"]
    assert main.main(argv) == 0
    assert "accuracy without intervention" in capsys.readouterr().out
    folder = home / "experiments/rival/analysis"
    found = json.loads((folder / "probes.json").read_text())
    assert found["delay"]["x"] == [100, 300] and 0.5 <= found["lesion"]["chance"] < 1.0
    with open(folder / "probes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["probe"] for row in rows} == {"delay", "input_noise", "state_noise", "lesion", "frozen"}
    assert all(0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1 for row in rows)
    assert (folder / "delay.png").is_file() and (folder / "lesions.png").is_file()
    for points in found["fixed_points"].values():  # the states of a GRU lie within [-1, 1]
        assert np.shape(points["states"]) == (len(points["found"]), 4) or not points["found"]
        assert np.abs(points["states"] or 0).max() < 1.5 and points["unreached"] >= 0


def test_a_readout_of_many_actions_fits_its_page(tmp_path: Path) -> None:
    """33 actions, as AntiReach-v0 has: a legend of so many lines leaves no room (a warning is an error here)."""
    import visualize
    from mpn_rl.analysis.figures import state_figures

    projection = pca_analysis.project_readout(np.random.default_rng(0).standard_normal((33, 6)), np.eye(6)[:4])
    visualize.save_figure(state_figures.readout_figure(projection), tmp_path / "readout.png")


def test_a_picture_that_can_no_longer_be_drawn_is_deleted(tmp_path: Path) -> None:
    page = standard_pages.Page("x", "state", "X", missing="not available: gone")
    (tmp_path / "x.png").write_bytes(b"old")
    assert stages.save(page, tmp_path, ["png"]) == []
    assert not (tmp_path / "x.png").exists()
    assert json.loads((tmp_path / "x.json").read_text())["missing"] == "not available: gone"


def test_pictures_come_in_other_formats_beside_the_png(home: Path) -> None:
    assert main.main(["analyze", "--experiment-name", "seed-1", "--num-episodes", "2", "--format", "pdf"]) == 0
    folder = home / "experiments/seed-1/analysis"
    assert (folder / "behaviour.pdf").read_bytes().startswith(b"%PDF") and (folder / "behaviour.png").is_file()


def test_runs_that_are_plotted_together_show_their_plasticity_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    where = ["--experiments-dir", str(tmp_path)]
    measured = [*TINY, *where, "--core", "gru", "--eval-freq", "40", "--plasticity-metrics-freq", "40"]
    for name, options in [
        ("dense-0", ["--seed", "0"]),
        ("dense-1", ["--seed", "1"]),
        ("grown-0", ["--expansion", "paper", "--update-interval", "20"]),
    ]:
        assert main.main(["train-neurogym", "--experiment-name", name, *measured, *options]) == 0
    assert main.main(["analyze", "--experiment-name", "dense-*", "grown-0", "--num-episodes", "2", *where]) == 0
    output = capsys.readouterr().out
    assert (tmp_path / "compare-dense-paper" / "plasticity_ContextDecisionMaking-v0.png").stat().st_size > 0
    assert "comparison of runs: " in output
    page = json.loads((tmp_path / "grown-0" / "analysis" / "plasticity.json").read_text())
    logged = [row for row in Experiment.open("grown-0", tmp_path).read_metrics() if row["kind"] == "plasticity"]
    assert page["density, online"]["values"] == [row["online/density"] for row in logged]
    masks = json.loads((tmp_path / "grown-0" / "analysis" / "masks.json").read_text())
    assert masks["density"][0] < masks["density"][-1]
    assert (tmp_path / "grown-0" / "analysis" / "masks.png").is_file()
    assert "topology is fixed" in json.loads((tmp_path / "dense-0" / "analysis" / "masks.json").read_text())["missing"]


def test_matrix_products_of_the_analysis_use_the_given_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's and SciPy's libraries, which would otherwise take every core."""
    seen: list[set[int]] = []
    monkeypatch.setattr(stages, "plot", lambda *_: seen.append({pool["num_threads"] for pool in threadpool_info()}))
    for threads in ("1", "2"):
        assert main.main(["analyze", "plot", "--experiment-name", "seed-0", "--threads", threads]) == 0
    assert seen == [{1}, {2}]
