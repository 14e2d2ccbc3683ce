"""Where the rows of a run go besides metrics.jsonl: TensorBoard's event files, and Weights & Biases.

Both are told the same numbers under the same names, such as `episode/reward`, over environment steps. Neither draws
from the run's random generators, so a run is the same with and without them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

from model_utils import Experiment, write_bytes_atomic
from mpn_rl.config import Config
from mpn_rl.console import stderr
from mpn_rl.options import ConfigError

PATIENCE = 30.0  # seconds for the last uploads: who sends SIGTERM kills soon after
OFFLINE = ("offline", "dryrun", "disabled")


class EventLog(Protocol):
    """One more place for what a run logs. `where` says in a line where it is."""

    where: str

    def write(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/`; a resumed run, which makes the events after its checkpoint again, hides those."""

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
    """A run of Weights & Biases, which `--resume` continues: its id stands in `wandb/run_id`.

    W&B takes no step twice. A resumed run makes the rows after its checkpoint again, equal to those which a kill left
    there, and W&B ignores them until they are past the last step that it knows. Offline, every start writes a file of
    its own in `wandb/` under that id; `wandb sync` uploads them one after the other. Where W&B fails in the middle, the
    run goes on without it.

    Raises: ConfigError where the server does not answer.
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
                # Its own lines and its copy of ours would spoil the progress bar.
                settings=wandb.Settings(console="off", silent=True, finish_timeout=PATIENCE),
            )
        except wandb.Error as error:
            raise _refused(error) from error
        self.errors = (wandb.Error, OSError)  # what it says, and what the loss of its background process causes
        self.lost = False
        upload = f"wandb sync {id_path.parent}/offline-run-*"
        self.where = f"W&B: {self.run.url or f'offline; upload it with: {upload}'}"

    def write(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self.run.log(values, step=step))

    def close(self) -> None:
        self._try(self.run.finish)

    def _try(self, call: Callable[[], object]) -> None:
        if self.lost:
            return
        try:
            call()
        except self.errors as error:
            self.lost = True
            stderr.print(f"note: W&B has failed ({_line(error)}); the run goes on without it")


def check(config: Config) -> None:
    """Whether what the options ask for is installed and, of W&B, reachable without a question; creates nothing.

    Raises: ConfigError naming the way out.
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
            known = mode in OFFLINE or wandb.login(prompt=False)
        except wandb.Error as error:
            raise _refused(error) from error
        except ValueError as error:  # pydantic's: a count, the setting's name, what is wrong with it, a link
            lines = [line.strip().partition(" [type=")[0] for line in str(error).splitlines()[1:3]]
            raise _refused(": ".join(lines) or error) from error
        if not known:
            raise _refused("there is no key: say `wandb login` once, or set WANDB_API_KEY")


def _missing(extra: str) -> ConfigError:
    return ConfigError(f"--{extra} needs the extra: pip install 'mpn-rl[{extra}]'")


def _refused(reason: Any) -> ConfigError:
    return ConfigError(f"--wandb: {_line(reason)}; WANDB_MODE=offline logs into the experiment's folder")


def _line(reason: Any) -> str:
    return (str(reason) or type(reason).__name__).splitlines()[0].rstrip(".")


def open_logs(config: Config, experiment: Experiment, step: int) -> list[EventLog]:
    """The logs that the options ask for, of a run that stands at `step`."""
    logs: list[EventLog] = []
    if config.run.tensorboard:
        logs.append(TensorBoard(experiment, step))
    if config.run.wandb:
        logs.append(WeightsAndBiases(config, experiment))
    return logs
