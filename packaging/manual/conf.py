"""How Sphinx makes the manual. `make docs` takes warnings for errors: links that lead nowhere, lost pages."""

import tomllib
from pathlib import Path

_ROOT = Path(__file__).parents[2]
project = "Keylime"
release = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"][
    "version"
]
extensions = ["myst_parser"]
myst_heading_anchors = 6
html_theme = "furo"
html_title = f"Keylime {release}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
smartquotes = False  # which would turn the two dashes of an option into one
pygments_style = "default"
pygments_dark_style = "monokai"
suppress_warnings = ["misc.highlighting_failure"]  # of examples in which something is left out
