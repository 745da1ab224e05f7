"""`show`, `diff` and `lint` of reference states for measured boot."""

import json
import sys

from keylime.documents.places import line_of
from keylime.findings.finding import printable
from keylime_policy.boot_states import (
    BootState,
    differences,
    leaves,
    lint_reference_state,
    read_reference_state,
)
from keylime_policy.files import read_text
from keylime_policy.json_documents import LintRemark, StateChanges, StateLeaf, rendered
from keylime_policy.sources import blaming

_DIFFERENT = 1
_MARKS = {"-": "removed", "+": "added", "!": "changed"}


def load_state(option: str, path: str) -> BootState:
    """The reference state in a file. Raises ConfigError, which names file and line."""
    text = read_text(option, path)
    with blaming(option, path, text):
        return read_reference_state(text)


def show_state(path: str, *, as_json: bool) -> int:
    """Prints a reference state: what it is, then a line for each thing that may be booted."""
    state = load_state("POLICY", path)
    if as_json:
        sys.stdout.write(json.dumps(state.document, indent=2, sort_keys=True) + "\n")
        return 0
    rows = {
        "policy": state.policy.version.rpartition(" ")[2],
        "read by": f"measured-boot policy {state.policy.name}, and those built on it"
        if state.makes_demands
        else "any measured-boot policy, of which it demands nothing",
        "PCRs to explain": ", ".join(map(str, sorted(state.policy.required_pcrs))) or "those that are quoted",
    }
    width = max(map(len, rows))
    lines = [f"{name:{width}}  {value}" for name, value in rows.items()]
    lines += [f"{place}  {value}" for place, value in leaves(dict(state.document)) if place]
    _write(lines)
    return 0


def show_state_difference(old: str, new: str, *, as_json: bool) -> int:
    """Prints what `new` has more (+) and less (-) than `old`; the status is 1 where they differ."""
    before, after = (load_state(option, path).document for option, path in (("OLD", old), ("NEW", new)))
    found = list(differences(dict(before), dict(after)))
    if as_json:
        kinds = {
            kind: [StateLeaf(place, value) for mark, place, value in found if mark == one]
            for one, kind in _MARKS.items()
        }
        sys.stdout.write(rendered(StateChanges(**kinds)))
    else:
        _write([f"{mark} {place}  {value}" for mark, place, value in found])
    return _DIFFERENT if found else 0


def lint_state(path: str, *, as_json: bool) -> int:
    """Prints a line for each remark on a reference state; status 1 if there are any."""
    text = read_text("POLICY", path)
    remarks = list(lint_reference_state(load_state("POLICY", path)))
    rows = [
        LintRemark(path, line_of(text, one.place) if one.place else None, one.text, one.remedy)
        for one in remarks
    ]
    if as_json:
        sys.stdout.write(rendered(rows))
    else:
        places = (path if row.line is None else f"{path}:{row.line}" for row in rows)
        _write([f"{place}: {row.text}; {row.remedy}" for place, row in zip(places, rows, strict=True)])
    return _DIFFERENT if rows else 0


def _write(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
