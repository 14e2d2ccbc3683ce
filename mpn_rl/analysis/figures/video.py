"""Videos of an agent: rendered Gymnasium frames beside Q-values, and NeuroGym episodes as moving plots.

A page is drawn once; each frame redraws only the artists that change. Colours and style are those of `visualize`.
"""

from __future__ import annotations

import contextlib
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mpn_rl.options import ConfigError
from visualize import MODEL_COLOURS, OTHER_COLOURS, PERIOD_TINTS, atomic_path, colour_bar, house_style

A = TypeVar("A", bound=Artist)
Episode = Mapping[str, np.ndarray]  # the arrays of one episode of an activity.npz


class _Film:
    """A page that is drawn once; each frame redraws only its moving artists over the saved background.

    Drawing the whole page takes 100 ms, a frame 5 ms. Width and height are even, which the H.264 codec requires.
    """

    def __init__(self, width: int, height: int) -> None:
        self.fig = Figure(figsize=((width + width % 2) / 100, (height + height % 2) / 100), dpi=100)
        self.canvas = FigureCanvasAgg(self.fig)
        self.moving: list[Artist] = []

    def move(self, artist: A) -> A:
        """Mark an artist as one that changes between frames."""
        artist.set_animated(True)
        self.moving.append(artist)
        return artist

    def freeze(self) -> None:
        """Draw everything that does not move."""
        with house_style():
            self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.fig.bbox)

    def frame(self) -> np.ndarray:
        """The current page, (height, width, 3) uint8."""
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.draw(self.canvas.get_renderer())
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


Update = Callable[[int], None]


OUTPUTS = {"q_values": "Q-values", "action_probabilities": "action probabilities"}


def _output_panel(film: _Film, ax: Axes, recording: Episode, names: Sequence[str] | None = None) -> Update:
    """What the agent chose by, as bars on a fixed scale; the bar of the chosen action is blue.

    Action vectors are their own bars, and so are choices without any such array.
    """
    actions = np.asarray(recording["actions"])
    vectors = actions.ndim == 2
    output = next((name for name in OUTPUTS if name in recording and not vectors), None)
    if output:
        values, title = np.asarray(recording[output], dtype=float), f"{OUTPUTS[output]}\n(blue: chosen action)"
    else:
        values, title = actions.astype(float).reshape(len(actions), -1), "action"
    values = np.nan_to_num(values)
    low, high = min(0.0, values.min()), max(0.0, values.max())
    pad = 0.06 * (high - low or 1.0)
    places = np.arange(values.shape[1])
    bars = [film.move(bar) for bar in ax.bar(places, 0 * places, width=0.7)]
    ax.set(ylim=(low - pad * (low < 0), high + pad), xlim=(-0.6, len(places) - 0.4))
    ax.set_title(title)
    if names and output and len(places) <= 6:
        ax.set_xticks(places, [textwrap.fill(name[:30], 36 // len(places)) for name in names])
    else:
        ax.set_xticks(places[:: -(-len(places) // 12)])
    ax.axhline(0, color="#444444", lw=0.8)

    def update(t: int) -> None:
        for place, bar in enumerate(bars):
            chosen = not output or place == actions[t]
            bar.set(height=values[t, place], facecolor=MODEL_COLOURS["mpn"] if chosen else "#DCDCDC")

    return update


@house_style()
def gym_frames(recording: Episode, action_names: Sequence[str] | None = None) -> Iterator[np.ndarray]:
    """Rendered frames beside the Q-values, action probabilities or action vector of each step, with the return so far.

    Args:
        recording: the arrays of one episode of `rollout.record_episodes`, with `frames` (T, H, W, 3) uint8.
        action_names: (A,), by default the numbers of the actions.

    Returns: T frames, uint8 RGB, of even width and height.
    """
    frames = recording["frames"]
    height, width = np.shape(frames[0])[:2]
    scale = 400 / height
    image_width, header, panel = round(width * scale), 36, 300
    film = _Film(image_width + panel, 400 + header)
    page_width, page_height = film.canvas.get_width_height()
    picture = film.fig.add_axes((0, 0, image_width / page_width, 400 / page_height))
    picture.axis("off")
    image = film.move(picture.imshow(frames[0], aspect="auto"))
    bars = film.fig.add_axes(((image_width + 60) / page_width, 0.14, (panel - 80) / page_width, 0.7))
    update_output = _output_panel(film, bars, recording, action_names)
    text = film.move(film.fig.text(10 / page_width, 1 - 18 / page_height, "", va="center", fontsize=11))

    def play() -> Iterator[np.ndarray]:
        film.freeze()
        for t, total in enumerate(np.cumsum(recording["rewards"])):
            image.set_data(frames[t])
            update_output(t)
            text.set_text(f"step {t + 1}     return {total:.5g}")
            yield film.frame()

    return play()


@house_style()
def neurogym_frames(
    recording: Episode,
    channel_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    window: int = 80,
) -> Iterator[np.ndarray]:
    """An episode of trials: observations, actions, rewards, M, and Q-values or action probabilities.

    Time runs from left to right over `window` steps, then starts again at the left. Frame t shows observation t, the
    action and Q-values for it, the reward that followed, and the state after it.

    Args:
        recording: the arrays of one episode of an activity.npz; without state_M, the video shows h.
        channel_names: one per observation feature.
        action_names: one per choice, by default their numbers.
        window: number of steps on a page.

    Returns: a frame per step, uint8 RGB, 960 x 600.
    """
    film = _Film(960, 600)
    grid = film.fig.add_gridspec(3, 2, width_ratios=[2.3, 1], height_ratios=[2.6, 1.1, 0.9], hspace=0.36,
                                 left=0.1, right=0.935, top=0.89, bottom=0.085, wspace=0.26)  # fmt: skip
    left = [film.fig.add_subplot(grid[row, 0]) for row in range(3)]
    clock = float(recording.get("dt_ms", 0.0)) / 1000 or 1.0
    time = np.arange(len(recording["actions"])) * clock
    panels = [
        _observation_panel(film, left[0], recording, time, channel_names),
        _action_panel(film, left[1], recording, time, action_names),
        _reward_panel(film, left[2], recording, time),
    ]
    for ax in left[:2]:
        ax.tick_params(labelbottom=False)
    left[2].set_xlabel("time (s)" if recording.get("dt_ms", 0) else "time (steps)")
    _mark_trials(left, recording, time, clock)
    cursors = [film.move(ax.axvline(0, color="#222222", lw=1)) for ax in left]
    update_output = _output_panel(film, film.fig.add_subplot(grid[0, 1]), recording, action_names)
    update_state = _state_panel(film, film.fig.add_subplot(grid[1:, 1]), recording)
    headline = film.move(film.fig.text(0.1, 0.962, "", va="center", fontsize=12))
    score = film.move(film.fig.text(0.935, 0.962, "", va="center", ha="right", fontsize=12))
    total = np.cumsum(recording["rewards"])

    def play() -> Iterator[np.ndarray]:
        for t in range(len(time)):
            start = t - t % window
            if t == start:
                for ax in left:
                    ax.set_xlim(time[start] - clock / 2, time[start] + (window - 0.5) * clock)
                film.freeze()
            for panel in panels:
                panel(slice(start, t + 1))
            for cursor in cursors:
                cursor.set_xdata([time[t], time[t]])
            update_output(t)
            update_state(t)
            period = f": {recording['period'][t]}" if "period" in recording and recording["period"][t] else ""
            headline.set_text(f"trial {recording['trial'][t] + 1}{period}")
            score.set_text(f"return {total[t]:.4g}")
            yield film.frame()

    return play()


Reveal = Callable[[slice], None]


def _observation_panel(
    film: _Film, ax: Axes, recording: Episode, time: np.ndarray, names: Sequence[str] | None
) -> Reveal:
    """The observation channels as traces on one scale, stacked from top to bottom."""
    channels = np.asarray(recording["observations"], dtype=float).T
    names = names or [f"obs_{index}" for index in range(len(channels))]
    above, below = channels.max(axis=1).clip(min=0), channels.min(axis=1).clip(max=0)
    above = np.maximum(above, below + 0.4 * (above - below).max())  # names of flat channels need room too
    gap = 0.2 * (above - below).max() or 1.0
    levels = np.concatenate([[0.0], np.cumsum(below[:-1] - above[1:] - gap)])  # the zero of each channel
    ax.set_ylim(levels[-1] + below[-1] - gap, above[0] + gap)
    every = -(-len(channels) // 16)
    ax.set_yticks(levels[::every], [str(name)[:14] for name in names[::every]])
    ax.set_title("observation")
    colours = [OTHER_COLOURS[index % len(OTHER_COLOURS)] for index in range(len(channels))]
    lines = [film.move(ax.plot([], [], lw=1.3, color=colour, drawstyle="steps-mid")[0]) for colour in colours]

    def reveal(shown: slice) -> None:
        for line, channel, level in zip(lines, channels, levels, strict=True):
            line.set_data(time[shown], channel[shown] + level)

    return reveal


def _early(recording: Episode, wrong: np.ndarray) -> np.ndarray:
    """Which of the `wrong` steps (T,) only came early, and without a penalty.

    A step came early where action 0, which waits, was right, before the last period of the trial. This period is not
    known where the recording cuts the trial off: there, the right action decides alone.
    """
    periods, new_trial = np.asarray(recording.get("period", np.full(len(wrong), ""))), recording["new_trial"]
    last = np.flatnonzero(np.append(new_trial[:-1], True))  # steps of each trial
    final = np.repeat(periods[last], np.diff(last, prepend=-1))
    whole = np.arange(len(wrong)) <= np.max(np.flatnonzero(new_trial), initial=-1)
    waiting = np.asarray(recording["ground_truth"]) == 0
    return wrong & waiting & ((periods != final) | ~whole) & (np.asarray(recording["rewards"]) >= 0)


def _action_panel(film: _Film, ax: Axes, recording: Episode, time: np.ndarray, names: Sequence[str] | None) -> Reveal:
    """The chosen action, right, early or wrong, over the correct one; only the chosen one where none is known.

    The entries of action vectors are lines.
    """
    if np.ndim(recording["actions"]) == 2:
        return _vector_panel(film, ax, np.asarray(recording["actions"], dtype=float), time)
    chosen = np.asarray(recording["actions"], dtype=float)
    correct = np.asarray(recording.get("ground_truth", -np.ones(len(chosen))), dtype=float)
    known = correct >= 0
    early = _early(recording, known & (chosen != correct)) if known.any() else known
    looks = [
        ("correct", np.where(known, correct, np.nan), "s", "#BDBDBD", 9),
        ("right", np.where(known & (chosen == correct), chosen, np.nan), "o", MODEL_COLOURS["rnn"], 4),
        ("early", np.where(early, chosen, np.nan), "d", MODEL_COLOURS["gru"], 5),
        ("wrong", np.where(known & ~early & (chosen != correct), chosen, np.nan), "X", MODEL_COLOURS["lstm"], 6),
        ("chosen", np.where(known, np.nan, chosen), "o", MODEL_COLOURS["mpn"], 4),
    ]
    looks = [look for look in looks if np.isfinite(look[1]).any()]
    lines, handles = [], []
    for name, _, marker, colour, size in looks:
        line = Line2D([], [], ls="", label=name, marker=marker, color=colour, mec="none", ms=size)
        handles.append(line)
        lines.append(film.move(ax.plot([], [], ls="", marker=marker, color=colour, mec="none", ms=size)[0]))
    ax.legend(handles=handles, ncols=5, loc="lower right", bbox_to_anchor=(1.01, 0.96), handletextpad=0.1)
    ax.set_title("action")
    output = next((recording[name] for name in OUTPUTS if name in recording), None)
    count = int(max(chosen.max(), correct.max())) + 1 if output is None else np.shape(output)[1]
    ax.set_ylim(-0.6, count - 0.4)
    if names and count <= 6:
        ax.set_yticks(range(count), [name[:14] for name in names])
    else:
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))

    def reveal(shown: slice) -> None:
        for line, look in zip(lines, looks, strict=True):
            line.set_data(time[shown], look[1][shown])

    return reveal


def _vector_panel(film: _Film, ax: Axes, actions: np.ndarray, time: np.ndarray) -> Reveal:
    """The entries of action vectors (T, A) as lines on one scale."""
    low, high = actions.min(), actions.max()
    pad = 0.1 * (high - low or 1.0)
    ax.set(ylim=(low - pad, high + pad), title="action (a line per entry)")
    colours = [OTHER_COLOURS[entry % len(OTHER_COLOURS)] for entry in range(actions.shape[1])]
    lines = [film.move(ax.plot([], [], lw=1.3, color=colour, drawstyle="steps-mid")[0]) for colour in colours]

    def reveal(shown: slice) -> None:
        for line, values in zip(lines, actions.T, strict=True):
            line.set_data(time[shown], values[shown])

    return reveal


def _reward_panel(film: _Film, ax: Axes, recording: Episode, time: np.ndarray) -> Reveal:
    """The reward of each step as a bar."""
    rewards = np.asarray(recording["rewards"], dtype=float)
    low, high = min(0.0, rewards.min()), max(0.0, rewards.max())
    pad = 0.1 * (high - low or 1.0)
    ax.set_title("reward")
    ax.set_ylim(low - pad * (low < 0), high + pad)
    ax.axhline(0, color="#444444", lw=0.8)
    stems = film.move(ax.vlines([], [], [], color=MODEL_COLOURS["gru"], lw=4))

    def reveal(shown: slice) -> None:
        stems.set_segments([[(x, 0), (x, y)] for x, y in zip(time[shown], rewards[shown], strict=True)])

    return reveal


def _state_panel(film: _Film, ax: Axes, recording: Episode) -> Update:
    """M (H, D) as a heat map, or h; the colour limits are fixed and include 99.5 % of the episode's values."""
    state = recording.get("state_M")
    if state is not None:
        ax.set(title="modulation M", xlabel="input", ylabel="hidden unit")
    else:
        ax.set(title="hidden state h", xticks=[], yticks=[])
        hidden = np.asarray(recording["hidden"])
        columns = next(c for c in range(int(hidden.shape[1] ** 0.5), 0, -1) if hidden.shape[1] % c == 0)
        state = hidden.reshape(len(hidden), -1, columns)
    state = np.asarray(state, dtype=np.float32).reshape(len(state), -1, np.shape(state)[-1])
    limit = float(np.quantile(np.abs(state), 0.995)) or 1.0
    image = film.move(ax.imshow(state[0], cmap="RdBu_r", vmin=-limit, vmax=limit,
                                aspect="auto", interpolation="nearest"))  # fmt: skip
    colour_bar(image, [ax], "", fraction=0.06, pad=0.04, extend="both")
    return lambda t: image.set_data(state[t])


def _mark_trials(axes: Sequence[Axes], recording: Episode, time: np.ndarray, clock: float) -> None:
    """A line at the end of each trial, a tint behind each named period, and a legend above the first axes."""
    for ax in axes:
        for end in time[np.flatnonzero(recording["new_trial"])]:
            ax.axvline(end + clock / 2, color="#888888", lw=0.8, ls=(0, (2, 2)), zorder=1)
    periods = np.asarray(recording.get("period", np.full(len(time), "")))
    names = [name for name in dict.fromkeys(periods.tolist()) if name]
    tints = dict(zip(names, PERIOD_TINTS, strict=False))
    turns = (periods[1:] != periods[:-1]) | recording["new_trial"][:-1]
    starts = np.flatnonzero(np.concatenate([[True], turns]))
    for start, stop in zip(starts, [*starts[1:], len(time)], strict=True):
        for ax in axes:
            ax.axvspan(time[start] - clock / 2, time[stop - 1] + clock / 2, lw=0, zorder=0,
                       color=tints.get(str(periods[start]), "white"))  # fmt: skip
    handles = [Patch(facecolor=tint, edgecolor="#999999", lw=0.6, label=name) for name, tint in tints.items()]
    if handles:
        axes[0].legend(handles=handles, ncols=len(handles), loc="lower right", bbox_to_anchor=(1.01, 0.98),
                       handlelength=1.4, columnspacing=1.2, handletextpad=0.4)  # fmt: skip


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 10.0) -> Path:
    """Write RGB uint8 frames atomically as .gif (Pillow) or .mp4 (imageio-ffmpeg).

    GIF durations are multiples of 10 ms, so fps is rounded to 100 / n; identical consecutive frames become one.

    Args: frames: (height, width, 3) uint8 each. fps: frames per second, in (0, 100].

    Returns: the path.

    Raises: ConfigError for another suffix, fps out of range, no frames, or .mp4 without the [video] extra.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"a video is written as .gif or .mp4, got {path.name!r}")
    if not 0 < fps <= 100:
        raise ConfigError(f"fps must lie in (0, 100], got {fps:g}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ConfigError(f"no frames to write to {path.name}: the episode is empty")
    with atomic_path(path) as temporary:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, chain([first], frames), fps)
    return path


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    images = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    duration_ms = max(10, 10 * round(100 / fps))
    next(images).save(path, save_all=True, append_images=images, duration=duration_ms, loop=0)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ConfigError("writing .mp4 needs imageio-ffmpeg: pip install 'mpn-rl[video]', or write a .gif") from error
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
               "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an", "-pix_fmt", "yuv420p", "-crf", "15",
               str(path)]  # fmt: skip
    with tempfile.TemporaryFile() as messages, Popen(command, stdin=PIPE, stdout=DEVNULL, stderr=messages) as ffmpeg:
        assert ffmpeg.stdin is not None
        try:
            for frame in chain([first], frames):
                ffmpeg.stdin.write(np.ascontiguousarray(frame).data)
            ffmpeg.stdin.close()
        except BrokenPipeError:  # ffmpeg has ended: its status says why
            with contextlib.suppress(BrokenPipeError):
                ffmpeg.stdin.close()
        except BaseException:
            ffmpeg.kill()
            raise
        status = ffmpeg.wait()
        messages.seek(0)
        lines = messages.read().decode(errors="replace").strip().splitlines()
    if status:
        reason = lines[-1] if lines else "no message"
        raise ConfigError(f"ffmpeg cannot write the film (status {status}: {reason}); free some space, or write a .gif")
