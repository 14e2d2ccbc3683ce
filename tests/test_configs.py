"""The runs in configs/ are read, and mean what their names say."""

from pathlib import Path

import pytest

from config import make_config, read_config_file

FILES = sorted(Path(__file__).parent.parent.glob("configs/*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_is_a_valid_run(path):
    file = read_config_file(str(path))
    config = make_config("train" if file["env"]["name"] == "gymnasium" else "train-neurogym", {}, file)
    assert config.core.name == file.get("core", {}).get("name", "mpn")


def test_flags_override_a_config_file():
    file = read_config_file(str(FILES[0].parent / "published_neurogym.json"))
    config = make_config("train-neurogym", {"eta": 0.2}, file)
    assert (config.core.eta, config.core.lambda_decay, config.learner.buffer_size) == (0.2, 0.95, 500)
