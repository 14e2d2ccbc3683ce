"""The command line, with a flag for every option of `config.py`. Stdlib only, so that --help is fast."""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import decimal
import functools
import itertools
import math
import re
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

from mpn_rl import config as cfg
from mpn_rl.options import Choice, ConfigError, fields_of, flag_of, nearest, shortened, unwrap_optional

DESCRIPTION = "Train, evaluate and analyse networks that change themselves, such as the MPN-DQN."
# Options of the section "run" that a resumed run may change, because they do not affect the learning so far.
RESUMABLE = {"num_episodes", "total_steps", "print_freq", "checkpoint_freq", "plot_training", "tensorboard", "wandb",
             "wandb_project", "device", "threads"}  # fmt: skip
SELECTED = ("core", "learner", "expansion")  # parts that a flag selects
SHELLS = ("bash", "zsh", "tcsh")
TITLES = {
    "env": "environment",
    "core": "core, the recurrent layer",
    "encoder": "encoder in front of the core",
    "learner": "learner and replay",
    "expansion": "growing and pruning the topology, and staying able to learn",
    "run": "run",
}
# The options that people change, which `train --help` shows; --help-all shows every one.
COMMON = {"help", "help_all", "experiment_name", "config", "resume", "overwrite", "list_envs", "env_name", "env_args",
          "mask_velocity", "observe_reward", "observe_action", "core", "hidden_dim", "eta", "lambda_decay", "embed_dim",
          "learner", "learning_rate", "gamma", "replay", "expansion", "num_episodes", "total_steps", "num_envs", "seed",
          "tensorboard", "device"}  # fmt: skip


# What the values of options count, for --help; other whole numbers are N, other numbers X.
UNITS = {
    "STEPS": {"bptt_chunk_size", "buffer_adjustment_interval", "buffer_min_size", "buffer_size", "burn_in",
              "change_every", "checkpoint_freq", "eval_freq", "expansion_end", "expansion_start", "learning_starts",
              "max_episode_steps", "n_step", "plasticity_metrics_freq", "rollout_steps", "sequence_length",
              "sequence_stride", "total_steps", "update_every", "update_interval"},
    "EPISODES": {"eval_episodes", "log_freq", "num_episodes", "print_freq"},
    "UPDATES": {"maturity", "n_step_delay", "policy_freq", "target_update_freq", "warmup_updates"},
    "UNITS": {"embed_dim", "hidden_dim"},
    "NAME": {"wandb_project"},
    "LAYERS": {"exempt"},
}  # fmt: skip
ALIASES = {"learning_rate": "--lr"}  # other spellings that users try first


class _Lines(argparse.HelpFormatter):
    """Keeps the line breaks in the options' help texts."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in super(_Lines, self)._split_lines(part, width)]


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports a mistake in one line and exits with status 2."""

    short_help = False  # --help shows the options in COMMON only

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Lines, **options})

    def format_help(self, everything: bool = False) -> str:
        """The help text; of all options, or with `short_help` of those in COMMON."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            if self.short_help and not everything:
                shown = [copy.copy(action) for action in group._group_actions if action.dest in COMMON]
                for action in shown:
                    text = (action.help or "").partition("\n")[0]
                    several = r"(default: [^;)]*);[^;)]*;[^)]*\)"  # kinds have defaults of their own
                    action.help = re.sub(several, r"\1; others vary)", text)
                formatter.add_arguments(shown)
            else:
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser(prog: str = "main.py") -> Parser:
    """The parser of all subcommands; `prog` is the program's name in messages."""
    parser = Parser(prog=prog, description=DESCRIPTION)
    text = f"print mpn-rl's completion script for that shell: {', '.join(SHELLS)}"
    parser.add_argument("--print-completion", action=_PrintCompletion, choices=SHELLS, metavar="SHELL", help=text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_training(commands.add_parser("train", help="train on a Gymnasium task"), "train")
    _add_training(commands.add_parser("train-neurogym", help="train on a NeuroGym task"), "train-neurogym")
    _add_eval(commands.add_parser("eval", help="measure the score of a trained agent"))
    _add_render(commands.add_parser("render", help="film a trained agent"))
    _add_analyze(commands.add_parser("analyze", help="record the activity of a trained agent and plot it"))
    _add_sweep(
        commands.add_parser("sweep", help="many runs from one table: check, run, submit, search, status, summary")
    )
    return parser


def parse(argv: list[str] | None = None, parser: Parser | None = None) -> argparse.Namespace:
    """The parsed command line. A mistake is reported in one line and exits with status 2."""
    parser = parser or make_parser()
    for word in argv or ():
        if "\0" in word:
            parser.exit(2, f"{parser.prog}: an argument must not contain a NUL byte, got {word!r}\n")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = [text for option in options_of(parser, args.command) for text in option.option_strings]
        parser.exit(2, f"{parser.prog} {args.command}: no option {flag!r}{nearest(flag, known)}\n")
    return args


def commands_of(parser: Parser) -> dict[str, Parser]:
    """The parsers of the subcommands."""
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices


def options_of(parser: Parser, command: str) -> list[argparse.Action]:
    """The options of a subcommand and of its own subcommands."""
    actions = commands_of(parser)[command]._actions
    inner = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    return [*actions, *(option for action in inner for sub in action.choices.values() for option in sub._actions)]


def _add_training(parser: Parser, command: str) -> None:
    parser.usage = f"{parser.prog} [--experiment-name NAME] [--config FILE] [OPTIONS]"
    parser.short_help = True
    parser.add_argument("--help-all", action=_HelpAll, help="show every option, not only the common ones, and exit")
    run = parser.add_argument_group("experiment")
    run.add_argument("--experiment-name", metavar="NAME", help="folder in experiments/ (default: TASK-CORE-SEED-N)")
    text = "read options from this JSON file, or from the one of this name in the toolkit's configs/; flags override it"
    run.add_argument("--config", metavar="FILE", help=text)
    run.add_argument("--experiments-dir", metavar="DIR", default="experiments", help="(default: %(default)s)")
    _add_trust(run)
    text = "continue from last.pt; auto: continue if there is one, else start"
    run.add_argument("--resume", nargs="?", const="yes", choices=("yes", "auto"), help=text)
    text = "with --resume: start new episodes in place of the unfinished ones, for tasks that cannot repeat an episode"
    run.add_argument("--fresh-episodes", action="store_true", help=text)
    run.add_argument("--overwrite", action="store_true", help="replace an experiment of the same name")
    text = "start with the weights of this experiment's best_model.pt, of the same network"
    run.add_argument("--init-from", metavar="NAME", help=text)
    text = "set --hidden-dim so that the network has as many trained weights as with this core and its defaults"
    run.add_argument("--match-weights", metavar="CORE", choices=tuple(cfg.choices("core")), help=text)
    text = "exit status after a SIGTERM or --checkpoint-exit-every, when all is saved: 85 for HTCondor "
    text += "(default: 143, as SIGTERM gives)"
    run.add_argument("--checkpoint-exit-code", metavar="CODE", type=_whole(3, 125), help=text)
    text = "after this time save and exit with --checkpoint-exit-code (default: never)"
    run.add_argument("--checkpoint-exit-every", metavar="MINUTES", type=_positive, help=text)
    if command == "train-neurogym":
        run.add_argument("--list-envs", action="store_true", help="list all NeuroGym tasks and exit")
    for part, title in TITLES.items():
        _add_section(parser.add_argument_group(title), part, command)


def _add_section(group: argparse._ArgumentGroup, part: str, command: str) -> None:
    choices = cfg.choices(part)
    if part in SELECTED:
        default = cfg.COMMAND_DEFAULTS[command][part]
        text = f"one of {', '.join(choices)} (default: {default})"
        group.add_argument(cfg.KINDS[part][0], dest=part, metavar="NAME", default=argparse.SUPPRESS, help=text)
        group.description = "; ".join(f"{choice.name}: {choice.doc}" for choice in choices.values() if choice.doc)
    elif part == "env":
        family = cfg.COMMAND_DEFAULTS[command]["env"]
        choices = {family: choices[family]}
    seen: set[str] = set()
    for choice in choices.values():
        for field, kind in fields_of(choice.section):
            if field.name not in seen:
                seen.add(field.name)
                sections = {other.section for other in choices.values() if issubclass(other.section, cfg.Kind)}
                owners = {other for other in sections if field.name in {one.name for one in dataclasses.fields(other)}}
                # A kind that inherits its options is not named beside the one that it inherits them from.
                named = sorted(owner.name for owner in owners if owners.isdisjoint(owner.__mro__[1:]))
                tag = f"[{', '.join(named)}] " if part in SELECTED and owners < sections else ""
                _add_field(group, field, kind, _defaults(command, part, choices, field.name), tag)


def _defaults(command: str, part: str, choices: dict[str, Choice], name: str) -> str:
    """The default value as text: '0.9', or '0.9; 0.99 with a2c' if kinds or learners differ."""
    shown: dict[str, list[str]] = {}
    for choice in choices.values():
        for field in (field for field in dataclasses.fields(choice.section) if field.name == name):
            for learner in [choice.name] if part == "learner" else cfg.LearnerConfig.registry:
                changed = cfg.changed_defaults(command, learner, choice.name if part == "core" else None)
                default = _show(changed.get(name, choice.default(field)))
                users = shown.setdefault(default, [])
                kind = choice.name if part in SELECTED else learner
                users += [] if kind in users else [kind]
    first, *others = shown.items()
    return "; ".join([first[0], *(f"{default} with {', '.join(users)}" for default, users in others)])


def _add_field(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: object, default: str, tag: str) -> None:
    """Add the flag of one field. The parsed result contains it only if the user gives it; `tag` begins its help."""
    flags, text = [flag_of(field)], tag + field.metadata["help"].replace("%", "%%")
    flags += [ALIASES[field.name]] if field.name in ALIASES else []
    kind, optional = unwrap_optional(kind)
    shown, effect = f"{text}{_range(field)} (default: {default})", _effect(field)
    add = functools.partial(group.add_argument, *flags, dest=field.name, default=argparse.SUPPRESS)
    if field.name == "env_name":
        add(action=_Joined, metavar="NAME", help=shown + effect)
    elif kind is bool:
        add(action=argparse.BooleanOptionalAction, help=shown + effect)
    elif typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        add(choices=choices, metavar="NAME", help=f"{shown}; {', '.join(choices)}{effect}")
    elif typing.get_origin(kind) is dict:
        add(action=_KeyValue, metavar="KEY=VALUE", help=f"{text}; may be repeated")
    elif isinstance(kind, type):
        units = (unit for unit, names in UNITS.items() if field.name in names)
        metavar = next(units, {int: "N", float: "X"}.get(kind, "TEXT"))
        add(type=_reader(kind, optional), metavar=metavar, help=shown + effect)


def _range(field: dataclasses.Field) -> str:
    """', 0 to 1' for a field with two bounds."""
    low, high = field.metadata["low"], field.metadata["high"]
    low = field.metadata["above"] if low is None else low
    return f", {low:g} to {high:g}" if isinstance(high, float) and low is not None else ""


def _effect(field: dataclasses.Field) -> str:
    """'(needs ...; does nothing with ...)' on a line of its own, for an option whose effect depends on others."""
    needs, idle = field.metadata["needs"], field.metadata["idle"]
    text = [f"needs {cfg.shown_condition(needs)}"] if needs else []
    text += [f"does nothing with {', or with '.join(map(cfg.shown_condition, idle))}"] if idle else []
    return f"\n({'; '.join(text)})".replace("%", "%%") if text else ""


def _show(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default is None else f"{default}"


def _reader(kind: type, optional: bool) -> Callable[[str], object]:
    def read(text: str) -> object:
        if optional and text.lower() == "none":
            return None
        return whole_number(text) if kind is int else kind(text)

    read.__name__ = {int: "whole number", float: "number"}.get(kind, kind.__name__)
    return read


def whole_number(text: str) -> int:
    """An int from its digits, or from a notation such as 1e5. Raises: ValueError."""
    try:
        return int(text)
    except ValueError:
        if not re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d{1,2}", text.strip()):
            raise
        value = decimal.Decimal(text)
        if value != int(value):
            raise
        return int(value)


LONGEST_VALUE = 10_000  # characters of one --env-arg
DEEPEST_VALUE = 20  # brackets within brackets
_CONSTANTS = {"true": True, "false": False, "null": None}  # JSON's names


def read_value(text: str) -> object:
    """A value on the command line: a number, True or true, None or null, a list, a dict, or else text.

    Python's and JSON's notations may be mixed. Quoted text is always text. A tuple becomes a list, as in config.json.

    Raises: ConfigError for an incomplete list or dict, a value that config.json cannot store, or one too long.
    """
    if len(text) > LONGEST_VALUE:
        raise ConfigError(f"the value must have at most {LONGEST_VALUE:,} characters, got {len(text):,}")
    opened = list(itertools.accumulate((char in "[{(") - (char in "]})") for char in text))
    if max(opened, default=0) > DEEPEST_VALUE:
        raise ConfigError(f"brackets must be nested at most {DEEPEST_VALUE} deep, got {max(opened)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on the notation
            return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        if text.strip()[:1] in tuple("[{("):
            way_out = 'quote the texts in it, as in \'["a", "b"]\''
            raise ConfigError(f"{shortened(text)} is not a complete list or dict; {way_out}") from None
        return text


def _literal(node: ast.expr) -> object:
    """The value of a parsed literal. Raises: ValueError where it is none."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"a number must be finite, got {value}")
            return value
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float()) as operand):
            number = _literal(operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys=keys, values=values):
            read = [None if key is None else _literal(key) for key in keys]
            for key in read:
                if not isinstance(key, str):
                    raise ConfigError(f'the keys of a dict must be text, as in {{"a": 1}}, got {key!r}')
            return dict(zip(read, map(_literal, values), strict=True))
    raise ValueError("not a literal")


class _HelpAll(argparse.Action):
    """Prints the help text of every option and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest=dest, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(parser.format_help(everything=True), end="")
        parser.exit(0)


class _Joined(argparse.Action):
    """--env-name, repeatable: the values joined by commas."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        before = [getattr(namespace, self.dest)] if self.dest in namespace else []
        setattr(namespace, self.dest, ",".join([*before, str(values)]))


class _KeyValue(argparse.Action):
    """--env-arg KEY=VALUE, repeatable; see `read_value`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        key, equals, text = str(values).partition("=")
        if not equals or not key:
            parser.error(f"{option_string} must be KEY=VALUE, got {values!r}")
        try:
            value: object = read_value(text)
        except ConfigError as error:
            parser.error(f"{option_string} {key}: {error}")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), key: value})


# --- completion in the shell --------------------------------------------------------------------------------


class _PrintCompletion(argparse.Action):
    """Prints the completion script of a shell and exits."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            print(_completion(values))
        except ImportError:
            parser.error(f"{option_string} needs the extra: pip install 'mpn-rl[completion]'")
        parser.exit(0)


def _completion(shell: str) -> str:
    """The script that completes options, their choices, files and experiments of `mpn-rl` in a shell."""
    import shtab

    parser = make_parser("mpn-rl")
    experiments = shtab.cmd("ls experiments 2>/dev/null") | {"tcsh": "D:experiments"}  # bash and zsh
    files = {"experiments_dir": shtab.DIRECTORY, "experiment_name": experiments}
    files |= dict.fromkeys(("config", "checkpoint", "file", "output"), shtab.FILE)
    for option in (option for command in commands_of(parser) for option in options_of(parser, command)):
        if option.dest in files:
            option.complete = files[option.dest]  # type: ignore[attr-defined]
        elif option.dest in cfg.KINDS:  # the parser does not check these names, `config` does
            option.choices = list(cfg.choices(option.dest))
    return shtab.complete(parser, shell)


# --- commands on a finished experiment --------------------------------------------------------------------


def _add_existing(parser: Parser, several: bool = False) -> None:
    text = "folders in experiments/, or patterns such as 'ctx-*'" if several else "folder in experiments/"
    nargs = "+" if several else None
    parser.add_argument("--experiment-name", metavar="NAME", required=not several, nargs=nargs, type=_name, help=text)
    parser.add_argument("--experiments-dir", metavar="DIR", default="experiments", help="(default: %(default)s)")
    text = f"weights to load (default: %(default)s{'; final with compare' if several else ''})"
    parser.add_argument("--checkpoint", metavar="best|final|last|PATH", default="best", help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    text = "actions of an a2c or ppo agent: most probable or drawn (default: --eval-policy)"
    parser.add_argument("--policy", choices=("greedy", "sample"), help=text)
    text = "keep a part of the core's state at zero: trace, eligibility or modulator of backpropamine"
    parser.add_argument("--lesion", metavar="PART", help=text)
    _add_number(parser, "--seed", 0, 2**31 - 1, 0, "seed of the episodes")
    _add_number(parser, "--threads", 1, 256, 1, "CPU threads")
    _add_trust(parser)


def _add_trust(parser: argparse._ActionsContainer) -> None:
    text = "import this task module although only a file names it: its code runs; may be repeated"
    parser.add_argument("--trust-env-module", metavar="MODULE", action="append", default=[], help=text)


def _add_number(parser: argparse._ActionsContainer, flag: str, low: int, high: int, default: int | None, text: str):
    shown = text if default is None else f"{text} (default: {default})"
    parser.add_argument(flag, metavar="N", type=_whole(low, high), default=default, help=shown)


def _add_eval(parser: Parser) -> None:
    _add_existing(parser)
    _add_number(parser, "--num-eval-episodes", 1, 100_000, None, "episodes (default: 10)")
    text = "NeuroGym trials to reach at least, instead of episodes"
    _add_number(parser, "--num-eval-trials", 1, 10_000_000, None, text)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")


def _add_render(parser: Parser) -> None:
    _add_existing(parser)
    parser.add_argument("--output", metavar="FILE", help="FILE.gif or FILE.mp4 (default: videos/episode_<seed>.gif)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file --output")
    _add_number(parser, "--fps", 1, 100, None, "frames per second (default: 10 for NeuroGym, else 30)")
    _add_number(parser, "--max-steps", 1, 100_000, 500, "maximum length of the film in steps")


STAGES = {
    "collect": "record episodes",
    "plot": "plot the recording",
    "probe": "vary delays and noise, lesion parts, hold inputs",
    "compare": "compare groups of runs",
    "report": "write all results into one HTML page",
    "export": "write the recording as an NWB file",
    "list": "show all experiments in a table",
    "query": "run SQL over all experiments",
}
TABLES = ("list", "query")  # stages that need no --experiment-name
# The stages that use an option of analyze; an option that is not listed belongs to all stages.
LOADING = ("collect", "probe", "compare", "report")
STAGES_OF = {
    **dict.fromkeys(("checkpoint", "device", "policy", "lesion", "seed"), LOADING),
    "threads": (*LOADING, "plot"),
    "format": ("plot", "probe", "compare", "report"),
    **dict.fromkeys(("num_episodes", "max_megabytes", "states", "precision", "epsilon"), ("collect", "report")),
    "color_by": ("plot", "report"),
    **dict.fromkeys(("num_trials", "delays", "lesion_controls"), ("probe", "report")),
    **dict.fromkeys(
        ("group_by", "output", "overwrite", "num_eval_episodes", "num_eval_trials", "similarity"), ("compare",)
    ),
    "probes": ("report",),
    "trust_env_module": ("collect", "plot", "probe", "compare", "report"),
    **dict.fromkeys(("sort", "where"), ("list",)),
    "sql": ("query",),
    **dict.fromkeys(("json", "csv"), TABLES),
}


def _add_analyze(parser: Parser) -> None:
    stages = "; ".join(f"{name}: {text}" for name, text in STAGES.items())
    parser.add_argument("stage", nargs="?", choices=tuple(STAGES), help=f"{stages}; none: collect and plot")
    text = "of query, over the tables runs (one row per experiment), metrics (metrics.jsonl) and evals (eval/*.json)"
    parser.add_argument("sql", nargs="?", metavar="SQL", help=text)
    _add_existing(parser, several=True)
    parser.add_argument("--format", choices=("svg", "pdf"), help="also write figures in this format, beside the PNG")
    record = parser.add_argument_group("collect")
    _add_number(record, "--num-episodes", 1, 100_000, 100, "episodes to record")
    _add_number(record, "--max-megabytes", 1, 10**6, 500, "maximum size of the recording before compression")
    text = "parts of the state to keep: M, c, H (default: all)"
    record.add_argument("--states", nargs="+", metavar="NAME", help=text)
    text = "of M in the file (default: %(default)s)"
    record.add_argument("--precision", choices=("float16", "float32"), default="float16", help=text)
    text = "probability of a random action while recording (default: 0)"
    record.add_argument("--epsilon", metavar="P", type=_probability, default=0.0, help=text)
    drawn = parser.add_argument_group("plot")
    text = "condition, choice, ground_truth, time, trial or obs_<i> (default: automatic)"
    drawn.add_argument("--color-by", metavar="NAME", help=text)
    probing = parser.add_argument_group("probe")
    _add_number(probing, "--num-trials", 1, 1_000_000, 400, "NeuroGym trials per point of a curve, at least")
    text = "delays to test (default: 0.5 to 8 times the trained delay)"
    probing.add_argument("--delays", nargs="+", metavar="MS", type=_positive, help=text)
    text = "also swap the memory between trials, and move it at random as far as a lesion does: matched controls"
    probing.add_argument("--lesion-controls", action="store_true", help=text)
    several = parser.add_argument_group("compare")
    several.add_argument(
        "--group-by", nargs="+", metavar="OPTION", help="core, algo, hidden_dim, experiment, ... (default: core)"
    )
    several.add_argument("--output", metavar="DIR", help="output folder (default: experiments/compare-<groups>)")
    several.add_argument("--overwrite", action="store_true", help="replace the files of a comparison in --output")
    _add_number(several, "--num-eval-episodes", 1, 100_000, 100, "episodes per run for the comparison")
    text = "NeuroGym trials per run to reach at least, instead of episodes"
    _add_number(several, "--num-eval-trials", 1, 10_000_000, None, text)
    text = "also compare the states of the runs' recordings: linear CKA and Procrustes, some seconds per run"
    several.add_argument("--similarity", action="store_true", help=text)
    bound = parser.add_argument_group("report")
    text = "run the probes if they are missing"
    bound.add_argument("--probes", action=argparse.BooleanOptionalAction, default=True, help=text)
    tables = parser.add_argument_group("list and query")
    text = "only runs whose column or option has this value, such as core=gru or task='Perceptual*'; may be repeated"
    tables.add_argument("--where", metavar="KEY=VALUE", action="append", default=[], help=text)
    text = "column or option to sort by, the largest number first (default: by name)"
    tables.add_argument("--sort", metavar="KEY", help=text)
    formats = tables.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print a JSON array")
    formats.add_argument("--csv", action="store_true", help="print CSV")
    options = [action for action in parser._actions if action.dest in STAGES_OF]
    parser.set_defaults(stage_defaults={action.dest: action.default for action in options})
    for action in options:  # `stage_options` sees which ones are given
        action.help = (action.help or "").replace("%(default)s", str(action.default))
        action.default = argparse.SUPPRESS


def stage_options(args: argparse.Namespace) -> dict[str, object]:
    """The options of `analyze` that are given on the command line; sets the others to their defaults.

    Raises: ConfigError for an option of another stage.
    """
    running = (args.stage,) if args.stage else ("collect", "plot")
    given = {name: value for name, value in vars(args).items() if name in STAGES_OF}
    for name in given:
        if not set(running) & set(STAGES_OF[name]):
            *first, last = STAGES_OF[name]
            known = f"{', '.join(first)} or {last}" if first else last
            shown = "SQL" if name == "sql" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{shown} belongs to analyze {known}; leave it out")
    for name, default in args.stage_defaults.items():
        if name not in given:
            setattr(args, name, default)
    if args.experiment_name is None and args.stage not in TABLES:
        raise ConfigError("--experiment-name is required; `analyze list` shows the experiments")
    return given


# --- many runs ----------------------------------------------------------------------------------------------


def _add_sweep(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)

    def add(name: str, text: str) -> Parser:
        action: Parser = actions.add_parser(name, help=text, description=text)
        kind = (
            "the sweep's TOML file"
            if name == "expand"
            else "TOML file, HTCondor submit file, Slurm script, or args file"
        )
        action.add_argument("file", metavar="FILE", help=kind)
        folder = "folder of the runs (default: as in their command line)"
        action.add_argument("--experiments-dir", metavar="DIR", help=folder)
        return action

    expand = add("expand", "write a grid or a random search as an args file, with one row per run")
    expand.add_argument("--overwrite", action="store_true", help="replace an existing args file")
    check = add("check", "check the command line of every row; start nothing")
    text = "accept rows whose experiment has already started with the same options"
    check.add_argument("--resume", action="store_true", help=text)
    _add_trust(check)
    run = add("run", "run the rows on this machine: skip complete rows, start or continue the others")
    _add_trust(run)
    _add_number(run, "--workers", 1, 1000, None, "rows that run at the same time (default: the number of cores)")
    _add_number(run, "--retries", 0, 100, 1, "further attempts for a row that fails")
    _add_number(run, "--limit", 1, 10**6, None, "number of incomplete rows to run (default: all)")
    submit = add("submit", "freeze the code, and submit the rows that are not complete to HTCondor or Slurm")
    _add_trust(submit)
    submit.add_argument("--scheduler", metavar="NAME", help="condor or slurm (default: the one that is here)")
    text = "submit N jobs that each run `sweep search`, instead of the rows"
    _add_number(submit, "--search-workers", 1, 1000, None, text)
    submit.add_argument("--dry-run", action="store_true", help="show what would be submitted; write nothing")
    submit.add_argument("--yes", action="store_true", help="submit without asking")
    search = add("search", "let Optuna choose the settings of [search], prune weak ones, show the results")
    _add_trust(search)
    _add_number(search, "--workers", 1, 1000, 1, "trials that run at the same time")
    search.add_argument("--show", action="store_true", help="show the results so far; start nothing")
    text = "run as a job of a cluster: exit with status 85 when stopped, write no tables"
    search.add_argument("--worker", action="store_true", help=text)
    search.add_argument("--output", metavar="DIR", help="folder of the CSV and PNG files (default: that of FILE)")
    add("status", "show whether each row is done, running, interrupted, failed or missing")
    summary = add("summary", "summarise the rows over seeds: table, curves, heat map")
    text = "evaluation to use: the last one, or that of best_model.pt (default: %(default)s)"
    summary.add_argument("--score", choices=("final", "best"), default="final", help=text)
    summary.add_argument("--heatmap", nargs=2, metavar=("X", "Y"), help="plot the score over two columns")
    summary.add_argument("--output", metavar="DIR", help="folder of the CSV and PNG files (default: that of FILE)")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = whole_number(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must lie in [{low}, {high}], got {value}")
        return value

    read.__name__ = "whole number"
    return read


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], got {value}")
    return value


def config_flags(args: argparse.Namespace) -> dict[str, object]:
    """The options given on the command line, by field name."""
    sections = {choice.section for part in cfg.PARTS for choice in cfg.choices(part).values()}
    names = {field.name for section in sections for field in dataclasses.fields(section)} | {*SELECTED}
    return dict(cfg.read_task_file({name: value for name, value in vars(args).items() if name in names}))


def config_of(args: argparse.Namespace) -> cfg.Config:
    """The configuration that a training command line asks for. Raises: ConfigError."""
    file = cfg.read_config_file(args.config) if args.config else None
    if args.match_weights is not None and "hidden_dim" in vars(args):
        raise ConfigError("--match-weights sets --hidden-dim; leave one of them out")
    return cfg.make_config(args.command, config_flags(args), file)


def resumed_config(args: argparse.Namespace, name: str, stored: cfg.Config) -> cfg.Config:
    """The configuration of a resumed run.

    Args:
        args: the command line, whose flags may only repeat the stored options or change those in RESUMABLE, and,
            with --resume, the learning rate.
        name: name of the experiment.
        stored: the experiment's configuration.
    Raises: ConfigError for any other change.
    """
    flags = config_flags(args)
    names = {part: getattr(stored, part).name if part in cfg.KINDS else part for part in cfg.PARTS}
    cfg.refuse_unread_flags(flags, {part: cfg.choices(part)[name] for part, name in names.items()})
    wanted = config_of(args).to_dict() if args.config else {}
    changes: dict[str, dict[str, Any]] = {"run": {}, "learner": {}}
    for part in cfg.PARTS:
        section = stored.to_dict()[part]
        for key, value in section.items():
            field = part if key == "name" else key
            new = flags.get(field, wanted.get(part, {}).get(key, value))
            if new == value:
                continue
            # --resume auto keeps the learning rate: it compares the row of a sweep with its run.
            other_rate = key == "learning_rate" and args.resume == "yes"
            if other_rate or (part == "run" and key in RESUMABLE):
                changes[part][key] = new
            else:
                flag = cfg.KINDS[field][0] if field in cfg.KINDS else "--" + field.replace("_", "-")
                raise ConfigError(
                    f"--resume continues '{name}' as it was: {flag} is {value}, got {new}; "
                    "leave the option out, or start another experiment"
                )
    learner = dataclasses.replace(stored.learner, **changes["learner"])
    object.__setattr__(learner, "name", stored.learner.name)  # no field of the dataclass
    config = dataclasses.replace(stored, learner=learner, run=dataclasses.replace(stored.run, **changes["run"]))
    for option in dataclasses.fields(config.run):
        reason = cfg.idle_reason(option, config) if option.name in changes["run"] else None
        if reason:
            raise ConfigError(reason)
    return config
