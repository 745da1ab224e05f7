"""`/allowlists` and `/mbpolicies`: named policies, for administrators."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from keylime.http.exchange import HttpError, Request, Response, Role
from keylime.http.operation import Operation
from keylime.http.routing import Route
from keylime.messages.verification import (
    MeasuredBootPolicyNames,
    NamedMeasuredBootPolicy,
    NamedRuntimePolicy,
    PolicyVersions,
    PolicyVersionText,
    RestoreRequest,
    RuntimePolicyNames,
)
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime_verifier.agents.events import Actor
from keylime_verifier.agents.refusals import RequestRefused, UnknownPolicy
from keylime_verifier.api.acts import actor
from keylime_verifier.api.enrolment import policy_name
from keylime_verifier.api.refusals import Handler, translated
from keylime_verifier.policies.checks import PolicyContent

BodyT = TypeVar("BodyT", bound=msgspec.Struct)
BodyT_contra = TypeVar("BodyT_contra", contravariant=True)


Codes = Mapping[type[RequestRefused], int]


class Policies(Protocol[BodyT_contra]):
    """The policies of one kind. Raises RequestRefused."""

    async def names(self) -> list[str]: ...

    async def show(self, name: str, /) -> PolicyContent: ...

    async def create(self, name: str, request: BodyT_contra, /, *, by: Actor) -> str | None: ...

    async def replace(self, name: str, request: BodyT_contra, /, *, by: Actor) -> str | None: ...

    async def delete(self, name: str, /, *, by: Actor) -> None: ...

    async def versions(self, name: str, /) -> PolicyVersions: ...

    async def show_version(self, name: str, version: int, /) -> str: ...

    async def restore(
        self, name: str, version: int, request_of: Callable[[PolicyContent], Any], /, *, by: Actor
    ) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResource(Generic[BodyT]):
    """How the API speaks of one kind of policies: where they are, what they are called, what is on the wire.

    `list_action` and `action` name the calls in refusals.
    """

    path: str
    noun: str
    list_action: str
    action: str
    body: type[BodyT]
    names: type[RuntimePolicyNames | MeasuredBootPolicyNames]
    named: type[NamedRuntimePolicy | NamedMeasuredBootPolicy]
    show: Callable[[str, str], object]
    again: Callable[
        [PolicyContent, RestoreRequest], BodyT
    ]  # asks for a text that is stored as if it were new
    refusals: tuple[int, ...]
    put_codes: Codes = field(default_factory=dict)


RUNTIME_POLICIES = PolicyResource(
    path="/allowlists",
    noun="runtime policy",
    list_action="list_runtime_policies",
    action="runtime_policy",
    body=RuntimePolicyRequest,
    names=RuntimePolicyNames,
    named=NamedRuntimePolicy,
    show=lambda name, text: NamedRuntimePolicy(name=name, runtime_policy=text),
    again=lambda content, order: RuntimePolicyRequest(
        runtime_policy=base64.b64encode(content.text.encode()).decode(),
        runtime_policy_key=order.runtime_policy_key,
        tpm_policy=content.tpm_policy,
    ),
    refusals=(401, 404, 409),
)
REFERENCE_STATES = PolicyResource(
    path="/mbpolicies",
    noun="reference state",
    list_action="list_mb_policies",
    action="mb_policy",
    body=MeasuredBootPolicyRequest,
    names=MeasuredBootPolicyNames,
    named=NamedMeasuredBootPolicy,
    show=lambda name, text: NamedMeasuredBootPolicy(name=name, mb_policy=text),
    again=lambda content, _order: MeasuredBootPolicyRequest(content.text),
    refusals=(404, 409),
    put_codes={UnknownPolicy: 409},  # so the API has always answered here
)


class PolicyHandlers(Generic[BodyT]):
    """Each handler parses, calls one method, renders."""

    def __init__(self, resource: PolicyResource[BodyT], policies: Policies[BodyT]) -> None:
        self._resource = resource
        self._policies = policies

    def routes(self) -> list[Route]:
        """The routes under the resource's path."""
        it, noun = self._resource, self._resource.noun
        plural = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
        one = f"{it.path}/{{name}}"

        def admins(
            method: str,
            path: str,
            handler: Handler,
            action: str,
            about: Operation,
            codes: Codes | None = None,
        ) -> Route:
            return Route(
                method, path, Role.ADMIN, translated(handler, codes or {}), action=action, about=about
            )

        def keeps(summary: str) -> Operation:
            return Operation(summary, body=it.body, success=201, refusals=it.refusals)

        return [
            admins(
                "GET",
                it.path,
                self.list_all,
                it.list_action,
                Operation(f"The names of all {plural}.", it.names),
            ),
            admins(
                "GET",
                one,
                self.show,
                f"show_{it.action}",
                Operation(f"One {noun}.", it.named, refusals=(404,)),
            ),
            admins("POST", one, self.add, f"add_{it.action}", keeps(f"Keeps a new {noun}.")),
            admins(
                "PUT",
                one,
                self.update,
                f"update_{it.action}",
                keeps(f"Replaces a {noun}, also for the agents that use it."),
                it.put_codes,
            ),
            admins(
                "DELETE",
                one,
                self.delete,
                f"delete_{it.action}",
                Operation(f"Removes a {noun} that no agent uses.", success=204, refusals=(404, 409)),
            ),
            admins(
                "GET",
                f"{one}/versions",
                self.list_versions,
                f"list_{it.action}_versions",
                Operation(
                    f"The versions of a {noun}, and which agents use it.", PolicyVersions, refusals=(404,)
                ),
            ),
            admins(
                "GET",
                f"{one}/versions/{{version}}",
                self.show_version,
                f"show_{it.action}_version",
                Operation(f"One version of a {noun}.", PolicyVersionText, refusals=(404,)),
            ),
            admins(
                "POST",
                f"{one}/versions/{{version}}/restore",
                self.restore_version,
                f"restore_{it.action}_version",
                Operation(
                    f"Stores what a former version of a {noun} says as the newest one.",
                    body=RestoreRequest,
                    success=201,
                    refusals=(401, 404, 409),
                ),
            ),
        ]

    async def list_all(self, _request: Request) -> Response:
        return Response(results=self._resource.names(await self._policies.names()))

    async def show(self, request: Request) -> Response:
        name = _name(request)
        content = await self._policies.show(name)
        return Response(results=self._resource.show(name, content.text))

    async def add(self, request: Request) -> Response:
        body = request.json(self._resource.body)
        return _stored(await self._policies.create(_name(request), body, by=actor(request)))

    async def update(self, request: Request) -> Response:
        body = request.json(self._resource.body)
        return _stored(await self._policies.replace(_name(request), body, by=actor(request)))

    async def delete(self, request: Request) -> Response:
        await self._policies.delete(_name(request), by=actor(request))
        return Response(204, empty=True)

    async def list_versions(self, request: Request) -> Response:
        return Response(results=await self._policies.versions(_name(request)))

    async def show_version(self, request: Request) -> Response:
        name, version = _name(request), _version(request)
        text = await self._policies.show_version(name, version)
        return Response(results=PolicyVersionText(name, version, text))

    async def restore_version(self, request: Request) -> Response:
        name, version = _name(request), _version(request)
        order = request.json(RestoreRequest) if request.body else RestoreRequest()

        def request_of(content: PolicyContent) -> BodyT:
            return self._resource.again(content, order)

        return _stored(await self._policies.restore(name, version, request_of, by=actor(request)))


def _version(request: Request) -> int:
    text = request.parameters["version"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise HttpError(400, "version is not a number")
    return int(text)


def _stored(remark: str | None) -> Response:
    """What is kept is "Created", also in the place of something older: clients of the field test for 201."""
    return Response(201, status=None if remark is None else f"Created: {remark}")


def _name(request: Request) -> str:
    """The policy's name in the path (N22)."""
    name = policy_name(request.parameters["name"], "name")
    if name is None:
        raise HttpError(400, "name is empty")
    return name
