"""Whatever fails in the birth of a process: the exception names the step and the remedy, and everything is rolled back."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from isolib import SetupFailed
from isolib._kernel import calls
from isolib._kernel.explain import explain_step
from isolib._kernel.hints import TABLE, hint
from isolib._kernel.launch import launch
from isolib._kernel.plan import Step
from tests.plans import SUBJECTS, adopting, faults, injections, nothing_changes, stage_of, with_steps
from tests.strace import attached

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib._kernel.plan import Plan
    from tests.plans import Fault, Injection, Subject

pytestmark = pytest.mark.usefixtures("user_namespaces", "adopted")

SILENT = (calls.STDIO_NULL,) * 3


@pytest.fixture
def adopted() -> Iterator[None]:
    """Adopt what a launch leaves behind."""
    with adopting():
        yield


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """Return each plan in turn."""
    with SUBJECTS[request.param](tmp_path) as found:
        yield found


def refusal(plan: Plan, subject: Subject) -> SetupFailed | None:
    """Launch a plan that should fail; returns how it did, and that nothing is left is certain."""
    error: SetupFailed | None = None
    with nothing_changes():
        try:
            launch(plan, subject.fds, stdio=SILENT).end()
        except SetupFailed as failed:
            error = failed.with_traceback(None)
    return error


def assert_told(error: SetupFailed, plan: Plan, at: int, call: str, number: int) -> None:
    """Fail unless the exception says which step, which call, what it was about, why, and what would help."""
    step = plan.steps[at]
    place = f"{at} {step.kind} ({stage_of(plan, at)})"
    assert (error.step, error.op, error.errno) == (place, call, number), error
    assert error.target == step.target
    assert error.target or step.kind in {"GO", "CLONE", "SUPERVISE", "HOLD"}
    assert error.hint == hint(error.op, error.errno, error.target)
    assert str(error).startswith(f"{place}: {call}")


def test_a_step_that_fails(subject: Subject) -> None:
    """A failure before each step is reported with its number, its stage and its errno, and rolled back."""
    plan = subject.plan
    tried = 0
    for at, step in enumerate(plan.steps):
        if step.kind in {"MAP", "MAP_HELPER", "GO"}:  # the child is waiting then; see the calls below
            continue
        failing = Step("FAIL", value=errno.EXDEV, what="made to fail")
        broken = with_steps(plan, at, failing)
        error = refusal(broken, subject)
        assert error is not None
        assert_told(error, broken, at, "fail", errno.EXDEV)
        tried += 1
    assert tried > len(plan.steps) - 5


def plain_error(step: Step) -> int:
    """Return an error number that is a failure of a step, whatever its calls."""
    # A keyring that is refused with EPERM is refused to the command as well.
    return errno.ENOMEM if step.ignore == errno.EPERM or step.kind == "KEYRING" else errno.EPERM


def fails(fault: Fault, number: int, subject: Subject) -> bool:
    """Make a call of a step fail, and check what is said of it; returns whether the plan came to it."""
    plan, at = fault.plan(subject.plan, number)
    error = refusal(plan, subject)
    if error is None:
        return False
    # Identities are read back: what cannot be read has not been set.
    said = errno.EPERM if fault.call.startswith("getres") else number
    assert_told(error, plan, at, fault.call, said)
    return True


def test_a_call_that_fails(subject: Subject) -> None:
    """Each system call of each step that fails is reported with its name and object, and rolled back."""
    missed = [fault for fault in faults(subject.plan) if not fails(fault, plain_error(fault.step), subject)]
    # Some calls are made only when something is absent, or refused.
    told = {call.name for fault in missed for call in explain_step(fault.step).calls if call.when}
    assert {fault.call for fault in missed} <= told


#: Error numbers that are an answer and no failure, by kind and call.
ANSWERS = {
    ("BOUNDING", "prctl", errno.EINVAL),
    ("CLONE", "clone3", errno.ENOSYS),
    ("TARGET", "openat2", errno.ENOENT),
}


def test_every_errno_with_a_remedy(subject: Subject) -> None:
    """Wherever there is something to say about an error number of a call, the exception says it."""
    remedies = 0
    seen: set[tuple[str, str]] = set()
    for fault in faults(subject.plan):
        if (fault.step.kind, fault.call) in seen:
            continue
        seen.add((fault.step.kind, fault.call))
        for op, number in TABLE:
            if op == fault.call and number != fault.step.ignore and (fault.step.kind, op, number) not in ANSWERS:
                remedies += fails(fault, number, subject)
    assert remedies > 3


def check_injection(injection: Injection, subject: Subject) -> None:
    """Make a call fail by strace, in a plan that knows nothing of it."""
    number = plain_error(injection.step)
    name = errno.errorcode[number]
    with attached(f"-einject={injection.call}:error={name}:when={injection.nth}", f"-etrace={injection.call}") as trace:
        error = refusal(subject.plan, subject)
    assert "(INJECTED)" in trace.text(), injection
    assert error is not None, injection
    said = errno.EPERM if injection.call.startswith("getres") else number
    assert_told(error, subject.plan, injection.number, injection.call, said)


@pytest.mark.parametrize(
    "name",
    [
        *("everything", "joins", "visitor", "tree", "confined"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sandbox", "resident")),
    ],
)
def test_a_call_that_fails_by_strace(name: str, tmp_path: Path) -> None:
    """The same in the plan as it is, by a tracer that knows nothing of plans."""
    with SUBJECTS[name](tmp_path) as subject:
        found = list(injections(subject.plan))
        for injection in found:
            check_injection(injection, subject)
    assert len(found) > 5


def test_killed_before_it_is_let_go_on(tmp_path: Path) -> None:
    """Who finds stage 2 dead when it is to go on says no more than who finds it dead a moment later: it was killed."""
    with SUBJECTS["everything"](tmp_path) as subject:
        (go,) = (fault for fault in faults(subject.plan) if fault.step.kind == "GO")
        plan, _ = go.plan(subject.plan, errno.EPIPE)
        error = refusal(plan, subject)
    assert error is not None
    assert (error.op, error.errno) == ("launch", errno.ECHILD)
