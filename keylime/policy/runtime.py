"""See `keylime.ima.runtime_policy`."""

from keylime.ima.runtime_policy import (
    EMPTY_POLICY,
    JUDGES_NOTHING,
    RuntimePolicy,
    compile_runtime_policy,
    parse_runtime_policy,
)

__all__ = [
    "EMPTY_POLICY",
    "JUDGES_NOTHING",
    "RuntimePolicy",
    "compile_runtime_policy",
    "parse_runtime_policy",
]
