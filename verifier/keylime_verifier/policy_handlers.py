"""`/allowlists` and `/mbpolicies`: named policies, for administrators."""

from keylime.http.server import HttpError, Request, Response, Role, Route
from keylime.messages.verification import (
    MeasuredBootPolicyNames,
    NamedMeasuredBootPolicy,
    NamedRuntimePolicy,
    RuntimePolicyNames,
)
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime_verifier.enrolment import policy_name
from keylime_verifier.named_policies import NamedPolicies

RuntimePolicies = NamedPolicies[RuntimePolicyRequest]
BootPolicies = NamedPolicies[MeasuredBootPolicyRequest]


class PolicyHandlers:
    """Each handler parses, calls one method, renders."""

    def __init__(self, runtime: RuntimePolicies, boot: BootPolicies) -> None:
        self._runtime = runtime
        self._boot = boot

    def routes(self) -> list[Route]:
        """The routes under `/allowlists` and `/mbpolicies`."""
        admin = Role.ADMIN
        return [
            Route("GET", "/allowlists", admin, self.list_runtime_policies),
            Route("GET", "/allowlists/{name}", admin, self.show_runtime_policy),
            Route("POST", "/allowlists/{name}", admin, self.add_runtime_policy),
            Route("PUT", "/allowlists/{name}", admin, self.update_runtime_policy),
            Route("DELETE", "/allowlists/{name}", admin, self.delete_runtime_policy),
            Route("GET", "/mbpolicies", admin, self.list_mb_policies),
            Route("GET", "/mbpolicies/{name}", admin, self.show_mb_policy),
            Route("POST", "/mbpolicies/{name}", admin, self.add_mb_policy),
            Route("PUT", "/mbpolicies/{name}", admin, self.update_mb_policy),
            Route("DELETE", "/mbpolicies/{name}", admin, self.delete_mb_policy),
        ]

    async def list_runtime_policies(self, _request: Request) -> Response:
        return Response(results=RuntimePolicyNames(await self._runtime.names()))

    async def show_runtime_policy(self, request: Request) -> Response:
        name = _name(request)
        content = await self._runtime.show(name)
        # `tmp_policy`, misspelt and null, is there for clients of the field; `tpm_policy` is the right key.
        policy = NamedRuntimePolicy(name=name, tpm_policy=content.tpm_policy, runtime_policy=content.text)
        return Response(results=policy)

    async def add_runtime_policy(self, request: Request) -> Response:
        await self._runtime.create(_name(request), request.json(RuntimePolicyRequest))
        return Response(201)

    async def update_runtime_policy(self, request: Request) -> Response:
        await self._runtime.replace(_name(request), request.json(RuntimePolicyRequest))
        return Response(201)  # not 200: clients of the field test for it

    async def delete_runtime_policy(self, request: Request) -> Response:
        await self._runtime.delete(_name(request))
        return Response(204, empty=True)

    async def list_mb_policies(self, _request: Request) -> Response:
        return Response(results=MeasuredBootPolicyNames(await self._boot.names()))

    async def show_mb_policy(self, request: Request) -> Response:
        name = _name(request)
        content = await self._boot.show(name)
        return Response(results=NamedMeasuredBootPolicy(name=name, mb_policy=content.text))

    async def add_mb_policy(self, request: Request) -> Response:
        await self._boot.create(_name(request), request.json(MeasuredBootPolicyRequest))
        return Response(201)

    async def update_mb_policy(self, request: Request) -> Response:
        await self._boot.replace(_name(request), request.json(MeasuredBootPolicyRequest))
        return Response(201)  # not 200: clients of the field test for it

    async def delete_mb_policy(self, request: Request) -> Response:
        await self._boot.delete(_name(request))
        return Response(204, empty=True)


def _name(request: Request) -> str:
    """The policy's name in the path (N22)."""
    name = policy_name(request.parameters["name"], "name")
    if name is None:
        raise HttpError(400, "name is empty")
    return name
