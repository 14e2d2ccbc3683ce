"""Read HTCondor submit files as `condor_submit` does, and find the mistakes that it accepts.

condor_submit only warns about a misspelt command, replaces an undefined `$(macro)` with nothing, and reads
`request_memry` as a request for a custom resource. `SubmitFile` reads a file, and `SubmitFile.mistakes` lists its
mistakes. docs/sweeps.md describes the conventions. This module imports only the standard library.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mpn_rl.options import ConfigError, nearest
from mpn_rl.storage.regular_files import read_regular

# The submit commands in the manual of condor_submit, without those of grid, EC2, Java and VM jobs.
COMMANDS = frozenset(
    """
    accounting_group accounting_group_user allow_arguments_v1 allow_environment_v1 allowed_execute_duration
    allowed_job_duration append_files arguments args batch_id batch_name buffer_block_size buffer_files buffer_size
    checkpoint_destination checkpoint_exit_code common_input_files compress_files concurrency_limits
    concurrency_limits_expr container_image container_is_common container_service_names container_target_dir
    copy_to_spool core_size cron_day_of_month cron_day_of_week cron_hour cron_minute cron_month cron_prep_time
    cron_window cuda_version dagman_log deferral_prep_time deferral_time deferral_window description disk_usage
    docker_image docker_network_type docker_override_entrypoint docker_pull_policy docker_send_credentials
    dont_encrypt_input_files dont_encrypt_output_files email_attributes encrypt_execute_directory
    encrypt_input_files encrypt_output_files env environment erase_output_and_error_on_restart error executable
    exit_requirements fetch_files file_remaps getenv get_env gpus_maximum_capability gpus_minimum_capability
    gpus_minimum_memory gpus_minimum_runtime hold hold_kill_sig image_size initialdir initial_dir input
    interactive_args interactive_executable job_ad_information_attrs job_iwd job_lease_duration job_machine_attrs
    job_machine_attrs_history_length job_max_vacate_time jobset keep_claim_idle kill_sig kill_sig_timeout
    leave_in_queue load_profile local_files log log_xml machine_count manifest manifest_dir match_list_length
    materialize_max_idle max_idle max_job_retirement_time max_materialize max_retries max_transfer_input_mb
    max_transfer_output_mb memory_usage mount_under_scratch next_job_start_delay nice_user node_count noop_job
    noop_job_exit_code noop_job_exit_signal notification notify_user on_evict_checks on_exit_hold
    on_exit_hold_reason on_exit_hold_subcode on_exit_remove output output_destination output_directory
    periodic_hold periodic_hold_reason periodic_hold_subcode periodic_release periodic_remove periodic_vacate
    preferences preserve_relative_paths primary_unix_group prio priority rank remote_initialdir remove_kill_sig
    request_cpus request_disk request_gpus request_memory require_gpus requirements retry_request_memory
    retry_request_memory_increase retry_request_memory_max retry_until run_as_owner scitokens_file send_credential
    shell should_transfer_files skip_filechecks skip_if_dataflow stack_size starter_debug starter_log stderr stdin
    stdout stream_error stream_input stream_output submit_event_notes submit_event_user_notes success_exit_code
    suspend_job_at_exec tool_daemon_args tool_daemon_arguments tool_daemon_cmd tool_daemon_error tool_daemon_input
    tool_daemon_output transfer_checkpoint_files transfer_container transfer_error transfer_executable
    transfer_input transfer_input_files transfer_output transfer_output_files transfer_output_remaps
    transfer_plugins ulog_execute_attrs universe use_oauth_services use_scitokens use_x509userproxy want_ads
    want_graceful_removal want_io_proxy want_job_networking when_to_transfer_output x509userproxy
    """.split()  # noqa: SIM905
)
RESOURCES = ("cpus", "disk", "gpus", "memory")
# The macros that condor_submit defines.
AUTOMATIC = frozenset(
    """
    arch cluster clusterid day dollar full_hostname hostname islinux item itemindex iswindows month node opsys
    opsysandver opsysmajorver opsysver process procid row spool step submit_file submit_time tilde username year
    """.split()  # noqa: SIM905
)
SUBCOMMANDS = ("train", "train-neurogym", "eval", "render", "analyze")  # of main.py
MACRO = re.compile(r"(\$\$?)(\w*)\(([^()]*)\)")
MAX_FILE_BYTES = 2**18  # of a TOML file, a submit file and what it includes
MAX_ROWS_BYTES = 2**25  # of an args file
MAX_EXPANDED = 2**16  # characters of a value whose macros are expanded
MAX_MISTAKES = 100  # of a submit file that are listed, beside those of single lines
LITERAL_FUNCTIONS = ("choice", "env", "random_choice", "random_integer")  # their argument is not a macro's name


class Mistake(NamedTuple):
    """A mistake and its place, counted from 1; str() is `file:line:column: text`, as compilers print it."""

    path: Path
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.text}"


class Setting(NamedTuple):
    """One `name = value`; `column` is where the value starts."""

    name: str
    value: str
    line: int
    column: int


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """The text of an ordinary file.

    Args:
        path: the file, or a link to it.
        limit: the largest size in bytes.
    Raises: ConfigError with the file's name if it cannot be read, is too large, or is not text in UTF-8.
    """
    try:
        content = read_regular(path, limit, follow=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(path)!r} is not a file's name: {error}") from None
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8") from None


@dataclass
class SubmitFile:
    """One submit file."""

    path: Path
    settings: dict[str, Setting] = field(default_factory=dict)  # by name in lower case
    runs_main: bool = True  # False with the comment `# command: none`
    includes: list[Setting] = field(default_factory=list)
    queue: Setting | None = None  # name: the columns; value: the file, or "" if the rows follow in parentheses
    columns: tuple[str, ...] = ()
    items: list[tuple[int, str]] = field(default_factory=list)  # (line, text) of the rows in parentheses
    reading_mistakes: list[Mistake] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> SubmitFile:
        """Read a submit file; `mistakes` lists the mistakes in it. Raises: ConfigError if the file cannot be read."""
        job, lines = cls(path), joined_lines(read_text(path))
        for number, line in lines:
            job._read_line(number, line, lines)
        if job.queue is None:
            job._note(1, "no queue statement: nothing would be submitted; write 'queue COLUMN, ... from FILE'")
        return job

    def _note(self, line: int, text: str) -> None:
        self.reading_mistakes.append(Mistake(self.path, line, 1, text))

    def _read_line(self, number: int, line: str, lines: Iterator[tuple[int, str]]) -> None:
        """Read one line; a statement of several lines takes the rest from `lines`."""
        line = line.rstrip()
        text = line.lstrip()
        if re.match(r"#\s*command:\s*none\b", text):
            self.runs_main = False
        elif not text or text[0] == "#" or re.match(r"(if|elif|else|endif|use|error|warning)\b(?!\s*=)", text, re.I):
            pass
        elif queue := re.match(r"\s*queue\b(?!\s*=)\s*(.*)", line, re.I):
            self._read_queue(Setting("", queue[1], number, queue.start(1) + 1), lines)
        elif included := re.match(r"\s*include\b[^:=]*:\s*(.*)", line, re.I):
            self.includes.append(Setting("include", included[1], number, included.start(1) + 1))
        elif setting := re.match(r"\s*([+\w.]+)\s*(@?=)\s*(.*)", line):
            value = setting[3]
            if setting[2] == "@=":  # a block that ends with a line of @ and the same word
                rows = iter(lambda: next(lines, (0, f"@{value}"))[1].strip(), f"@{value}")
                value = "\n".join(rows)
            elif "$(" in value:  # a macro that contains itself gets its value so far, as condor_submit does it
                value = self._with_former_value(setting[1], value)
            self.settings[setting[1].lower()] = Setting(setting[1], value, number, setting.start(3) + 1)
        else:
            self._note(number, f"neither a command nor a queue statement: {text[:60]!r}")

    def _with_former_value(self, name: str, value: str) -> str:
        """A value with the former value of its own macro in place of $(name)."""
        former = self.settings[name.lower()].value if name.lower() in self.settings else ""
        parts = re.split(rf"\$\({re.escape(name)}\)", value, flags=re.IGNORECASE)
        if len(value) + len(former) * (len(parts) - 1) > MAX_EXPANDED:
            raise ConfigError(f"{self.path}: $({name}) expands to more than {MAX_EXPANDED:,} characters")
        return former.join(parts)

    def _read_queue(self, queue: Setting, lines: Iterator[tuple[int, str]]) -> None:
        if self.queue is not None:
            self._note(queue.line, "a second queue statement; sweep reads files with only one")
        self.queue = queue._replace(value="")
        parts = re.fullmatch(r"(?:1\s+)?([a-z]\w*(?:[\s,]+[a-z]\w*)*)\s+from\s+([^\[|]+)", queue.value, re.I)
        if parts is None:
            self._note(queue.line, f"sweep reads 'queue COLUMN, ... from FILE', not 'queue {queue.value}'")
            return
        self.columns = tuple(re.split(r"[\s,]+", parts[1].lower()))  # HTCondor ignores case
        self.queue = queue._replace(value="" if parts[2][0] == "(" else parts[2])
        if parts[2][0] == "(":
            for number, text in lines:
                if text.strip() == ")":
                    break
                self.items.append((number, text.strip()))

    # --- contents ---------------------------------------------------------------------------------------

    def expand(self, text: str) -> str:
        """`text` with the values of the file's macros and of $(SUBMIT_FILE); columns stay as $(column).

        Raises: ConfigError if the result has more than MAX_EXPANDED characters.
        """
        size = len(text)

        def value_of(match: re.Match) -> str:
            nonlocal size
            value = one_value(match)
            size += len(value) - len(match[0])
            if size > MAX_EXPANDED:
                raise ConfigError(f"{self.path}: {match[0]} expands to more than {MAX_EXPANDED:,} characters")
            return value

        def one_value(match: re.Match) -> str:
            dollars, function, inside = match.groups()
            key = inside.partition(":")[0].strip().lower()
            if dollars == "$$" or key in self.columns:
                return match[0]
            if key == "submit_file":
                folder = re.fullmatch(r"F\w*p\w*|DIRNAME", function)
                return f"{self.path.parent}/" if folder else str(self.path)
            return self.settings[key].value if key in self.settings and not function else match[0]

        for _ in range(10):  # a macro may contain others, and by mistake itself
            text = MACRO.sub(value_of, text)
        return text

    def place(self, text: str) -> Path:
        """The path of a file or folder: in the submit file's folder if it exists there, else in the current folder."""
        places = [folder / self.expand(text) for folder in (self.path.parent, Path())]
        likely = [place for place in places if place.exists()] or [place for place in places if place.parent.is_dir()]
        return [*likely, *places][0]

    def arguments(self) -> list[str]:
        """The words of `arguments`, which HTCondor accepts in a plain and in a quoted form."""
        text = self.expand(self.settings["arguments"].value) if "arguments" in self.settings else ""
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        return shlex.split(text[1:-1].replace('""', '\\"')) if quoted else text.split()

    def command_words(self) -> list[str] | None:
        """The arguments of main.py, with $(column) in them; None if the job does not run main.py.

        Raises: ConfigError if they do not start with a command of main.py.
        """
        if not self.runs_main:
            return None
        words = self.arguments()
        if not words or words[0] not in SUBCOMMANDS:
            rule = f"arguments must start with one of {', '.join(SUBCOMMANDS)}, got {words[:1]}"
            raise ConfigError(f"{rule}; if the job does not run main.py, add the comment '# command: none'")
        return words

    # --- mistakes ---------------------------------------------------------------------------------------

    def mistakes(self) -> list[Mistake]:
        """The mistakes that condor_submit accepts or reports too late, in the order of lines."""
        rest = itertools.chain(self._spelling(), self._macros(), self._columns(), self._hazards())
        return sorted([*self.reading_mistakes, *itertools.islice(rest, MAX_MISTAKES)])

    def _texts(self) -> list[Setting]:
        return [*self.settings.values(), *self.includes, *([self.queue] if self.queue else [])]

    def _at(self, key: str, text: str) -> Mistake:
        setting = self.settings.get(key, self.queue or Setting("", "", 1, 1))
        return Mistake(self.path, setting.line, setting.column if key in self.settings else 1, text)

    def _spelling(self) -> Iterator[Mistake]:
        used = {
            match[3].partition(":")[0].strip().lower() for text in self._texts() for match in MACRO.finditer(text.value)
        }
        for key, setting in self.settings.items():
            resource = nearest(key.removeprefix("request_"), RESOURCES) if key.startswith("request_") else ""
            free = ("+", "my.", "require_", "transform_", "remote_") + (() if resource else ("request_",))
            if key not in COMMANDS | used and not key.startswith(free):
                hint = resource or nearest(key, COMMANDS)
                text = f"{setting.name!r} is not a submit command, and no macro uses it{hint}"
                yield Mistake(self.path, setting.line, 1, text)

    def _macros(self) -> Iterator[Mistake]:
        defined = {*self.settings, *self.columns, *AUTOMATIC}
        included = "".join(self._included(part.value) for part in self.includes)
        defined |= {name.lower() for name in re.findall(r"(?<![\w.])([\w.]+)\s*=", included)}
        for text in self._texts():
            for match in MACRO.finditer(text.value):
                dollars, function, inside = match.groups()
                name = inside.partition(",")[0].strip() if function else inside.strip()
                literal = dollars == "$$" or function.lower() in LITERAL_FUNCTIONS or ":" in inside
                if not literal and name.lower() not in defined:
                    own = itertools.islice((setting.name for setting in self.settings.values()), MAX_MISTAKES)
                    hint = nearest(name, [*self.columns[:MAX_MISTAKES], *own])
                    problem = f"$({name}) is not defined, so it would be empty{hint}"
                    yield Mistake(self.path, text.line, text.column + match.start(), problem)

    def _included(self, text: str) -> str:
        """The text of an include statement and of the files that it names: both may define macros."""
        files = sorted({self.place(word) for word in self.expand(text).split()})
        return "\n".join([text, *(read_text(file) for file in files if file.is_file())])

    def _columns(self) -> Iterator[Mistake]:
        for place, column in enumerate(self.columns):
            line = self.queue.line if self.queue else 1
            if column in COMMANDS | AUTOMATIC:
                yield Mistake(
                    self.path,
                    line,
                    1,
                    f"column {column!r} is a submit command or macro of HTCondor; choose another name",
                )
            if column in self.columns[:place]:
                yield Mistake(self.path, line, 1, f"column {column!r} occurs twice")

    def _value(self, key: str) -> str:
        """A setting with its macros expanded; "" if the file does not have it."""
        return self.expand(self.settings[key].value) if key in self.settings else ""

    def _hazards(self) -> Iterator[Mistake]:
        """Settings that every pool accepts, but that lose work or leak secrets."""
        yield from self._program()
        yield from self._logs()
        transfer = self._value("should_transfer_files").upper()
        if not transfer:
            text = (
                "not set: without a shared disk, a job finds no files and leaves the queue as completed; set YES or NO"
            )
            yield self._at("should_transfer_files", f"should_transfer_files is {text}")
        if self._value("getenv").lower() in ("true", "yes", "1"):
            text = "getenv copies the whole environment, including passwords, into the job; name the variables it needs"
            yield self._at("getenv", text)
        if transfer != "YES" or "checkpoint_exit_code" not in self.settings:
            return
        if self._value("when_to_transfer_output").upper() != "ON_EXIT_OR_EVICT":
            text = "the checkpoint of an evicted job is lost without when_to_transfer_output = ON_EXIT_OR_EVICT"
            yield self._at("when_to_transfer_output", text)
        if self._value("transfer_checkpoint_files") != self._value("transfer_output_files"):
            text = "transfer_checkpoint_files and transfer_output_files must be the same"
            yield self._at("transfer_checkpoint_files", text)

    def _logs(self) -> Iterator[Mistake]:
        folder = Path(self._value("initialdir") or self.path.parent)
        makes_folders = any("mkdir" in part.value for part in self.includes)
        for key in ("output", "error"):
            name = self._value(key)
            macros = {match[3].lower() for match in MACRO.finditer(name)}
            if name and not (macros & {"cluster", "clusterid"} and macros & {"process", "procid"}):
                yield self._at(key, f"{key} needs $(Cluster) and $(Process), or other jobs overwrite it")
            parent = os.path.dirname(name)
            exists = parent == os.path.dirname(self._value("log")) or (folder / parent).is_dir()
            if name and not (makes_folders or exists):  # condor_submit makes the folder of the log
                yield self._at(key, f"{key}: no folder {parent}, so jobs would be held; make it, or put the log there")

    def _program(self) -> Iterator[Mistake]:
        """Mistakes in the executable and in its arguments."""
        name = self._value("executable")
        script = self.place(name)
        if not name or not script.is_file():
            yield self._at("executable", f"executable: no file {name}" if name else "no executable")
            return
        if not os.access(script, os.X_OK):
            yield self._at("executable", f"executable: {script} is not executable; chmod +x {script}")
        try:
            words = self.command_words()
        except ValueError as error:  # a ConfigError, or an unmatched quotation mark
            yield self._at("arguments", str(error))
            return
        if words is None:
            return
        with open(script, "rb") as file:
            text = file.read(MAX_FILE_BYTES)
        if re.match(rb"#!.*sh\b", text) and not re.search(rb"(?m)^[ \t]*exec\s", text):
            yield self._at("executable", f"{script} has no exec, so the SIGTERM of an eviction would not reach main.py")
        flag = "--checkpoint-exit-code"
        code, asked = self._value("checkpoint_exit_code"), words[words.index(flag) + 1] if flag in words[:-1] else ""
        if code != asked:
            problem = f"checkpoint_exit_code is {code or 'not set'}, but {flag} is {asked or 'not set'}"
            yield self._at("checkpoint_exit_code", problem)


def joined_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of each line; a line that ends in a backslash is joined with the next one."""
    start, number = "", 0
    for place, line in enumerate(text.splitlines(), start=1):
        number = number if start else place
        if line.endswith("\\"):
            start += line[:-1] + " "
        else:
            yield number, start + line
            start = ""
    if start:
        yield number, start
