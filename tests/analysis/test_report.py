"""The report is one file, names missing data, and works in a browser, by keyboard and on a phone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from model_utils import load_checkpoint, save_checkpoint
from mpn_rl.analysis import report
from mpn_rl.analysis.pages import standard_pages
from mpn_rl.analysis.pages.standard_pages import Page, Row

TINY = ["--hidden-dim", "4", "--embed-dim", "3", "--num-envs", "2", "--eval-episodes", "2", "--learning-starts", "20",
        "--buffer-size", "400", "--sequence-length", "8", "--sequence-stride", "8", "--batch-size", "4",
        "--num-episodes", "3", "--max-episode-steps", "60", "--no-plot-training"]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Outline(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == [], "tags that were not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check(text: str) -> Outline:
    """What every report must be."""
    outline = Outline(text)
    assert outline.all("html") == [{"lang": "en"}]
    assert not outline.all("script") and not outline.all("link")
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]*", "", text)
    identifiers = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(link["href"][1:] in identifiers for link in outline.all("a"))  # type: ignore[index]
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    for image in outline.all("img"):
        assert len(image["alt"] or "") > 20 and int(image["width"] or 0) > 100 and int(image["height"] or 0) > 50
    assert len(outline.all("figcaption")) == len(outline.all("img"))
    assert "Settings and versions" in outline.words and "nan" not in " ".join(outline.words).split()
    return outline


# --- the page -----------------------------------------------------------------------------------------------


def picture(width: int = 320, height: int = 160) -> bytes:
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(data, "png")
    return data.getvalue()


def test_a_report_holds_its_pictures_captions_numbers_and_settings() -> None:
    inf = float("inf")
    table = [Row("accuracy", 0.9, 0.85, 0.93, 450), Row("gain", inf)]
    table += [Row("horizon", 300.0, 300.0, inf, 9), Row("decay", inf, 70.0, inf, 9)]
    saved = [
        report.SavedPage(
            Page("b", "behaviour", "Did", "It shows this. n = 450.", None, table, headline=(table[0],)), picture()
        ),
        report.SavedPage(Page("l", "learning", "Learned", missing="not available: <nothing> was logged"), None),
    ]
    text = report.render(saved, title="a & b", lead="x", settings={"Configuration": {"core.name": "mpn"}})
    outline = check(text)
    (image,) = outline.all("img")
    assert (image["width"], image["height"]) == ("200", "100")  # 160 dots per inch, a hundred shown
    assert image["alt"] == "Did. It shows this. accuracy 0.9; gain ∞; horizon 300."
    assert "≥ 300" in outline.words and "[70, ∞]" in outline.words and "[300, ∞]" not in outline.words
    words = " ".join(outline.words)
    assert "It shows this. n = 450." in words and "[0.85, 0.93]" in words and "450" in words and "core.name" in words
    assert "not available: <nothing> was logged" in words and "<nothing>" not in text
    # A page that has only a reason is one line, after all others.
    assert "Learned: not available: <nothing> was logged" in outline.words and text.index("Did") < text.index("Learned")
    assert [heading["id"] for heading in outline.all("h2")] == ["overview", "behaviour", "absent", "settings"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.12341, "0.1234"), (123456.7, "123,457"), (float("nan"), "–"), (1e-7, "1e-07"), (0.0, "0")]
)
def test_numbers_have_four_digits(value: float, shown: str) -> None:
    assert report.number(value) == shown


# --- of real runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs: an mpn and a gru on a NeuroGym task, an mlp on CartPole, one without a checkpoint, one whose end came
    before any log."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, command, more in [
            ("mpn", "train-neurogym", ["--env-name", "PerceptualDecisionMaking-v0", "--kernel", "reference"]),
            ("gru", "train-neurogym", ["--env-name", "GoNogo-v0", "--core", "gru"]),
            ("mlp", "train", ["--core", "mlp"]),
        ]:
            assert main.main([command, "--experiment-name", name, *TINY, *more]) == 0
        shutil.copytree(folder / "experiments/mpn", folder / "experiments/gone")
        shutil.rmtree(folder / "experiments/gone/checkpoints")
        (folder / "experiments/gone/metrics.jsonl").unlink()
    return folder


def report_of(home: Path, name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> Outline:
    monkeypatch.chdir(home)
    few = ["--num-episodes", "8", *([] if "--no-probes" in options else ["--num-trials", "4"])]
    assert main.main(["analyze", "report", "--experiment-name", name, *few, *options]) == 0
    return check((home / "experiments" / name / "analysis" / "report.html").read_text())


def missing(outline: Outline) -> str:
    return " ".join(word for word in outline.words if "not available" in word)


def test_the_report_of_an_mpn_has_every_page(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = report_of(home, "mpn", monkeypatch)
    titles = {attributes["id"] for attributes in outline.all("h3")}
    names = ("learning", "behaviour", "pca_variance", "trajectories_M", "trajectories_hidden", "demixed", "decoding",
             "cross_temporal", "snapshots", "fixed_points", "delay", "noise", "lesions", "relaxation",
             "weights", "readout")  # fmt: skip
    assert {f"page-{name}" for name in names} <= titles
    assert len(outline.all("img")) >= 11
    words = " ".join(outline.words)
    assert "core.name" in words and "numpy" in words and "git_commit" in words  # configuration and versions
    assert "no neuromodulator" in missing(outline)


def test_the_page_of_a_core_without_m_has_a_message(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = report_of(home, "gru", monkeypatch, "--no-probes")
    text = missing(outline)
    assert "is older than" not in " ".join(outline.words)
    assert "the core gru has no M and no trace" in text
    assert "the core gru has no scalar equations" in text
    assert "there are no probes yet" in text


def test_missing_trials_and_missing_memory_have_messages(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = report_of(home, "mlp", monkeypatch)
    text = missing(outline)
    assert "the task has no trials that end" in text
    assert "the task has no delay period" in text
    assert "the core mlp has no state" in text
    assert "return per episode" in " ".join(outline.words)


def test_the_page_of_an_untrained_agent_without_data_has_a_message(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = report_of(home, "gone", monkeypatch)
    text = " ".join(outline.words)
    assert "there is no recording, and no checkpoint to record with" in text
    assert "metrics.jsonl has no episodes and no evaluations" in text
    assert "There is no best_model.pt" in text
    assert not outline.all("img")


def test_an_older_recording_is_pointed_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = home / "experiments" / "gru"
    report_of(home, "gru", monkeypatch, "--no-probes")
    settings = json.loads((folder / "analysis/collected.json").read_text())
    del settings["network"]  # as in version 0.1.0
    (folder / "analysis/collected.json").write_text(json.dumps(settings))
    later = (folder / "analysis/activity.npz").stat().st_mtime + 100
    os.utime(folder / "checkpoints/best_model.pt", (later, later))
    outline = report_of(home, "gru", monkeypatch, "--no-probes")
    assert "activity.npz is older than best_model.pt" in " ".join(outline.words)
    assert "repeat analyze collect" in capsys.readouterr().err


def test_a_recording_of_other_weights_is_pointed_out_whatever_its_age(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    report_of(home, "mpn", monkeypatch)
    checkpoints = home / "experiments/mpn/checkpoints"
    before = (checkpoints / "best_model.pt").read_bytes()
    saved = load_checkpoint(checkpoints / "best_model.pt")
    saved["network"]["head.bias"] += 1
    save_checkpoint(checkpoints / "best_model.pt", saved)
    os.utime(checkpoints / "best_model.pt", (0, 0))
    outline = report_of(home, "mpn", monkeypatch)
    assert "activity.npz is not of best_model.pt as it is now" in " ".join(outline.words)
    assert "probes.json is not of best_model.pt as it is now" in capsys.readouterr().err
    (checkpoints / "best_model.pt").write_bytes(before)


@pytest.mark.parametrize(
    ("options", "other"),
    [
        (["--checkpoint", "last"], "collect are there already, with another checkpoint"),
        (["--seed", "77"], "collect are there already, with another --seed"),
        (["--lesion", "nonsense"], "the core mpn has no part to remove"),
        (["--num-episodes", "9"], "collect are there already, with another --num-episodes"),
        (["--epsilon", "0.5"], "collect are there already, with another --epsilon"),
        (["--states", "h"], "collect are there already, with another --states"),
        (["--delays", "100"], "probe are there already, with another --delays"),
        (["--num-trials", "5"], "probe are there already, with another --num-trials"),
        (["--lesion-controls"], "probe are there already, with another --lesion-controls"),
        (["--no-probes", "--num-trials", "4"], "--num-trials needs --probes"),
    ],
)
def test_a_report_never_shows_another_recording_than_the_one_asked_for(
    home: Path, options: list[str], other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    report_of(home, "mpn", monkeypatch)
    assert main.main(["analyze", "report", "--experiment-name", "mpn", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert other in error


def test_a_wrong_checkpoint_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(home)
    assert main.main(["analyze", "report", "--experiment-name", "mpn", "--checkpoint", "nowhere.pt"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("main.py analyze: no checkpoint nowhere.pt")


def test_the_pages_of_a_single_trial_have_messages(tmp_path: Path) -> None:
    """One episode of one trial: a measure that needs more has a message, and nothing fails."""
    from recordings import make_recording

    activity = make_recording(episodes=1, per_episode=1)
    config = {"env": {"env_name": "x"}, "core": {"name": "gru"}}
    found = {page.name: page for page in standard_pages.pages(standard_pages.Recording(activity, config, {}))}
    assert found["decoding"].missing.startswith("not available: ")
    assert found["demixed"].missing.startswith("not available: ")
    assert found["behaviour"].figure is not None


def test_the_decoding_page_says_what_a_state_tells_beyond_the_observation() -> None:
    """M holds the sum of the evidence; h follows the observation, which is the same in all trials of a delay."""
    from recordings import make_recording

    config = {"env": {"env_name": "x"}, "core": {"name": "mpn"}}
    page = standard_pages.decoding_page(standard_pages.Recording(make_recording(episodes=40), config, {}), shuffles=9)
    about = re.findall(r"(\w) tells more than the current observation about ([^;(]*)", page.caption)
    told = {state: labels.partition(", and not")[0].strip() for state, labels in about}
    assert "At the end of delay, " in page.caption
    assert {"stimulus", "evidence", "choice"} <= set(told["M"].split(", ")) and told["h"] == "no label"


def test_psychometric_parameters_have_the_unit_of_the_strength() -> None:
    from recordings import make_recording

    config = {"env": {"env_name": "x"}, "core": {"name": "mpn"}}
    page = standard_pages.behaviour_page(standard_pages.Recording(make_recording(), config, {}))
    names = [line.what for line in page.table if line.what.startswith("psychometric")]
    shown = ["bias (%)", "slope (1/%)", "threshold (%)", "lapse low (share of trials)", "lapse high (share of trials)"]
    assert names == [f"psychometric {name}" for name in shown]
    assert [line.what for line in page.headline] == ["accuracy", "psychometric threshold (%)"]


@pytest.mark.parametrize("varies", [False, True])
def test_a_colour_or_a_condition_with_one_value_is_pointed_out(varies: bool) -> None:
    from recordings import make_recording

    activity = make_recording()
    context = np.repeat(np.arange(200) % 2 if varies else np.zeros(200, int), 9)
    config = {"env": {"env_name": "x", "env_args": {"a": 1}}, "core": {"name": "gru"}}
    recording = standard_pages.Recording({**activity, "condition_context": context}, config, {}, "context")
    warnings = {page.name: page.warnings for page in standard_pages.pages(recording)}
    one = "context is 0 in all trials"
    expected = {
        "behaviour": f"{one}: nothing can be compared by it",
        "trajectories_M": f"{one}: all lines have one colour; choose another with --color-by",
        "trajectories_hidden": f"{one}: all lines have one colour; choose another with --color-by",
        "decoding": "the context is the same in all trials: it cannot be decoded",
    }
    assert recording.title == "x(a=1), gru"
    for name, found in warnings.items():
        assert found == ((expected[name],) if name in expected and not varies else ()), name


def test_warnings_are_printed_and_stand_in_the_report_and_in_the_numbers(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(home)
    argv = ["train-neurogym", "--experiment-name", "fixed", *TINY, "--kernel", "reference"]  # the context is fixed
    assert main.main(argv) == 0
    outline = report_of(home, "fixed", monkeypatch, "--no-probes", "--color-by", "context")
    err = " ".join(capsys.readouterr().err.split())
    for sentence in ("nothing can be compared by it", "all lines have one colour; choose another with --color-by"):
        assert f"context is 0 in all trials: {sentence}" in err
        assert f"Note: context is 0 in all trials: {sentence}." in outline.words
    numbers = json.loads((home / "experiments/fixed/analysis/trajectories_M.json").read_text())
    assert len(numbers["warnings"]) == 1
    assert main.main(["analyze", "plot", "--experiment-name", "fixed"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "note: Behaviour: context is 0 in all trials: nothing can be compared by it" in err


# --- in a browser -------------------------------------------------------------------------------------------

# A report in a frame as wide as a phone: what a reader could not do without the network, a mouse or a wide screen.
HARNESS = """<!doctype html><meta charset="utf-8"><body>
<iframe id="frame" style="width:390px;height:844px;border:0" srcdoc="{page}"></iframe><pre id="result"></pre>
<script>
const frame = document.getElementById('frame');
frame.addEventListener('load', () => setTimeout(() => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  const reach = [...page.querySelectorAll('a[href], summary, [tabindex]')].filter(e => e.checkVisibility());
  const focused = reach.filter(e => {{ e.focus(); return page.activeElement === e; }});
  const link = page.querySelector('nav a'), summary = page.querySelector('main details:not([open]) > summary');
  summary.click();
  const small = [...page.querySelectorAll('p, figcaption, td, li')].filter(
    e => parseFloat(view.getComputedStyle(e).fontSize) < 14);
  const images = [...page.images];
  document.getElementById('result').textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth, images: images.length,
    broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    reach: reach.length, focused: focused.length, jumps: reach.filter(e => e.tabIndex > 0).length,
    outline: view.getComputedStyle(focused[focused.length - 1]).outlineStyle,
    target: !!page.querySelector(link.getAttribute('href')), opened: summary.parentElement.open, small: small.length,
    fetched: view.performance.getEntriesByType('resource').filter(e => e.name.startsWith('http')).length,
  }});
}}, 300));
</script>"""


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no headless browser: apt-get install chromium, and this test runs; its structure was tested above")
    return found


def in_browser(path: Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=10000",
        *options,
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_report_works_in_a_browser_by_keyboard_and_on_a_phone(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    browser()
    report_of(home, "mpn", monkeypatch)
    text = (home / "experiments/mpn/analysis/report.html").read_text()
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(page=html.escape(text)))
    shown = in_browser(harness, tmp_path, "--dump-dom").stdout
    result: dict[str, Any] = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', shown)[1]))  # type: ignore[index]
    assert result["images"] >= 11 and result["broken"] == 0
    assert result["width"] <= 390  # nothing scrolls sideways but what is meant to
    assert result["focused"] == result["reach"] > 20 and result["jumps"] == 0 and result["outline"] == "solid"
    assert result["target"] and result["opened"] and result["small"] == 0
    assert result["fetched"] == 0


def test_old_numbers_without_probes_still_make_pages() -> None:
    """A sentence in probes.json is text again; null is nan."""
    from mpn_rl.analysis.pages import probe_pages

    y = {"value": [0.9, 0.6], "low": [0.8, None], "high": [0.95, None], "n": [100, 100]}
    delay = {
        "x": [100, 200],
        "y": y,
        "xlabel": "delay (ms)",
        "ylabel": "accuracy",
        "chance": 0.5,
        "trained": 100,
        "marks": {},
    }
    numbers = {"measure": "accuracy", "delay": delay, "memory_horizon_ms": 100.0, "lesion": "not available: no memory",
               "frozen": "not available: no memory", "relaxation": {"silence": "not available: no state"}}  # fmt: skip
    found = {page.name: page for page in probe_pages.pages(numbers, "x")}
    assert found["delay"].figure is not None and found["delay"].headline[0][:2] == ("memory horizon (ms)", 100.0)
    assert np.isnan(found["delay"].table[2].low)
    censored = {**numbers, "memory_horizon_censored": True}
    assert next(iter(probe_pages.pages(censored, "x"))).headline[0][:4] == ("memory horizon (ms)", 100.0, 100.0, np.inf)
    assert found["lesions"].missing == "not available: no memory"
    assert found["relaxation"].missing == "not available: no state"
    assert found["noise"].missing == "not available: there is no probe input_noise: run analyze probe"
    assert all(page.missing == probe_pages.NOT_YET for page in probe_pages.pages({}, "x"))


def test_a_broken_file_of_probes_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(home)
    path = home / "experiments/mpn/analysis/probes.json"
    before = path.read_text()
    path.write_text("[1")
    assert main.main(["analyze", "report", "--experiment-name", "mpn"]) == 2
    assert "does not hold a JSON object" in capsys.readouterr().err
    path.write_text(before)
