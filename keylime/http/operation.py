"""What a route says of itself beyond method and path: for whoever reads the description of the API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec


class Nothing(msgspec.Struct, frozen=True):
    """Results of calls that have none."""


@dataclass(frozen=True, slots=True)
class QueryField:
    """A parameter in the query of an address, or in a header."""

    about: str
    required: bool = False
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """Words, types and codes of a call.

    `alternative` is the type of results that some queries get instead of `results`. With `is_stream` the
    answer has no end: server-sent events, the data of each of which is one of `results`. With `is_document`
    body and results are documents of JSON:API, and there is no envelope.
    """

    summary: str
    results: Any = Nothing
    alternative: Any = None
    body: Any = None
    query: Mapping[str, QueryField] = field(default_factory=dict)
    headers: Mapping[str, QueryField] = field(default_factory=dict)
    is_stream: bool = False
    is_document: bool = False
    success: int = 200
    refusals: Sequence[int] = ()
