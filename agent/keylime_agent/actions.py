"""Revocation actions: which ones a message runs, where they are found, and how they are run.

Shell actions get one argument, the path of a JSON file; Python modules run in an interpreter of their own.
"""

import logging
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keylime.revocation.message import is_cleared
from keylime_agent.processes import run_program

log = logging.getLogger(__name__)

ACTION_LIMIT_S = 60.0
PAYLOAD_MODULE_PREFIX = "local_action_"
CLEARED_PREFIX = "local_action_cleared"
_LIST_FILE = "action_list"
_MAX_LIST = 64 * 1024
# Non-blocking: the agent must not wait for whoever might write to a FIFO.
_LIST_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SEPARATORS = re.compile(r"[\s,]+")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,254}")


@dataclass(frozen=True, slots=True)
class ActionOptions:
    """What the operator chose: installed actions, their directory, and whether payloads bring more."""

    configured: tuple[str, ...]
    directory: Path
    allow_payload: bool


@dataclass(frozen=True, slots=True)
class Action:
    """An action that was found: a program, or a Python module with `async def execute(event)`."""

    name: str
    path: Path
    is_module: bool
    from_payload: bool


def parse_action_list(text: str) -> tuple[str, ...]:
    """The names in an action list, in order, without repetitions.

    Newlines, commas and blanks separate; quotes and brackets around names are taken off.
    """
    names = (part.strip("[]\"'") for part in _SEPARATORS.split(text))
    return tuple(dict.fromkeys(name for name in names if name))


def find_action(
    name: str, options: ActionOptions, payload_dir: Path, is_file: Callable[[Path], bool] = Path.is_file
) -> Action | None:
    """The action `name`: installed before payload, exact name before name with `.py`. None if there is none.

    Names with a path, or starting with a dot or dash, are no action names.
    """
    if not _NAME.fullmatch(name):
        return None
    places = [(options.directory, False)] + ([(payload_dir, True)] if options.allow_payload else [])
    for suffix in ("", ".py"):
        for directory, from_payload in places:
            path = directory / f"{name}{suffix}"
            if is_file(path):
                return Action(name, path, path.suffix == ".py", from_payload)
    return None


class ActionRunner:
    """Runs the actions of one message after another. A failing action is logged and the next one runs."""

    def __init__(
        self,
        environment: Mapping[str, str],
        work_dir: Path,
        payload_dir: Path,
        options: ActionOptions,
        *,
        limit_s: float = ACTION_LIMIT_S,
    ) -> None:
        self._environment = environment
        self._work_dir = work_dir
        self._payload_dir = payload_dir
        self._options = options
        self._limit_s = limit_s

    async def run_all(self, document: bytes) -> None:
        """Run the configured actions, then those of the payload; `document` is the message as JSON.

        Actions named `local_action_cleared...` are for messages that an agent is trusted again, which all
        others never see: they would take them for a warning.
        """
        for action in self._actions(cleared=is_cleared(document)):
            log.info("Executing revocation action %s", action.name)
            try:
                await self._run(action, document)
            except OSError as error:
                log.warning("revocation action %s cannot be run: %s", action.name, error)
            except Exception:
                log.exception("revocation action %s failed", action.name)

    def _actions(self, *, cleared: bool) -> Iterable[Action]:
        listed = _read_list(self._payload_dir / _LIST_FILE) if self._options.allow_payload else ()
        names = tuple(dict.fromkeys((*self._options.configured, *listed)))
        for name in (one for one in names if one.startswith(CLEARED_PREFIX) is cleared):
            action = find_action(name, self._options, self._payload_dir)
            if action is None:
                log.warning("revocation action %s not found", name[:255])
            elif action.is_module and action.from_payload and not name.startswith(PAYLOAD_MODULE_PREFIX):
                log.warning(
                    "revocation action %s skipped: modules of a payload must be named %s...",
                    name,
                    PAYLOAD_MODULE_PREFIX,
                )
            else:
                yield action

    async def _run(self, action: Action, document: bytes) -> None:
        if action.from_payload and not action.is_module:
            action.path.chmod(0o700)
        with _document_file(document, self._work_dir) as path:
            outcome = await run_program(
                _command(action, path, self._payload_dir),
                directory=self._work_dir,
                environment=self._environment,
                limit_s=self._limit_s,
                on_line=lambda stream, line: log.info("Action %s: %s", stream, line),
            )
        if not outcome.is_success:
            log.warning("revocation action %s: %s", action.name, outcome)


def _command(action: Action, document: Path, payload_dir: Path) -> tuple[str, ...]:
    if action.is_module:
        # -I: neither the environment nor the working directory decides what the interpreter imports.
        runner = (sys.executable, "-I", "-m", "keylime_agent.action_runner")
        return (*runner, str(action.path), str(document), str(payload_dir))
    return (str(action.path), str(document))


@contextmanager
def _document_file(document: bytes, directory: Path) -> Iterator[Path]:
    """A file in `directory` with the message, readable to the agent's user only, gone afterwards."""
    descriptor, name = tempfile.mkstemp(prefix="revocation-", suffix=".json", dir=directory)  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(document)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)  # an action may have moved it


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        with open(os.open(path, _LIST_FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                log.warning("%s is no file: its actions are not run", path)
                return ()
            return parse_action_list(file.read(_MAX_LIST).decode("utf-8", "replace"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        return ()
