"""The command line, generated from `config.py` so that every field has a flag. Stdlib only: --help is instant."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from typing import Any, Literal, NoReturn

import config as cfg

DESCRIPTION = "Train, evaluate and look into networks that change themselves: the MPN-DQN and its kin."
TITLES = {
    "env": "environment",
    "core": "core, the recurrent layer",
    "encoder": "encoder in front of the core",
    "learner": "learner and replay",
    "run": "run",
}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are one line and exit status 2."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.HelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> Parser:
    """The parser of all subcommands."""
    parser = Parser(prog="main.py", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_training(commands.add_parser("train", help="train on a Gymnasium task"), "train")
    _add_training(commands.add_parser("train-neurogym", help="train on a NeuroGym task"), "train-neurogym")
    _add_eval(commands.add_parser("eval", help="measure a trained agent, greedily"))
    _add_render(commands.add_parser("render", help="film a trained agent"))
    _add_analyze(commands.add_parser("analyze", help="record a trained agent's activity and draw it"))
    return parser


def _add_training(parser: Parser, command: str) -> None:
    run = parser.add_argument_group("experiment")
    run.add_argument("--experiment-name", metavar="NAME", help="folder in experiments/ (default: a random name)")
    run.add_argument("--config", metavar="FILE", help="start from the options in this JSON file; flags override it")
    run.add_argument("--experiments-dir", metavar="DIR", default="experiments", help="(default: %(default)s)")
    run.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="continue from last.pt; auto: continue where there is one, else start",
    )
    run.add_argument("--overwrite", action="store_true", help="replace an experiment of the same name")
    if command == "train-neurogym":
        run.add_argument("--list-envs", action="store_true", help="list every NeuroGym task and leave")
    for part, title in TITLES.items():
        _add_section(parser.add_argument_group(title), part, command)


def _add_section(group: argparse._ArgumentGroup, part: str, command: str) -> None:
    if part in ("core", "learner"):
        flag, base = cfg.KINDS[part]
        names = list(base.registry)  # type: ignore[attr-defined]
        default = cfg.COMMAND_DEFAULTS[command][part]
        group.add_argument(
            flag,
            dest=part,
            metavar="NAME",
            default=argparse.SUPPRESS,
            help=f"one of {', '.join(names)} (default: {default})",
        )
    classes = cfg.section_classes(part)
    if part == "env":
        family = cfg.COMMAND_DEFAULTS[command]["env"]
        classes = [cls for cls in classes if cls.name == family]  # type: ignore[attr-defined]
    seen: set[str] = set()
    for cls in classes:
        for field, kind in cfg.fields_of(cls):
            if field.name not in seen:
                seen.add(field.name)
                _add_field(group, field, kind, cfg.default_of(command, field))


def _add_field(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: Any, default: Any) -> None:
    """One field's flag; absent from the result unless it is given."""
    flag, text = cfg.flag_of(field), field.metadata["help"].replace("%", "%%")
    kind, optional = cfg.unwrap_optional(kind)
    shown = f"{text} (default: {_show(default)})"
    common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=shown, **common)
    elif typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        group.add_argument(flag, choices=choices, metavar="NAME", help=f"{shown}; {', '.join(choices)}", **common)
    elif typing.get_origin(kind) is dict:
        group.add_argument(flag, action=_KeyValue, metavar="KEY=VALUE", help=f"{text}; may be repeated", **common)
    else:
        metavar = field.name.upper().rsplit("_", 1)[-1]
        group.add_argument(flag, type=_reader(kind, optional), metavar=metavar, help=shown, **common)


def _show(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default is None else f"{default}"


def _reader(kind: type, optional: bool):
    def read(text: str):
        return None if optional and text.lower() == "none" else kind(text)

    read.__name__ = {int: "whole number", float: "number"}.get(kind, kind.__name__)
    return read


class _KeyValue(argparse.Action):
    """--env-arg KEY=VALUE, repeatable; VALUE is JSON where it reads as JSON, else text."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        key, equals, text = str(values).partition("=")
        if not equals or not key:
            parser.error(f"{option_string} must be KEY=VALUE, got {values!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), key: value})


# --- commands on a finished experiment --------------------------------------------------------------------


def _add_existing(parser: Parser) -> None:
    parser.add_argument("--experiment-name", metavar="NAME", required=True, help="folder in experiments/")
    parser.add_argument("--experiments-dir", metavar="DIR", default="experiments", help="(default: %(default)s)")
    parser.add_argument(
        "--checkpoint", metavar="best|final|last|PATH", default="best", help="weights to load (default: %(default)s)"
    )
    parser.add_argument("--seed", type=_at_least(0), default=0, help="seed of the episodes (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    parser.add_argument("--threads", type=_at_least(1), default=1, help="CPU threads (default: %(default)s)")


def _add_eval(parser: Parser) -> None:
    _add_existing(parser)
    parser.add_argument(
        "--num-eval-episodes", metavar="N", type=_at_least(1), default=10, help="episodes (default: %(default)s)"
    )
    parser.add_argument(
        "--num-eval-trials", metavar="N", type=_at_least(1), help="at least so many NeuroGym trials, in whole episodes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")


def _add_render(parser: Parser) -> None:
    _add_existing(parser)
    parser.add_argument("--output", metavar="FILE", help="FILE.gif or FILE.mp4 (default: videos/episode_<seed>.gif)")
    parser.add_argument("--fps", type=_at_least(1), help="frames per second (default: 10 for NeuroGym, else 30)")
    parser.add_argument("--max-steps", metavar="N", type=_at_least(1), default=500, help="(default: %(default)s)")


def _add_analyze(parser: Parser) -> None:
    parser.add_argument(
        "stage", nargs="?", choices=("collect", "plot"), help="collect: record only; plot: draw only; neither: both"
    )
    _add_existing(parser)
    parser.add_argument(
        "--num-episodes", metavar="N", type=_at_least(1), default=100, help="episodes to record (default: %(default)s)"
    )
    parser.add_argument(
        "--max-megabytes", metavar="N", type=_at_least(1), default=500, help="largest recording (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=("float16", "float32"), default="float16", help="of M in the file (default: %(default)s)"
    )
    parser.add_argument(
        "--epsilon", type=_probability, default=0.0, help="exploration while recording (default: %(default)s)"
    )
    parser.add_argument(
        "--color-by", metavar="NAME", help="condition, choice, ground_truth, time, trial or obs_<i> (default: chosen)"
    )


def _at_least(low: int):
    def read(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    read.__name__ = "whole number"
    return read


def _probability(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], got {value}")
    return value


def config_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration's values that were given on the command line, by field name."""
    names = {field.name for part in cfg.PARTS for cls in cfg.section_classes(part) for field in dataclasses.fields(cls)}
    return {name: value for name, value in vars(args).items() if name in names | {"core", "learner"}}
