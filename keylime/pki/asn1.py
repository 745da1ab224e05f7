"""The ASN.1 elements of a certificate, found in one pass with bounds on all. Pure; no crypto library."""

from dataclasses import dataclass

from keylime.errors import MalformedEvidence

CONSTRUCTED = 0x20
INTEGER, BIT_STRING, OCTET_STRING, SEQUENCE = 0x02, 0x03, 0x04, 0x30


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a certificate may be made of: bytes, ASN.1 elements (those in extensions included), levels."""

    size: int
    elements: int
    depth: int = 24


class Element:
    """One ASN.1 element of a buffer; `end` is behind the end-of-contents mark of an indefinite length.

    `limit` is where the innermost definite length around its contents ends, its own included.
    """

    __slots__ = ("children", "content", "content_end", "end", "limit", "start", "tag")

    def __init__(self, tag: int, start: int, content: int, content_end: int, limit: int) -> None:
        self.tag = tag
        self.start = start
        self.content = content
        self.content_end = content_end  # -1 as long as an indefinite length has not ended
        self.end = content_end
        self.limit = limit
        self.children: list[Element] = []


class Pass:
    """Reads each header of `data` once, from front to back."""

    def __init__(self, data: bytes, bounds: Bounds) -> None:
        self._data = data
        self._bounds = bounds
        self.count = 0

    def outermost(self) -> Element:
        """The element at the start, with all that is in it."""
        data, open_elements, limit = self._data, list[Element](), len(self._data)
        element = self._header(0, limit)
        outer = element
        while True:
            position = element.end
            if element.tag & CONSTRUCTED:
                if len(open_elements) == self._bounds.depth:
                    raise MalformedEvidence("not a certificate: ASN.1 nested too deeply")
                open_elements.append(element)
                position = element.content
            elif element.tag == OCTET_STRING:
                self.count += headers_in(data, element.content, element.content_end)
            while open_elements and (end := self._end_of(open_elements[-1], position)) is not None:
                position = end
                open_elements.pop()
            if not open_elements:
                return outer
            parent = open_elements[-1]
            element = self._header(position, parent.limit)
            parent.children.append(element)

    def _end_of(self, element: Element, position: int) -> int | None:
        """Where `element` ends, if it has nothing more at `position`."""
        if element.content_end >= 0:
            return element.end if position == element.content_end else None
        if self._data[position : position + 2] != b"\x00\x00" or position + 2 > element.limit:
            return None
        element.content_end, element.end = position, position + 2
        return element.end

    def _header(self, start: int, limit: int) -> Element:
        data = self._data
        self.count += 1
        if self.count > self._bounds.elements:
            raise MalformedEvidence(f"not a certificate: more than {self._bounds.elements} ASN.1 elements")
        if start + 2 > limit:
            raise MalformedEvidence("not a certificate: ASN.1 element cut short")
        tag, first = data[start], data[start + 1]
        if tag & 0x1F == 0x1F:
            raise MalformedEvidence("not a certificate: ASN.1 tag of several bytes")
        content = start + 2
        if first == 0x80:
            if not tag & CONSTRUCTED:
                raise MalformedEvidence("not a certificate: indefinite length of a primitive ASN.1 element")
            return Element(tag, start, content, -1, limit)
        length = first
        if first > 0x80:
            content += first & 0x7F
            length = int.from_bytes(data[start + 2 : min(content, limit)])
        if content + length > limit:
            raise MalformedEvidence("not a certificate: ASN.1 element longer than what it is in")
        return Element(tag, start, content, content + length, content + length)


def headers_in(data: bytes, position: int, end: int) -> int:
    """How many elements a parser may find between `position` and `end`, as far as there is ASN.1 at all."""
    count = 0
    while position + 2 <= end:
        tag, first = data[position], data[position + 1]
        count += 1
        position += 2
        if first > 0x80:
            octets = first & 0x7F
            if octets > 4:
                break
            first = int.from_bytes(data[position : position + octets])
            position += octets
        if not tag & CONSTRUCTED:
            position += first
    return count
