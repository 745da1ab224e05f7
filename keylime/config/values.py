"""The text of an option as a value of its kind. Pure; errors say what was expected, never the text."""

import ast
import ipaddress
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TypeVar

from keylime.config.model import DefaultValue, Kind, Option

_TRUE = frozenset({"1", "yes", "true", "on"})
_FALSE = frozenset({"0", "no", "false", "off"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,3})?")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_Real = TypeVar("_Real", int, float)
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]+>")  # as in registrar_ip = <REMOTE_IP>
_MAY_HOLD_BRACKETS = frozenset({Kind.SECRET, Kind.MAPPINGS})


def parse_value(option: Option, text: str) -> DefaultValue:
    """The value of `text` for `option`. Raises ValueError with what was expected."""
    value = _parse(option, text)
    # Also one that was written as an escape: it would end a path or a name early, unseen.
    if any("\0" in part for part in _texts(value)):
        raise ValueError("it holds a NUL character; remove it")
    return value


def _texts(value: DefaultValue) -> Iterator[str]:
    match value:
        case str():
            yield value
        case tuple():
            for element in value:
                yield from element.keys() if isinstance(element, Mapping) else (element,)
                yield from element.values() if isinstance(element, Mapping) else ()


def _parse(option: Option, text: str) -> DefaultValue:
    placeholder = _PLACEHOLDER.search(text)
    if placeholder and option.kind not in _MAY_HOLD_BRACKETS:
        raise ValueError(f"the placeholder {placeholder[0]} was never replaced; put the real value there")
    match option.kind:
        case Kind.FLAG:
            return parse_flag(text)
        case Kind.INTEGER:
            return _within(option, _integer(text))
        case Kind.NUMBER:
            return _within(option, _number(text))
        case Kind.LIST:
            return tuple(_one_of(option, element) for element in _elements(text))
        case Kind.MAPPINGS:
            return _mappings(text)
        case Kind.ADDRESS:
            return _address(text)
        case Kind.ADDRESSES:
            return tuple(_address(element) for element in _elements(text))
        case Kind.TEXT | Kind.PATH | Kind.SECRET:
            return _one_of(option, text)


def parse_flag(text: str) -> bool:
    """true/false, yes/no, on/off, 1/0 in any case. Raises ValueError."""
    word = text.strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("expected true or false")


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("expected a whole number and nothing else in the line")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError("expected a number and nothing else in the line")
    return float(text)


def _within(option: Option, value: _Real) -> _Real:
    if option.minimum is not None and value < option.minimum:
        raise ValueError(f"expected at least {option.minimum:g}")
    if option.maximum is not None and value > option.maximum:
        raise ValueError(f"expected at most {option.maximum:g}")
    return value


def _one_of(option: Option, text: str) -> str:
    if option.choices and text not in option.choices:
        raise ValueError(f"expected one of {', '.join(option.choices)}")
    return text


def _elements(text: str) -> tuple[str, ...]:
    """A Python list literal, or elements separated by commas with or without brackets and quotes."""
    bracketed = text.startswith("[") and text.endswith("]")
    if bracketed:
        try:
            literal = _literal(text)
        except ValueError:
            text = text[1:-1]  # brackets without quotes inside: [agent, zeromq]
        else:
            if isinstance(literal, list) and all(isinstance(element, str | int) for element in literal):
                return tuple(str(element).strip() for element in literal)
            raise ValueError("expected a list of texts")
    if "[" in text or "]" in text:
        raise ValueError("expected a list: ['a', 'b'] or a, b")
    parts = (part.strip().strip("'\"").strip() for part in text.split(","))
    return tuple(part for part in parts if part)


def _literal(text: str) -> object:
    """A Python literal. Raises ValueError."""
    with warnings.catch_warnings():  # of escapes in regular expressions, which Python tolerates
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError("not a literal") from error


def _mappings(text: str) -> tuple[Mapping[str, str], ...]:
    expected = "expected a list of mappings from text to text"
    try:
        literal = _literal(text)
    except ValueError:
        try:
            literal = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(expected) from error
    if not isinstance(literal, list):
        raise ValueError(expected)
    return tuple(_mapping(element, expected) for element in literal)


def _mapping(element: object, expected: str) -> Mapping[str, str]:
    if not isinstance(element, dict):
        raise ValueError(expected)
    if not all(isinstance(part, str) for pair in element.items() for part in pair):
        raise ValueError(expected)
    return dict(element)


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _is_host_name(text):
            raise ValueError("expected an IPv4 address, an IPv6 address or a host name") from None
    return text


def _is_host_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    # A last label of digits is a mistyped IPv4 address, never a host.
    return (
        len(text) <= 253
        and all(_HOST_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()
    )
