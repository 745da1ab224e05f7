"""Bodies of the registrar's API (2.x)."""

import msgspec


class RegisterRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`POST /agents/{id}`. Every field may be absent or null; keys and certificates are base64 or PEM."""

    agent_id: str | None = None
    ek_tpm: str | None = None
    aik_tpm: str | None = None
    ekcert: str | None = None
    ip: str | None = None
    port: int | str | None = None
    mtls_cert: str | None = None
    iak_tpm: str | None = None
    iak_cert: str | None = None
    iak_attest: str | None = None
    iak_sign: str | None = None
    idevid_tpm: str | None = None
    idevid_cert: str | None = None


class RegisterReply(msgspec.Struct, frozen=True):
    """Results of a registration: the credential blob, base64 (the file format of tpm2_activatecredential)."""

    blob: str


class ActivateRequest(msgspec.Struct, frozen=True):
    """`PUT /agents/{id}`: hex HMAC-SHA384 of the agent id under the base64 text of the credential."""

    auth_tag: str


class RegisteredAgents(msgspec.Struct, frozen=True):
    """Results of `GET /agents/`: a flat list of those that have proven themselves."""

    uuids: list[str]


class RegisteredAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Results of `GET /agents/{id}`, in the order the registrar sends them."""

    agent_id: str
    ek_tpm: str
    ekcert: str | None = None
    aik_tpm: str
    ip: str | None = None
    port: int | None = None
    mtls_cert: str | None = None
    regcount: int
