"""A recording as a file of Neurodata Without Borders (NWB 2), for the tools of the laboratory. Extra `nwb`.

Source: Ruebel et al. 2022 (eLife 11:e78362).
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mpn_rl.analysis import trials
from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.options import ConfigError
from pca_analysis import Activity, states

PLAIN = ("observations", "actions", "rewards", "ground_truth", "correct", "q_values", "action_probabilities", "episode",
         "trial")  # fmt: skip


def write_nwb(path: Path, activity: Activity, *, name: str, notes: str, identifier: str, start: float) -> None:
    """Write a recording as an NWB file.

    Observations, actions, rewards and what the task tells of each step are in `acquisition`, the states of the network
    in the processing module `network`, all as time series over the whole recording: the episodes follow each other
    without a gap, and a step of a task without a clock lasts a second. `trials` has the columns of `trials.trial_table`
    and the intervals `periods` the task's periods.

    Args:
        path: of the new file; its folder exists.
        activity: a recording.
        name: of the experiment.
        notes: free text, such as the configuration.
        identifier: of the recording, the same for equal recordings.
        start: time of the recording in seconds since 1970.

    Raises: ConfigError without pynwb.
    """
    try:
        import h5py
        import pynwb
    except ImportError as error:
        raise ConfigError("analyze export needs the extra: pip install 'mpn-rl[nwb]'") from error

    step = float(activity.get("dt_ms", 0.0)) / 1000 or 1.0
    file = pynwb.NWBFile(
        session_description=f"Activity of the artificial agent {name}",
        identifier=identifier,
        session_start_time=datetime.datetime.fromtimestamp(start, datetime.UTC),
        notes=notes,
        keywords=["artificial neural network"],
        source_script="python main.py analyze export",
        source_script_file_name="main.py",
    )

    def series(label: str, array: np.ndarray, text: str) -> Any:
        if array.dtype == np.float16:
            array = array.astype(np.float32)  # NWB has no float16
        array = array.astype(np.int8) if array.dtype == bool else array
        return pynwb.TimeSeries(name=label, data=array, unit="a.u.", starting_time=0.0, rate=1 / step, description=text)

    for label in activity:
        if label in PLAIN or label.startswith("info_"):
            file.add_acquisition(series(label, activity[label], f"{label} of each step"))
    module = file.create_processing_module("network", "States of the network after each step")
    for label, array in states(activity).items():
        module.add(series(label, array, f"{label}: steps by {' by '.join(['units', 'inputs'][: array.ndim - 1])}"))
    complete = trials.complete_trials(activity)
    _add_trials(file, pynwb, activity, complete, step)
    _add_periods(file, pynwb, activity, step)
    with h5py.File(path, "w") as store, pynwb.NWBHDF5IO(file=store, mode="w") as io:
        io.write(file)


def _add_trials(file: Any, pynwb: Any, activity: Activity, complete: list[np.ndarray], step: float) -> None:
    """The table of complete trials; without one where the task has no trials."""
    try:
        table = trials.trial_table(activity, complete)
    except MissingDataError:
        return
    start = np.array([rows[0] for rows in complete]) * step
    stop = np.array([rows[-1] + 1 for rows in complete]) * step
    file.trials = _intervals(pynwb, "trials", "Complete trials", start, stop, table)


def _add_periods(file: Any, pynwb: Any, activity: Activity, step: float) -> None:
    """The periods of the task as intervals."""
    if "period" not in activity:
        return
    names = activity["period"]
    changed = (names[1:] != names[:-1]) | (np.diff(activity["trial"]) != 0) | (np.diff(activity["episode"]) != 0)
    first = np.concatenate([[0], np.flatnonzero(changed) + 1])
    last = np.append(first[1:], len(names))
    labels = {"period": names[first]}
    file.add_time_intervals(_intervals(pynwb, "periods", "Periods of the task", first * step, last * step, labels))


def _intervals(
    pynwb: Any, name: str, text: str, start: np.ndarray, stop: np.ndarray, columns: dict[str, np.ndarray]
) -> Any:
    """A table of intervals in seconds; text columns stay text."""
    from hdmf.common import VectorData

    parts = {"start_time": start, "stop_time": stop, **columns}
    data = [VectorData(name=key, description=key.replace("_", " "),
                       data=values.tolist() if values.dtype.kind == "U" else values)
            for key, values in parts.items()]  # fmt: skip
    return pynwb.epoch.TimeIntervals(name=name, description=text, columns=data, colnames=list(parts))
