"""Histories of one agent, made up by Hypothesis: a model predicts what each round must be judged.

The model knows what really happened on the machine; the appraisal only sees quotes and lists.
"""

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keylime.appraisal.challenge import make_challenge
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.ima.runtime_policy import RuntimePolicy, parse_runtime_policy
from keylime.messages.agent import QuoteReply
from keylime.tpm.keys import SignatureScheme
from tests.appraisal_rounds import QUOTE, Watch, events
from tests.effort import examples
from tests.evidence import SoftwareMachine, policy_of, reference
from tests.fakes.software_ak import SoftwareAk
from tests.ima_rounds import Kernel

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
GOOD = ("/usr/bin/a", "/usr/bin/b", "/usr/bin/c")
DOUBTFUL = "/usr/bin/doubtful"  # the policy changes its mind about it
BAD = "/usr/bin/bad"
VIOLATION = "violation"
BOOT = "boot_aggregate"
FILES = st.sampled_from([*GOOD, *GOOD, *GOOD, DOUBTFUL, BAD, VIOLATION])


def policy_allowing(*paths: str) -> RuntimePolicy:
    kernel = Kernel()
    for path in (BOOT, *paths):
        kernel.run(path, path)
    # The generator makes it a policy even when it lists nothing.
    return parse_runtime_policy(policy_of([kernel.text()]).to_json())


STRICT = policy_allowing(*GOOD)
LENIENT = policy_allowing(*GOOD, DOUBTFUL)


@dataclass(frozen=True, slots=True)
class Session:
    """What a quote tells about the boot it comes from."""

    reset_count: int
    restart_count: int
    boottime: int


@dataclass(slots=True)
class Model:
    """What a verifier must remember about the agent, and what it must say next."""

    session: Session | None = None
    next_entry: int = 0
    lag: int = 0
    waited: bool = False  # the last round had no verdict
    key: str | None = None  # the payload key; the next round asks for it when it is not known
    allowed: frozenset[str] = frozenset((BOOT, *GOOD))
    names: list[str] = field(default_factory=list)  # what this boot measured

    def expect(self, now: Session, quoted: int, shown: int, key: str) -> type[Verdict]:
        """The verdict on a quote of the first `quoted` entries beside a list of the first `shown`."""
        if self.key in (None, key):
            return self._expect_of_lists(now, quoted, shown, key)
        otherwise = replace(self)._expect_of_lists(now, quoted, shown, key)
        if self.waited or otherwise is Rejected:
            return self._rejected()
        self.key = None
        return self._no_verdict()

    def _expect_of_lists(self, now: Session, quoted: int, shown: int, key: str) -> type[Verdict]:
        same_boot = self.session == now
        entry = self.next_entry if self.next_entry <= shown else 0
        if self.session is not None and not same_boot and entry:
            return self._no_verdict()
        start = entry if same_boot else 0
        if not start <= quoted <= shown or (quoted == 0 and shown > 0):
            return self._no_verdict()
        if start == 0 and self.names[:1] != [BOOT]:
            return self._rejected()
        lag = self.lag if same_boot else 0
        stands_still = lag > 0 and quoted < self.next_entry + lag
        if stands_still or not set(self.names[start:quoted]) <= self.allowed:
            return self._rejected()
        self.session, self.next_entry, self.lag, self.waited = now, quoted, shown - quoted, False
        self.key = key
        return Accepted

    def _no_verdict(self) -> type[Verdict]:
        if self.waited:
            return self._rejected()
        self.next_entry, self.lag, self.waited = 0, 0, True
        return Incomplete

    def _rejected(self) -> type[Verdict]:
        self.next_entry, self.lag, self.waited = 0, 0, False
        return Rejected


class AgentHistory(RuleBasedStateMachine):
    """One agent over many rounds, suspends, reboots and changes of policy."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.kernel = Kernel()
        known: Reference = reference(AK.tpm2b_public, runtime_policy=STRICT)
        self.watch = Watch(SoftwareMachine(ak=AK), known)
        self.recorded: list[QuoteReply] = []
        self.keys = 0

    @initialize()
    def boot(self) -> None:
        self._measure(BOOT)

    def _measure(self, name: str) -> None:
        if name == VIOLATION:
            self.kernel.violate("/usr/bin/a")
        else:
            self.kernel.run(name, name)
        self.model.names.append(name)

    @rule(names=st.lists(FILES, min_size=1, max_size=4))
    def run_files(self, names: list[str]) -> None:
        for name in names:
            self._measure(name)

    @rule()
    def reboot(self) -> None:
        self.watch.machine.reset_count += 1
        self.watch.machine.restart_count = 0
        self.kernel, self.model.names = Kernel(), []
        self._measure(BOOT)

    @rule()
    def reboot_into_a_kernel_without_ima(self) -> None:
        """What is measured later, if anything, follows no boot_aggregate."""
        self.reboot()
        self.kernel, self.model.names = Kernel(), []

    @rule()
    def suspend(self) -> None:
        self.watch.machine.restart_count += 1

    @rule()
    def restart_the_agent_with_a_new_key(self) -> None:
        self.keys += 1
        self.watch.machine.public_key = f"key number {self.keys}"

    @rule(boottime=st.integers(0, 2))
    def correct_the_clock(self, boottime: int) -> None:
        self.watch.machine.boottime = boottime

    @rule(lenient=st.booleans())
    def change_policy(self, lenient: bool) -> None:
        self.watch.known = replace(self.watch.known, runtime_policy=LENIENT if lenient else STRICT)
        self.model.allowed = frozenset((BOOT, *GOOD, DOUBTFUL) if lenient else (BOOT, *GOOD))

    @rule()
    def poll(self) -> None:
        self._poll(later=[], cut=0)

    @rule(later=st.lists(FILES, min_size=1, max_size=3))
    def poll_while_files_run(self, later: list[str]) -> None:
        self._poll(later=later, cut=0)

    @rule(later=st.lists(FILES, max_size=2), cut=st.integers(1, 6))
    def poll_with_a_list_cut_short(self, later: list[str], cut: int) -> None:
        self._poll(later=later, cut=cut)

    def _poll(self, *, later: list[str], cut: int) -> None:
        machine = self.watch.machine
        quoted = len(self.kernel.lines)
        machine.pcrs[10] = self.kernel.pcr
        for name in later:  # between the quote and the reading of the list
            self._measure(name)
        shown = max(0, len(self.kernel.lines) - cut)
        machine.ima_list = b"".join(line + b"\n" for line in self.kernel.lines[:shown])
        now = Session(machine.reset_count, machine.restart_count, machine.boottime)
        challenge = self.watch.challenge()
        reply = machine.answer(challenge)
        self.recorded.append(reply)
        verdict = self.watch.judge(reply, challenge)
        expected = self.model.expect(now, quoted, shown, machine.public_key)
        assert isinstance(verdict, expected), (verdict, expected)

    @precondition(lambda self: self.recorded)
    @rule(data=st.data())
    def replay_an_old_answer(self, data: st.DataObject) -> None:
        reply = data.draw(st.sampled_from(self.recorded))
        assert events(self.watch.judge(reply, self.watch.challenge())) == [QUOTE]
        self.model._rejected()

    @precondition(lambda self: self.recorded)
    @rule(data=st.data())
    def show_an_old_list_beside_a_new_quote(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.recorded))
        challenge = self.watch.challenge()
        self.watch.machine.pcrs[10] = b"\x0b" * 32  # nothing replays to it
        reply = self.watch.machine.answer(
            challenge,
            ima_measurement_list=old.ima_measurement_list,
            ima_measurement_list_entry=old.ima_measurement_list_entry,
        )
        verdict = self.watch.judge(reply, challenge)
        assert not isinstance(verdict, Accepted)
        if isinstance(verdict, Incomplete):
            assert self.model._no_verdict() is Incomplete
            if self.model.key != self.watch.machine.public_key:
                self.model.key = None
        else:
            self.model._rejected()

    @invariant()
    def the_verifier_remembers_what_the_model_does(self) -> None:
        checkpoint = self.watch.checkpoint
        assert checkpoint.ima.next_entry == self.model.next_entry
        assert checkpoint.ima.lag == self.model.lag
        assert checkpoint.incomplete_rounds == self.model.waited
        assert checkpoint.public_key == self.model.key
        challenge = make_challenge(self.watch.known, checkpoint, "nonce", renew_key=False)
        assert challenge.ima_entry == self.model.next_entry


TestAgentHistory = AgentHistory.TestCase
TestAgentHistory.settings = settings(
    max_examples=examples(120), stateful_step_count=40, deadline=None, derandomize=True
)
