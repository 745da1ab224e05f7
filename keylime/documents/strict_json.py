"""JSON texts of operators, read so strictly that two readers cannot understand them differently."""

import functools
import json
from collections import Counter
from typing import Any, NoReturn

from keylime.errors import PolicyError
from keylime.nesting import MAX_DEPTH, is_too_deep

BYTE_ORDER_MARK = "\ufeff"  # what some editors put before UTF-8, where no reader of JSON expects it


def load_document(text: str | bytes, what: str) -> Any:
    """The value of `text`; `what` names it in errors.

    Raises PolicyError for anything but strict UTF-8 JSON: duplicate keys, NaN and Infinity, numbers of
    thousands of digits, lone surrogates and more nesting than `keylime.nesting` says are refused.
    """
    if not text.strip():
        raise PolicyError(f"{what} is not valid JSON: it is empty")
    try:
        encoded = text.encode() if isinstance(text, str) else text
        if is_too_deep(encoded):
            raise PolicyError(
                f"{what} is nested too deeply: more than {MAX_DEPTH} arrays and objects within each other"
            )
        decoded = encoded.decode()
        if decoded.startswith(BYTE_ORDER_MARK):
            raise PolicyError(f"{what} begins with a byte order mark: save it as UTF-8 without one")
        unique = functools.partial(_unique, what)
        document = json.loads(decoded, object_pairs_hook=unique, parse_constant=_no_constant)
        if "\\u" in decoded:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise PolicyError(f"{what} is not UTF-8 text") from error
    except ValueError as error:
        raise PolicyError(f"{what} is not valid JSON: {error}") from error
    return document


def _unique(what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise PolicyError(f"{what}: the key {key!r} is given twice")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
