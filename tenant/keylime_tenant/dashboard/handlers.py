"""Requests of browsers: let in or not, then read, page, answer. What pages say is decided elsewhere."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId, parse_agent_id
from keylime.request_id import begin_errand
from keylime_tenant.dashboard import acting, gathering
from keylime_tenant.dashboard.access import SECURITY_HEADERS, Door, LinkUse, PageAddress, is_own_origin
from keylime_tenant.dashboard.chronicle import Chronicle
from keylime_tenant.dashboard.fleet_page import fleet_page, machine_href, read_query
from keylime_tenant.dashboard.following import EventFeed
from keylime_tenant.dashboard.growth import Growth
from keylime_tenant.dashboard.machine_page import machine_page
from keylime_tenant.dashboard.policy_pages import KINDS, policies_page, policy_page
from keylime_tenant.dashboard.rendering import STATIC, Renderer, static_file
from keylime_tenant.dashboard.service_pages import revocations_page, services_page
from keylime_tenant.errors import CommandFailed, PutOff
from keylime_tenant.session import Session
from keylime_tenant.standing import standing_of
from keylime_tenant.told_status import ToldStatus

log = logging.getLogger("keylime.tenant")

COOKIE = "keylime_dashboard"
_HEARTBEAT_S = 15.0
_MOST_STREAMS = 16


@dataclass(frozen=True, slots=True)
class Site:
    """What all handlers share."""

    session: Session
    place: PageAddress
    door: Door
    renderer: Renderer
    follower: EventFeed
    chronicle: Chronicle
    growth: Growth


class Page(RequestHandler):
    """Who may ask is looked at before anything else. Subclasses answer."""

    needs_session: ClassVar[bool] = True
    site: Site

    def initialize(self, site: Site) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def prepare(self) -> None:
        begin_errand()
        host, headers = self.request.headers.get("Host", ""), self.request.headers
        if not self.site.place.is_named_by(host):
            raise HTTPError(421, reason="This address belongs to another page")
        if self.needs_session and not self.site.door.admits(self.get_cookie(COOKIE) or ""):
            raise HTTPError(403, reason="Open the link that keylime_tenant dashboard has printed")
        if self.request.method not in ("GET", "HEAD"):
            own = is_own_origin(
                self.site.place, host, headers.get("Origin"), headers.get("Sec-Fetch-Site")
            ) and self.site.door.takes_form(self.get_body_argument("form_token", ""))
            if not own:
                raise HTTPError(403, reason="This form is not from the dashboard: go back and try again")

    def show(self, name: str, title: str, **values: object) -> None:
        """Answers with a page."""
        problem = self.site.follower.problem
        self.finish(self.site.renderer.page(name, title, **({"problem": problem} | values)))

    def agent_id(self, text: str) -> AgentId:
        """The id in an address. Raises HTTPError."""
        try:
            return parse_agent_id(text)
        except KeylimeError as error:
            raise HTTPError(404, reason="There is no such machine") from error

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A page that says what is wrong, in our words or in those of the service."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = "Something went wrong in the dashboard itself: its log says what"
        if isinstance(error, HTTPError):
            text = error.reason or HTTPStatus(status_code).phrase
        elif isinstance(error, KeylimeError):
            text = str(error)
            self.set_status(status_of(error))
        is_inside = status_code not in (403, 421)
        self.finish(self.site.renderer.page("error", "Not possible", text=text, is_inside=is_inside))

    def log_exception(self, *args: Any) -> None:
        """Never the address as it was asked for: that of the link has a secret in it."""
        if not isinstance(args[1], HTTPError | KeylimeError | StreamClosedError):
            log.error("%s %s: %r", self.request.method, self.request.path, args[1], exc_info=args)


def status_of(error: KeylimeError) -> int:
    """What a browser is answered: 503 for later, 409 for what is not possible, 502 for no answer."""
    if isinstance(error, PutOff):
        return 503
    return 409 if isinstance(error, CommandFailed) else 502


class LoginHandler(Page):
    """The link that was printed: it opens the page once."""

    needs_session = False

    def get(self) -> None:
        if not self.site.door.admits(self.get_cookie(COOKIE) or ""):
            entry = self.site.door.enter(self.get_query_argument("token", ""))
            if entry is LinkUse.USED_BEFORE:
                log.warning("the dashboard's link was used twice: it is shut, start the dashboard again")
                raise HTTPError(
                    403, reason="This link was used before. The dashboard is shut: start it again"
                )
            if entry is LinkUse.WRONG:
                raise HTTPError(403, reason="This is not the link that keylime_tenant dashboard has printed")
            self.set_cookie(COOKIE, self.site.door.session, httponly=True, samesite="Strict", path="/")
        # No redirect: a browser sends no strict cookie along one that another program began.
        self.show("login", "Welcome")


class StaticHandler(Page):
    """The style and the script, which hold nothing of anybody."""

    needs_session = False

    def get(self, name: str) -> None:
        if name not in STATIC:
            raise HTTPError(404)
        self.set_header("Content-Type", STATIC[name])
        self.finish(static_file(name))


class FleetHandler(Page):
    """All machines."""

    async def get(self) -> None:
        query = read_query(*(self.get_query_argument(name, "") for name in ("q", "state", "page")))
        statuses = await gathering.read_statuses(self.site.session)
        now = time.time()
        self.site.growth.take(statuses, now)
        self.site.chronicle.set_right({agent: standing_of(one) for agent, one in statuses.items()}, now)
        page = fleet_page(
            statuses, query, self.site.session.verifier.place, self.site.chronicle.series(now), now
        )
        self.show("fleet", "Fleet", page=page, section="fleet")


class MachineHandler(Page):
    """One machine."""

    async def get(self, text: str) -> None:
        agent_id = self.agent_id(text)
        try:
            case, events = await gathering.read_machine(self.site.session, agent_id)
        except CommandFailed as error:
            raise HTTPError(404, reason="The verifier knows nothing of this machine") from error
        certificates = await gathering.read_certificates(self.site.session, agent_id)
        now, growth = time.time(), self.site.growth
        growth.follow(agent_id)
        growth.take({} if case is None else {agent_id: case.status}, now)
        page = machine_page(case, agent_id, events, certificates, now, growth.series(agent_id))
        self.show("machine", page.agent_id, page=page, section="fleet")


class ConfirmHandler(Page):
    """Stop, reactivate or delete a machine: asked first, done then."""

    async def get(self, text: str, word: str) -> None:
        agent_id = self.agent_id(text)
        case, _ = await gathering.read_machine(self.site.session, agent_id)
        if case is None:
            raise HTTPError(404, reason="The verifier does not have this machine any more")
        self.show(
            "confirm",
            f"{word.capitalize()} {agent_id}?",
            back=machine_href(agent_id),
            word=word,
            means=acting.ORDERS[word].means,
            section="fleet",
        )

    async def post(self, text: str, word: str) -> None:
        agent_id = self.agent_id(text)
        await acting.ORDERS[word].carry_out(self.site.session, agent_id)
        self.redirect(machine_href(agent_id), status=303)


class AcceptHandler(Page):
    """Findings into the next version of a policy: shown first, stored then."""

    async def get(self, text: str) -> None:
        agent_id = self.agent_id(text)
        asked = await acting.prepare_acceptance(self.site.session, agent_id)
        self.show(
            "accept",
            f"Accept what was found on {agent_id}?",
            back=machine_href(agent_id),
            asked=asked,
            section="fleet",
        )

    async def post(self, text: str) -> None:
        agent_id = self.agent_id(text)
        await acting.accept(self.site.session, agent_id, self.get_body_argument("seal", ""))
        self.redirect(machine_href(agent_id), status=303)


class PoliciesHandler(Page):
    """All policies."""

    async def get(self) -> None:
        names = await gathering.read_policy_names(self.site.session)
        statuses = await gathering.read_statuses(self.site.session)
        self.show("policies", "Policies", groups=policies_page(names, statuses), section="policies")


class PolicyHandler(Page):
    """One policy, and what is different between two of its versions."""

    async def get(self, word: str, name: str) -> None:
        kind = KINDS[word]
        found = await gathering.read_versions(self.site.session, kind, name)
        numbers = {version.version for version in found.versions}
        former, latter = (self._number(one, numbers) for one in ("from", "to"))
        comparison = None
        if former is not None and latter is not None:
            comparison = await gathering.read_comparison(self.site.session, kind, name, former, latter)
        page = policy_page(kind, found, comparison)
        self.show("policy", page.name, page=page, section="policies")

    def _number(self, name: str, known: set[int]) -> int | None:
        text = self.get_query_argument(name, "")
        return next((one for one in known if str(one) == text), None)


class RevocationsHandler(Page):
    """Who was told what."""

    async def get(self) -> None:
        found = await gathering.read_revocations(self.site.session)
        self.show(
            "revocations", "Revocations", page=revocations_page(found, time.time()), section="revocations"
        )


class ServicesHandler(Page):
    """Registrar and verifiers."""

    async def get(self) -> None:
        answers = await gathering.read_services(self.site.session)
        statuses: Mapping[str, ToldStatus] = {}
        processes = None
        try:
            statuses = await gathering.read_statuses(self.site.session)
            processes = await gathering.read_processes(self.site.session)
        except KeylimeError:  # which the answers say already
            log.debug("who shares the work cannot be asked")
        page = services_page(answers, processes, statuses)
        self.show("services", "Services", page=page, section="services")


class EventsHandler(Page):
    """What happens, for the script of our pages."""

    _open = 0

    async def get(self) -> None:
        if EventsHandler._open >= _MOST_STREAMS:
            raise HTTPError(503, reason="Too many pages are open")
        self.set_header("Content-Type", "text/event-stream")
        EventsHandler._open += 1
        try:
            await self._stream()
        except StreamClosedError:  # nobody looks any more
            pass
        finally:
            EventsHandler._open -= 1

    async def _stream(self) -> None:
        follower = self.site.follower
        with follower.listening() as listener:
            self.write(b"retry: 2000\n\n")
            await self.flush()
            while not follower.is_over:
                try:
                    async with asyncio.timeout(_HEARTBEAT_S):
                        await listener.called.wait()
                except TimeoutError:
                    self.write(b":\n\n")
                listener.called.clear()
                while listener.waiting:
                    self.write(b"data: %b\n\n" % listener.waiting.popleft().encode())
                await self.flush()


class AbsentHandler(Page):
    """Every other address."""

    needs_session = False

    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404, reason="There is no such page")
