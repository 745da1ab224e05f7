"""Which certificates are renewed and warned of, and in which words: values in, values out."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.pki.lifetimes import (
    CertificateFile,
    Holder,
    Lifetime,
    RenewalPlan,
    Validity,
    plan_renewal,
    remark,
    short_remark,
    unusable,
)
from tests.effort import examples

START = datetime(2026, 11, 29, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
YEAR = Lifetime(START, START + timedelta(days=365))
DECADE = Lifetime(START, START + timedelta(days=3650))
WEEK = Lifetime(START, START + timedelta(days=6))


def after(days: float) -> datetime:
    return START + timedelta(days=days)


def certificate(
    life: Lifetime = YEAR, holder: Holder = Holder.CLIENT, authority: str | None = None, option: str = ""
) -> CertificateFile:
    name = {Holder.CLIENT: "client-cert.crt", Holder.SERVER: "server-cert.crt"}.get(holder, "cacert.crt")
    return CertificateFile(
        holder, Path("/d") / name, life, option, None if authority is None else Path(authority)
    )


@pytest.mark.parametrize(
    ("life", "now", "expected"),
    [
        (YEAR, START - SECOND, Validity.NOT_YET_VALID),
        (YEAR, START, Validity.GOOD),
        (YEAR, after(335) - SECOND, Validity.GOOD),
        (YEAR, after(335), Validity.ENDS_SOON),
        (YEAR, after(365) - SECOND, Validity.ENDS_SOON),
        (YEAR, after(365), Validity.ENDED),
        (WEEK, after(4) - SECOND, Validity.GOOD),  # else it would be renewed, and warned of, all its life
        (WEEK, after(4), Validity.ENDS_SOON),
    ],
)
def test_the_validity_follows_from_the_dates(life: Lifetime, now: datetime, expected: Validity) -> None:
    assert life.validity(now) is expected


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-1, ()),  # a wrong clock is no reason to make anything
        (0, ()),
        (334.9, ()),
        (335, ("server", "client")),
        (366, ("server", "client")),
    ],
)
def test_what_is_within_thirty_days_of_its_end_is_renewed(days: float, expected: tuple[str, ...]) -> None:
    plan = plan_renewal(DECADE, {"server": YEAR, "client": YEAR}, leaf_days=365, now=after(days))
    assert plan == RenewalPlan(authority=False, names=expected)
    assert bool(plan) == bool(expected)


def test_what_was_made_while_the_clock_was_ahead_is_made_anew_once_it_is_right() -> None:
    """Its authority is valid, so that the clock is: nobody would accept the certificate for years."""
    ahead = Lifetime(after(700), after(1065))
    leaves = {"server": ahead, "client": YEAR}
    for days, expected in ((10, ("server",)), (700, ("client",)), (-1, ())):
        plan = plan_renewal(DECADE, leaves, leaf_days=365, now=after(days))
        assert plan == RenewalPlan(authority=False, names=expected)


def test_an_authority_is_renewed_before_it_cuts_a_certificate_short() -> None:
    late = Lifetime(after(3000), after(3365))
    assert not plan_renewal(DECADE, {"server": late}, leaf_days=365, now=after(3650 - 395) - SECOND)
    plan = plan_renewal(DECADE, {"server": late}, leaf_days=365, now=after(3650 - 395))
    assert plan == RenewalPlan(authority=True, names=())


def test_a_certificate_that_would_get_no_longer_life_is_left_alone() -> None:
    """Else it would be made anew at each look."""
    short = Lifetime(START, after(300))
    authority = Lifetime(START - timedelta(days=3350), after(300))
    assert plan_renewal(authority, {"server": short}, leaf_days=365, now=after(290)) == RenewalPlan(
        authority=True, names=("server",)
    )
    not_yet = Lifetime(after(400), after(300) + timedelta(days=4000))  # a wrong clock
    assert not plan_renewal(not_yet, {}, leaf_days=365, now=after(290))


@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(-10, 5000))
@settings(max_examples=examples(200))
def test_what_was_renewed_is_not_due_again_at_once(leaf_days: int, ca_days: int, at: float) -> None:
    now = after(at)
    authority, leaf = Lifetime(START, after(ca_days)), Lifetime(START, after(min(leaf_days, ca_days)))
    plan = plan_renewal(authority, {"server": leaf}, leaf_days=leaf_days, now=now)
    if plan.authority:
        authority = Lifetime(now, now + timedelta(days=ca_days))
    if plan.names:
        leaf = Lifetime(now, min(now + timedelta(days=leaf_days), authority.ends))
    assert not plan_renewal(authority, {"server": leaf}, leaf_days=leaf_days, now=now)


def test_words_say_whose_which_file_which_date_and_what_to_type() -> None:
    foreign, own = certificate(), certificate(authority="/d")
    assert remark(foreign, START) is None
    assert remark(foreign, after(345)) == (
        "the client certificate /d/client-cert.crt ends on 2027-11-29 12:00 UTC, in 20 days; put a new one "
        "in its place, and its key; it is taken up by itself, or at once with SIGHUP (systemctl reload)"
    )
    assert remark(own, after(366)) == (
        "the client certificate /d/client-cert.crt ended on 2027-11-29 12:00 UTC; "
        "`keylime_ca -c renew -n client -d /d`, where the CA's key (private.yml) is"
    )
    ca = certificate(DECADE, Holder.AUTHORITY, "/d")
    assert "`keylime_ca -c renew -n ca -d /d`, and copy cacert.crt" in str(remark(ca, after(3649)))


def test_a_clock_before_the_beginning_is_said_to_be_the_cause() -> None:
    assert remark(certificate(), after(-1)) == (
        "the client certificate /d/client-cert.crt is not valid before 2026-11-29 12:00 UTC, and here it is "
        "2026-11-28 12:00 UTC: check the clock of this machine (timedatectl)"
    )


def test_what_anybody_may_read_names_no_folder() -> None:
    assert short_remark(certificate(), START) is None
    assert short_remark(certificate(), after(350)) == "client certificate client-cert.crt ends on 2027-11-29"
    assert short_remark(certificate(), after(366)) == "client certificate client-cert.crt ended on 2027-11-29"
    assert "clock" in str(short_remark(certificate(), after(-1)))


def test_an_ended_authority_matters_where_it_is_the_last_one_of_its_option() -> None:
    old = certificate(YEAR, Holder.AUTHORITY, option="trusted_client_ca")
    new = certificate(DECADE, Holder.AUTHORITY, option="trusted_client_ca")
    alone = certificate(YEAR, Holder.AUTHORITY, option="trusted_server_ca")
    server = certificate(YEAR, Holder.SERVER)
    assert unusable([old, new, server], after(1)) == ()
    assert unusable([old, new], after(366)) == ()
    assert unusable([old, new, alone, server], after(366)) == (server, alone)
    assert unusable([server], after(-1)) == (server,)
    assert unusable([], START) == ()
