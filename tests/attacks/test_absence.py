"""P1, for what is not there: each policy kind, by each way that leads to a verdict (Hypothesis).

A machine that measures nothing, and one that leaves out any one thing that the policy speaks of, is not
accepted: not when it is polled for the first time, not after a reboot, and not in one-shot verification.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import Text, decode_event_data
from tests.fakes.event_logs import Record, build_log, header, record
from tests.whole_machine import (
    FIRMWARE,
    HONEST,
    KINDS,
    MEASURED,
    PINNED,
    ROUTES,
    Machine,
    Policies,
    Route,
    policies_of,
)

T = TypeVar("T")

quickly = settings(
    deadline=None,
    max_examples=100,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
KIND_SETS = (
    st.sets(st.sampled_from(["runtime", "tpm"]))
    .flatmap(
        lambda chosen: st.sampled_from(["", "{}", "accept-all", "example"]).map(
            lambda boot: sorted({*chosen, boot} - {""})
        )
    )
    .filter(bool)
)


@every_route
@pytest.mark.parametrize("boot", ["", "{}", "accept-all", "example"])
def test_the_honest_machine_is_accepted(route: Route, boot: str) -> None:
    """Without this, every refusal here could have another reason."""
    for others in (["runtime"], ["tpm"], ["runtime", "tpm"], []):
        kinds = [*others, *([boot] if boot else [])]
        if kinds:
            assert route(HONEST, policies_of(kinds)), kinds


# -- a machine that measures nothing

NO_LOGS = [None, b"", header(), build_log([record(0, EventType.NO_ACTION, b"StartupLocality\0\0")])]
NO_LISTS = [None, "", "\n", "\n\n\n", MEASURED[0].decode() + "\n"]


@every_route
@quickly
@given(KIND_SETS, st.sampled_from(NO_LOGS), st.sampled_from(NO_LISTS), st.sets(st.sampled_from([0, 23])))
def test_p1_i19_m12_a_machine_that_measures_nothing_is_not_accepted(
    route: Route,
    kinds: list[str],
    log: bytes | None,
    shown: str | None,
    unquoted: set[int],
) -> None:
    nothing = Machine(
        records=(),
        lines=(),
        has_aggregate=False,
        pcr_23=bytes(32),
        shown_log=log,
        shown_list=shown,
        unquoted=frozenset(unquoted),
    )
    assert not route(nothing, policies_of(kinds)), kinds


@every_route
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", NO_LOGS, ids=["none", "no byte", "header", "no event"])
def test_p1_each_policy_alone_refuses_a_machine_that_measures_nothing(
    route: Route, kind: str, log: bytes | None
) -> None:
    for shown in NO_LISTS:
        nothing = Machine((), (), has_aggregate=False, pcr_23=bytes(32), shown_log=log, shown_list=shown)
        assert not route(nothing, policies_of([kind])), shown


# -- a machine that leaves out one thing


@dataclass(frozen=True, slots=True)
class Omission:
    """One thing left out, and the kinds of policy that speak of it."""

    what: str
    kinds: frozenset[str]
    machine: Machine = HONEST
    without: Callable[[Policies], Policies] = lambda policies: policies


BOOT_KINDS = frozenset({"{}", "example"})
_DEMANDED = {
    EventType.S_CRTM_VERSION,
    EventType.EFI_PLATFORM_FIRMWARE_BLOB,
    EventType.EFI_PLATFORM_FIRMWARE_BLOB2,
    EventType.SEPARATOR,
    EventType.EFI_VARIABLE_DRIVER_CONFIG,
    EventType.EFI_BOOT_SERVICES_APPLICATION,
}


def but(items: Sequence[T], index: int) -> tuple[T, ...]:
    return (*items[:index], *items[index + 1 :])


def is_demanded(item: Record) -> bool:
    """Whether the reference state of the captured machine names this event, or its kind."""
    if item.type_code in _DEMANDED:
        return sum(other.digests == item.digests for other in FIRMWARE) == 1  # of the kernel, either will do
    data = decode_event_data(item.type_code, item.data)
    text = data.text if isinstance(data, Text) else ""
    is_file = item.pcr == 9 and any(part in text for part in ("/vmlinuz", "/initrd"))
    return item.type_code == EventType.IPL and (is_file or text.startswith("kernel_cmdline: "))


def unlisted(section: str, name: str) -> Callable[[Policies], Policies]:
    def change(policies: Policies) -> Policies:
        document = json.loads(policies.runtime or "")
        if section == "verification-keys":
            document[section] = ""
        else:
            del (document["ima"]["dm_policy"]["rules"] if section == "dm" else document[section])[name]
        return replace(policies, runtime=json.dumps(document))

    return change


def omissions() -> Iterator[Omission]:
    runtime, boot, tpm = frozenset({"runtime"}), BOOT_KINDS, frozenset({"tpm"})
    measured = HONEST.measured()
    yield Omission("the list", runtime, replace(HONEST, shown_list=None))
    yield Omission("all of the list", runtime, replace(HONEST, shown_list=""))
    for index in range(len(measured)):
        text = b"".join(line + b"\n" for line in but(measured, index)).decode()
        yield Omission(f"line {index}", runtime, replace(HONEST, shown_list=text))
        text = b"".join(line + b"\n" for line in measured[:index]).decode()
        yield Omission(f"line {index} and what follows", runtime, replace(HONEST, shown_list=text))
    yield Omission("boot_aggregate, really", runtime, replace(HONEST, has_aggregate=False))
    yield Omission(
        "all of it, really", runtime, replace(HONEST, has_aggregate=False, lines=(), shown_list="")
    )
    for index, name in ((1, "the key"), (5, "the device's table"), (6, "the device's use")):
        yield Omission(f"{name}, really", runtime, replace(HONEST, lines=but(MEASURED, index)))
    for section, name in (
        ("digests", "/usr/bin/a"),
        ("digests", "/usr/bin/b"),
        ("keyrings", ".ima"),
        ("ima-buf", "selinux-state"),
        ("dm", "lab"),
        ("verification-keys", ""),
    ):
        yield Omission(f"{section} {name}", runtime, without=unlisted(section, name))
    for log in (None, b"", header()):
        yield Omission(f"the log ({log!r})", boot, replace(HONEST, shown_log=log))
    for index, item in enumerate(FIRMWARE):
        shorter = build_log(but(FIRMWARE, index))
        in_policy = boot if item.pcr in {*range(10), 14} else boot - {"example"}
        yield Omission(f"event {index}", in_policy, replace(HONEST, shown_log=shorter))
        if is_demanded(item):
            really = replace(HONEST, records=but(FIRMWARE, index))
            yield Omission(f"event {index}, really", frozenset({"example"}), really)
    unseparated = tuple(item for item in FIRMWARE if item.type_code != EventType.SEPARATOR)
    yield Omission("the separators, really", boot, replace(HONEST, records=unseparated))
    for index in {*range(10), 14}:
        yield Omission(f"PCR {index}", boot, replace(HONEST, unquoted=frozenset({index})))
    yield Omission("PCR 10", runtime, replace(HONEST, unquoted=frozenset({10})))
    yield Omission("the value of PCR 23", tpm, replace(HONEST, pcr_23=bytes(32)))
    for index in PINNED:
        yield Omission(f"pinned PCR {index}", tpm, replace(HONEST, unquoted=frozenset({index})))
    yield Omission("the value of PCR 4", tpm, replace(HONEST, records=but(FIRMWARE, _last_application())))
    yield Omission("the value of PCR 10", tpm, replace(HONEST, lines=but(MEASURED, 0)))


def _last_application() -> int:
    types = [item.type_code for item in FIRMWARE]
    return max(i for i, kind in enumerate(types) if kind == EventType.EFI_BOOT_SERVICES_APPLICATION)


OMISSIONS = list(omissions())


@pytest.mark.parametrize("omission", OMISSIONS, ids=[omission.what for omission in OMISSIONS])
def test_p1_what_is_left_out_is_not_accepted_under_any_policy_that_speaks_of_it(omission: Omission) -> None:
    for kind in sorted(omission.kinds):
        policies = omission.without(policies_of([kind]))
        accepted = [
            name
            for name, route in ROUTES.items()
            if _runs(name, omission) and route(omission.machine, policies)
        ]
        assert accepted == [], kind


def _runs(route: str, omission: Omission) -> bool:
    """Under a policy that misses a rule, the honest machine is refused from the start."""
    return route in ("first contact", "one-shot", "offline") or (
        omission.machine is not HONEST and route == "after a reboot"
    )


@quickly
@given(st.data())
def test_p1_no_other_policy_makes_up_for_what_is_left_out(data: st.DataObject) -> None:
    omission = data.draw(st.sampled_from(OMISSIONS))
    spoken = data.draw(st.sampled_from(sorted(omission.kinds)))
    others = data.draw(st.sets(st.sampled_from(["runtime", "tpm"])))
    boots = st.sampled_from(["{}", "accept-all", "example"])
    boot = set() if spoken in BOOT_KINDS else data.draw(st.sets(boots, max_size=1))
    policies = omission.without(policies_of(sorted({spoken, *others, *boot})))
    name = data.draw(st.sampled_from([name for name in ROUTES if _runs(name, omission)]))
    assert not ROUTES[name](omission.machine, policies), (omission.what, name)


def test_every_kind_of_policy_has_things_that_it_speaks_of() -> None:
    for kind in ("runtime", "tpm", *BOOT_KINDS):
        assert sum(kind in omission.kinds for omission in OMISSIONS) > 4, kind
