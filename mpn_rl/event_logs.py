"""Optional logs of a run besides metrics.jsonl: TensorBoard and Weights & Biases.

Both receive the same numbers under the same names, such as `episode/reward`, over environment steps. Neither draws
from the run's random generators, so a run is the same with and without them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

from model_utils import Experiment, write_bytes_atomic
from mpn_rl.config import Config
from mpn_rl.console import stderr
from mpn_rl.options import ConfigError

FINISH_TIMEOUT = 30.0  # seconds for the last uploads; SIGTERM is usually followed by SIGKILL
OFFLINE = ("offline", "dryrun", "disabled")


class EventLog(Protocol):
    """A log of a run."""

    where: str  # one line for the user: where to look at the log

    def write(self, values: dict[str, float], step: int) -> None:
        """Log numbers by name at an environment step."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the experiment's folder `tensorboard/`.

    A resumed run logs the steps after its checkpoint again; TensorBoard hides the earlier events of these steps.

    Args:
        experiment: whose folder gets the files.
        step: environment step at which the run starts or continues.
    """

    def __init__(self, experiment: Experiment, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = experiment.path / "tensorboard"
        self.where = f"TensorBoard: tensorboard --logdir {folder}"
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases (W&B). `--resume` continues it by the id in `wandb/run_id`.

    W&B ignores rows up to the last step that it has. A resumed run logs the steps after its checkpoint again, with the
    same numbers, so nothing is lost. Offline, each start writes its own file in `wandb/` under the same id, and
    `wandb sync` uploads them one after the other. If W&B fails during the run, the run continues without it.

    Args:
        config: stored with the W&B run.
        experiment: gives the name and the folder.
    Raises: ConfigError where W&B cannot start, for example because the server does not answer.
    """

    def __init__(self, config: Config, experiment: Experiment) -> None:
        import wandb

        id_path = experiment.path / "wandb" / "run_id"
        if not id_path.is_file():
            id_path.parent.mkdir(exist_ok=True)
            write_bytes_atomic(id_path, secrets.token_hex(4).encode())
        try:
            self.run = wandb.init(
                project=config.run.wandb_project,
                name=experiment.name,
                id=id_path.read_text(),
                resume="allow",
                dir=str(experiment.path),
                config=config.to_dict(),
                # W&B's console output would disturb the progress bar.
                settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_TIMEOUT),
            )
        except wandb.Error as error:
            raise _refused(error) from error
        self.errors = (wandb.Error, OSError)  # OSError: W&B's background process has ended
        self.failed = False
        upload = f"wandb sync {id_path.parent}/offline-run-*"
        self.where = f"W&B: {self.run.url or f'offline; upload it with: {upload}'}"

    def write(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self.run.log(values, step=step))

    def close(self) -> None:
        self._try(self.run.finish)

    def _try(self, call: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            call()
        except self.errors as error:
            self.failed = True
            stderr.print(f"note: W&B has failed ({_line(error)}); the run continues without it")


def check(config: Config) -> None:
    """Check, without creating anything, that the chosen logs are installed and that W&B has a key.

    Raises: ConfigError that says what to do.
    """
    if config.run.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise _missing("tensorboard") from error
    if config.run.wandb:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        try:
            mode = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
            ready = mode in OFFLINE or wandb.login(prompt=False)
        except wandb.Error as error:
            raise _refused(error) from error
        except ValueError as error:  # from pydantic; lines: a count, the setting's name, the problem, a link
            lines = [line.strip().partition(" [type=")[0] for line in str(error).splitlines()[1:3]]
            raise _refused(": ".join(lines) or error) from error
        if not ready:
            raise _refused("there is no key: run `wandb login` once, or set WANDB_API_KEY")


def _missing(extra: str) -> ConfigError:
    return ConfigError(f"--{extra} needs the extra: pip install 'mpn-rl[{extra}]'")


def _refused(reason: object) -> ConfigError:
    return ConfigError(f"--wandb: {_line(reason)}; WANDB_MODE=offline logs into the experiment's folder")


def _line(reason: object) -> str:
    """The first line of an error's message."""
    return (str(reason) or type(reason).__name__).splitlines()[0].rstrip(".")


def open_logs(config: Config, experiment: Experiment, step: int) -> list[EventLog]:
    """Open the logs that the options choose, for a run at environment step `step`."""
    logs: list[EventLog] = []
    if config.run.tensorboard:
        logs.append(TensorBoard(experiment, step))
    if config.run.wandb:
        logs.append(WeightsAndBiases(config, experiment))
    return logs
