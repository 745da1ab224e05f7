"""Pages in HTML: values in, bytes out. Whatever a template shows is escaped, without exception."""

from pathlib import Path

from tornado.escape import xhtml_escape
from tornado.template import Loader

from keylime.findings.finding import printable

_HERE = Path(__file__).parent
STATIC = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
}
"""What pages load, by name: nothing else is served from a disk."""


def static_file(name: str) -> bytes:
    """One of `STATIC`."""
    return (_HERE / "static" / name).read_bytes()


def escaped(text: bytes) -> str:
    """What a template shows, from wherever it is: text without markup, controls and marks of direction."""
    return xhtml_escape(printable(text.decode()))


class Renderer:
    """The templates, each compiled once."""

    def __init__(self, form_token: str) -> None:
        """Every form sends `form_token` back."""
        self._loader = Loader(str(_HERE / "templates"), autoescape="escaped")
        self._form_token = form_token

    def page(self, name: str, title: str, **values: object) -> bytes:
        """The template `name` with these values; `is_inside` is false for who may not see the other pages."""
        common: dict[str, object] = {"section": "", "problem": "", "is_inside": True}
        common |= {"title": title, "form_token": self._form_token, "escaped": escaped}
        return self._loader.load(f"{name}.html").generate(**(common | values))
