"""An exported recording opens in pynwb's validator and holds the numbers of the recording."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from recordings import make_recording

import main
from model_utils import Experiment
from mpn_rl import config as cfg
from mpn_rl.analysis import nwb, trials
from mpn_rl.options import ConfigError

pynwb = pytest.importorskip("pynwb")


def export(path: Path, activity: dict[str, np.ndarray]) -> Path:
    nwb.write_nwb(path, activity, name="demo", notes="{}", identifier="abc", start=1.7e9)
    return path


def test_the_file_is_valid_and_holds_the_recording(tmp_path: Path) -> None:
    activity = make_recording(episodes=3, per_episode=4)
    path = export(tmp_path / "a.nwb", activity)
    errors = pynwb.validate(path=str(path))
    assert not (errors[0] if isinstance(errors, tuple) else errors)
    with pynwb.NWBHDF5IO(path, "r") as io:
        file = io.read()
        assert file.identifier == "abc" and "demo" in file.session_description
        seen = file.acquisition["observations"]
        np.testing.assert_array_equal(seen.data[:], activity["observations"])
        assert seen.rate == pytest.approx(10.0)  # steps of 100 ms
        states = file.processing["network"].data_interfaces
        np.testing.assert_array_equal(states["M"].data[:], activity["state_M"].astype(np.float32))
        np.testing.assert_array_equal(states["h"].data[:], activity["hidden"])
        table = file.trials.to_dataframe()
        expected = trials.trial_table(activity, trials.complete_trials(activity))
        assert len(table) == 12 and set(expected) <= set(table.columns)
        np.testing.assert_array_equal(table["choice"], expected["choice"])
        np.testing.assert_allclose(table["start_time"], 0.9 * np.arange(12))
        np.testing.assert_allclose(table["stop_time"] - table["start_time"], 0.9)
        periods = file.intervals["periods"].to_dataframe()
        assert periods["period"].tolist() == ["fixation", "stimulus", "delay", "decision"] * 12
        np.testing.assert_allclose(periods["start_time"][:4], [0, 0.2, 0.6, 0.8])


def test_a_task_without_trials_or_clock_is_valid_too(tmp_path: Path) -> None:
    activity = make_recording(episodes=2, per_episode=2)
    activity["new_trial"][:] = False
    del activity["period"], activity["dt_ms"]
    path = export(tmp_path / "a.nwb", activity)
    errors = pynwb.validate(path=str(path))
    assert not (errors[0] if isinstance(errors, tuple) else errors)
    with pynwb.NWBHDF5IO(path, "r") as io:
        file = io.read()
        assert file.trials is None and file.acquisition["rewards"].rate == 1.0


def test_without_pynwb_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(ConfigError, match=r"analyze export needs the extra: pip install 'mpn-rl\[nwb\]'"):
        export(tmp_path / "a.nwb", make_recording(episodes=2, per_episode=2))
    assert not list(tmp_path.iterdir())


def test_export_needs_a_recording_and_writes_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Experiment.create("demo", tmp_path / "experiments", cfg.make_config("train-neurogym", {}).to_dict())
    assert main.main(["analyze", "export", "--experiment-name", "demo"]) == 2
    assert "no recording experiments/demo/analysis/activity.npz; record it with" in capsys.readouterr().err
    assert not (run.path / "analysis").exists()
    np.savez(run.analysis_dir / "activity.npz", **make_recording(episodes=2, per_episode=2))
    assert main.main(["analyze", "export", "--experiment-name", "demo"]) == 0
    assert sorted(path.name for path in run.analysis_dir.iterdir()) == ["activity.npz", "activity.nwb"]
    with pynwb.NWBHDF5IO(run.analysis_dir / "activity.nwb", "r") as io:
        assert json.loads(io.read().notes)["config"]["core"]["name"] == "mpn"
    assert main.main(["analyze", "export", "--experiment-name", "demo", "--seed", "1"]) == 2
