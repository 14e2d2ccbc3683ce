"""The runs in configs/ can be read, and have the options that their names promise."""

from pathlib import Path

import pytest

from mpn_rl.config import make_config, read_config_file

FILES = sorted(Path(__file__).parents[2].glob("configs/*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_is_a_valid_run(path):
    file = read_config_file(str(path))
    config = make_config("train" if file["env"]["name"] == "gymnasium" else "train-neurogym", {}, file)
    assert config.core.name == file.get("core", {}).get("name", "mpn")


def test_flags_override_a_config_file():
    file = read_config_file(str(FILES[0].parent / "published_neurogym.json"))
    config = make_config("train-neurogym", {"eta": 0.2}, file)
    assert (config.core.eta, config.core.lambda_decay, config.learner.buffer_size) == (0.2, 0.95, 500)


@pytest.mark.parametrize("name", ["td3_dense", "td3_dense.json", "configs/td3_dense", "configs/td3_dense.json"])
def test_a_config_is_selected_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config_file(name)["learner"]["name"] == "td3"


def test_a_file_comes_before_the_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "td3_dense").write_text('{"run": {"seed": 7}}')
    assert read_config_file("td3_dense") == {"run": {"seed": 7}}
