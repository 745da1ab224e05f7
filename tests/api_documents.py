"""The routes of each daemon and the OpenAPI documents of the manual, from packaging/manual/apis.py."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keylime.http.openapi import Api
from keylime.http.routing import Route

_FILE = Path(__file__).parent.parent / "packaging" / "manual" / "apis.py"
_SPEC = importlib.util.spec_from_file_location("apis", _FILE)
if _SPEC is None or _SPEC.loader is None:
    raise ImportError(f"{_FILE} cannot be loaded")
_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_module)

TABLES: dict[str, tuple[Api, Sequence[Route]]] = _module.routes()
DOCUMENTS: dict[str, dict[str, Any]] = _module.documents()
