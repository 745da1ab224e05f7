"""REST API versions: which ones we speak, how to read them, and how two peers agree on one."""

import re
from collections.abc import Iterable

import msgspec

CURRENT_VERSION = "2.6"
SUPPORTED_VERSIONS = ("2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6")
AGENT_VERSIONS = SUPPORTED_VERSIONS[1:]  # mutual TLS since 2.0, keys in POST /agents since 2.1

# Verifiers of the field match this text, in this case, before they negotiate another version.
VERSION_NOT_SUPPORTED = "API version not supported"

_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})")


class ServerVersions(msgspec.Struct, frozen=True):
    """Results of `GET /version` at the registrar and the verifier."""

    current_version: str
    supported_versions: list[str]


class AgentVersions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Results of `GET /version` at an agent; agents before 2.5 send only `supported_version`."""

    supported_version: str
    supported_versions: list[str] = []


def version_key(version: str) -> tuple[int, int] | None:
    """`version` ("2.5") as two numbers that sort rightly; None when it is not a version."""
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match else None


def negotiate(remote: Iterable[str], local: Iterable[str] = SUPPORTED_VERSIONS) -> str | None:
    """The highest pull-model version (major below 3) that both sides speak, or None."""
    common = {version for version in remote if (key := version_key(version)) and key < (3, 0)} & set(local)
    return max(common, key=lambda version: version_key(version) or (0, 0), default=None)
