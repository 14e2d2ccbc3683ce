"""The command line, generated from `config.py` so that every field has a flag. Stdlib only: --help is instant."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from typing import Any, Literal, NoReturn

import config as cfg
from options import fields_of, flag_of, nearest, unwrap_optional

DESCRIPTION = "Train, evaluate and look into networks that change themselves: the MPN-DQN and its kin."
TITLES = {
    "env": "environment",
    "core": "core, the recurrent layer",
    "encoder": "encoder in front of the core",
    "learner": "learner and replay",
    "expansion": "growing and pruning the topology",
    "run": "run",
}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are one line and exit status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

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


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line; a mistake, told in one line, leaves with exit status 2."""
    parser = make_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [option for name in _options_of(parser, args.command) for option in name.option_strings]
        parser.exit(2, f"{parser.prog} {args.command}: no option {flag!r}{nearest(flag, known)}\n")
    return args


def _options_of(parser: Parser, command: str) -> list[argparse.Action]:
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices[command]._actions


def _add_training(parser: Parser, command: str) -> None:
    parser.usage = f"main.py {command} [--experiment-name NAME] [--config FILE] [OPTIONS]"
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
    if part in ("core", "learner", "expansion"):
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
    classes: list[Any] = cfg.section_classes(part)
    if part == "env":
        family = cfg.COMMAND_DEFAULTS[command]["env"]
        classes = [cls for cls in classes if cls.name == family]
    seen: set[str] = set()
    for cls in classes:
        for field, kind in fields_of(cls):
            if field.name not in seen:
                seen.add(field.name)
                _add_field(group, field, kind, _defaults(command, part, classes, field.name))


def _defaults(command: str, part: str, classes: list[Any], name: str) -> str:
    """'0.9', or '0.9; 0.99 with a2c' where kinds or learners differ."""
    shown: dict[str, list[str]] = {}
    for cls in classes:
        for field in (field for field in dataclasses.fields(cls) if field.name == name):
            for learner in [cls.name] if part == "learner" else cfg.LearnerConfig.registry:
                default = _show(cfg.default_of(command, learner, field))
                users = shown.setdefault(default, [])
                kind = cls.name if part in cfg.KINDS else learner
                users += [] if kind in users else [kind]
    first, *others = shown.items()
    return "; ".join([first[0], *(f"{default} with {', '.join(users)}" for default, users in others)])


def _add_field(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: Any, default: str) -> None:
    """One field's flag; absent from the result unless it is given."""
    flag, text = flag_of(field), field.metadata["help"].replace("%", "%%")
    kind, optional = unwrap_optional(kind)
    shown = f"{text}{_range(field)} (default: {default})"
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


def _range(field: dataclasses.Field) -> str:
    """', 0 to 1' where a field is bounded on both sides; that a size is positive needs no word."""
    low, high = field.metadata["low"], field.metadata["high"]
    low = field.metadata["above"] if low is None else low
    return f", {low:g} to {high:g}" if isinstance(high, float) and low is not None else ""


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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    _add_number(parser, "--seed", 0, 2**31 - 1, 0, "seed of the episodes")
    _add_number(parser, "--threads", 1, 256, 1, "CPU threads")


def _add_number(parser: Parser, flag: str, low: int, high: int, default: int | None, text: str) -> None:
    shown = text if default is None else f"{text} (default: {default})"
    parser.add_argument(flag, metavar="N", type=_whole(low, high), default=default, help=shown)


def _add_eval(parser: Parser) -> None:
    _add_existing(parser)
    _add_number(parser, "--num-eval-episodes", 1, 100_000, 10, "episodes")
    _add_number(parser, "--num-eval-trials", 1, 10_000_000, None, "at least so many NeuroGym trials, in whole episodes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")


def _add_render(parser: Parser) -> None:
    _add_existing(parser)
    parser.add_argument("--output", metavar="FILE", help="FILE.gif or FILE.mp4 (default: videos/episode_<seed>.gif)")
    _add_number(parser, "--fps", 1, 100, None, "frames per second (default: 10 for NeuroGym, else 30)")
    _add_number(parser, "--max-steps", 1, 100_000, 500, "longest film, in steps")


def _add_analyze(parser: Parser) -> None:
    parser.add_argument(
        "stage", nargs="?", choices=("collect", "plot"), help="collect: record only; plot: draw only; neither: both"
    )
    _add_existing(parser)
    _add_number(parser, "--num-episodes", 1, 100_000, 100, "episodes to record")
    _add_number(parser, "--max-megabytes", 1, 10**6, 500, "largest recording")
    parser.add_argument(
        "--precision", choices=("float16", "float32"), default="float16", help="of M in the file (default: %(default)s)"
    )
    parser.add_argument(
        "--epsilon", metavar="P", type=_probability, default=0.0, help="random actions while recording (default: 0)"
    )
    parser.add_argument(
        "--color-by", metavar="NAME", help="condition, choice, ground_truth, time, trial or obs_<i> (default: chosen)"
    )


def _whole(low: int, high: int):
    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must lie in [{low}, {high}], got {value}")
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
    return {name: value for name, value in vars(args).items() if name in names | {"core", "learner", "expansion"}}
