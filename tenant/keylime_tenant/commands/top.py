"""`top`: the fleet on one screen, as it happens; keys act on many agents at once."""

import asyncio
import curses
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from keylime.errors import KeylimeError
from keylime.identifiers import parse_agent_id
from keylime_tenant.commands.verifier import delete_from_verifier, show_agents
from keylime_tenant.errors import CommandFailed
from keylime_tenant.fleet_view import (
    BulkAction,
    Carry,
    Fleet,
    Quit,
    View,
    folded,
    head_of,
    press,
    screen,
    window,
)
from keylime_tenant.forms import Form
from keylime_tenant.live import LiveFleet
from keylime_tenant.session import Session
from keylime_tenant.terminal import wants_colours
from keylime_tenant.told_status import ToldStatus

_KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    10: "enter",
    13: "enter",
    27: "escape",
    127: "backspace",
}
_COLOURS = {"good": curses.COLOR_GREEN, "bad": curses.COLOR_RED, "doubtful": curses.COLOR_YELLOW}


async def top(session: Session) -> None:
    """A live table on a terminal; otherwise the fleet as it is now. Raises CommandFailed."""
    if session.output.form is not Form.TABLE or not (sys.stdin.isatty() and sys.stdout.isatty()):
        show_agents(session, "Bulk Agent Info:", await _statuses(session))
        return
    statuses = await _statuses(session)  # what fails now is an error, and later a line on the screen
    first = Fleet(statuses, time.time())
    try:
        drawn = curses.initscr()
    except curses.error as error:
        kind = os.environ.get("TERM", "")
        raise CommandFailed(f"this terminal cannot be drawn on: {error} (TERM={kind})") from error
    try:
        with session.output.held():
            await _Live(session, drawn, first).run()
    finally:
        curses.endwin()


async def _statuses(session: Session) -> Mapping[str, ToldStatus]:
    return await session.verifier.statuses(session.arguments.verifier_id or "")


def _first_view(session: Session) -> View:
    """All agents; with -u one of them, its findings opened."""
    agent = session.arguments.agent_uuid
    return View() if agent is None else View(filter=agent, opened=frozenset({agent}))


class _Live:
    """The shell around `fleet_view`: a screen, a keyboard, a timer."""

    def __init__(self, session: Session, drawn: "curses.window", first: Fleet) -> None:
        self._session = session
        self._window = drawn
        self._view = _first_view(session)
        self._changed = asyncio.Event()
        self._end = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()
        self._live = LiveFleet(
            session.verifier,
            session.open_events,
            session.arguments.verifier_id or "",
            self._changed.set,
            first,
        )
        self._styles = self._prepare()

    @property
    def _fleet(self) -> Fleet:
        return self._live.fleet

    def _prepare(self) -> dict[str, int]:
        curses.noecho()
        curses.cbreak()
        self._window.keypad(True)
        self._window.nodelay(True)
        curses.set_escdelay(50)
        styles = {"strong": curses.A_BOLD, "quiet": curses.A_DIM}
        if wants_colours(os.environ, is_terminal=True):
            curses.start_color()
            curses.use_default_colors()
            if curses.has_colors():
                for number, (style, colour) in enumerate(_COLOURS.items(), start=1):
                    curses.init_pair(number, colour, -1)
                    styles[style] = curses.color_pair(number)
        return styles

    async def run(self) -> None:
        """Until somebody has seen enough."""
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._read_keys)
        loop.add_signal_handler(signal.SIGWINCH, self._resize)
        polling = asyncio.create_task(self._live.run())
        try:
            while not self._end.is_set():
                self._draw()
                self._changed.clear()
                try:
                    async with asyncio.timeout(1.0):  # ages grow meanwhile
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            loop.remove_reader(sys.stdin.fileno())
            loop.remove_signal_handler(signal.SIGWINCH)
            for task in (polling, *self._work):
                task.cancel()
            await asyncio.gather(polling, *self._work, return_exceptions=True)

    def _read_keys(self) -> None:
        while (code := self._window.getch()) != -1:
            key = _KEYS.get(code, chr(code) if 32 <= code < 0x110000 else "")
            self._view, order = press(self._view, key, self._fleet)
            if isinstance(order, Quit):
                self._end.set()
            elif isinstance(order, Carry):
                task = asyncio.create_task(self._carry_out(order))
                self._work.add(task)
                task.add_done_callback(self._work.discard)
        self._changed.set()

    async def _carry_out(self, order: Carry) -> None:
        failures = []
        for agent in order.agents:
            try:
                await self._act(order.action, agent)
            except KeylimeError as error:
                failures.append(str(error))
        done = len(order.agents) - len(failures)
        said = f"{order.action.value}: {done} of {len(order.agents)} agents"
        self._say("; ".join([said, *dict.fromkeys(failures)]))
        await self._live.refresh()

    async def _act(self, action: BulkAction, agent: str) -> None:
        agent_id = parse_agent_id(agent)
        if action is BulkAction.DELETE:
            await delete_from_verifier(self._session, agent_id)
            return
        reply = await self._session.verifier.act(agent_id, action.value)
        if reply.code != 200:
            raise self._session.verifier.refusal(reply, f"{action.value} agent {agent_id}")

    def _say(self, message: str) -> None:
        self._view = replace(self._view, message=message)
        self._changed.set()

    def _resize(self) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        curses.resizeterm(size.lines, size.columns)
        self._window.clear()
        self._changed.set()

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        lines = screen(self._fleet, self._view, self._session.verifier.place, time.time())
        head = folded(lines[: head_of(self._fleet)], width)
        shown = window([*head, *folded(lines[head_of(self._fleet) :], width)], len(head), height)
        self._window.erase()
        for row, line in enumerate(shown):
            style = self._styles.get(line.style, 0) | (curses.A_REVERSE if line.is_current else 0)
            # The last cell of the screen cannot be written by addstr, which moves on behind it.
            is_last = row == height - 1 and len(line.text) >= width
            text = line.text[: width - 1] if is_last else line.text
            self._window.addstr(row, 0, text, style)
            if is_last:
                self._window.insstr(row, width - 1, line.text[width - 1], style)
        self._window.refresh()
