"""Budgets and policies over the whole runtime."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

import greenroom
from greenroom import EventType, Runtime, SessionHandle
from greenroom.domain.token_usage import TokenUsage
from greenroom.testing import MessagesServer, answers
from greenroom.testing.answers import Ending
from tests.conftest import API_KEY_VARIABLE
from tests.ray.conftest import Starts
from tests.ray.processes import kill_9
from tests.waiting import wait_until

COST = {"provider_options": {"usage": {"cost_usd": 0.05}, "latency_s": 0.05}}


def outcomes(runs: list[tuple[SessionHandle, str]]) -> Counter[str]:
    """How the runs ended: completed, or the code of the error."""
    counts: Counter[str] = Counter()
    for session, run_id in runs:
        try:
            counts[ray.get(session.await_run.remote(run_id, 60)).status] += 1
        except greenroom.GreenroomError as exc:
            counts[exc.code] += 1
    return counts


def submitted(sessions: list[SessionHandle], each: int, options: Any = COST) -> list[tuple[SessionHandle, str]]:
    asked = [(session, session.submit_run.remote("x", options)) for _ in range(each) for session in sessions]
    return [(session, ray.get(answer)) for session, answer in asked]


@pytest.mark.parametrize("action", ["cancel", "warn"])
def test_a_hundred_runs_at_once_cannot_overshoot_what_their_tenant_may_spend(starts: Starts, action: str) -> None:
    budget = {"max_cost_usd": 1.0, "on_violation": action}
    runtime = starts(limits={"tenants": {"acme": {"budget": budget}}}, sessions_per_actor=10)
    sessions = [runtime.open_session(metadata={"tenant": "acme"}, max_concurrent_runs=10) for _ in range(10)]

    runs = submitted(sessions, 10)
    counts = outcomes(runs)

    started = [one for session in sessions for one in session.follow(follow=False, types=["run_started"])]
    violations = [one for session in sessions for one in session.follow(follow=False, types=["policy_violation"])]
    if action == "cancel":
        assert {"completed": 20, "budget_exceeded": 80} == counts
        assert 20 == len(started), "none starts beyond the cap"
    else:
        assert {"completed": 100} == counts
    assert 80 == len(violations)
    assert {"budget of tenant:acme"} == {one.data["policy"] for one in violations}
    (row,) = runtime.query("SELECT sum(cost_usd) AS cost_usd FROM runs")
    assert row["cost_usd"] == pytest.approx(1.0 if action == "cancel" else 5.0)


def test_at_the_cap_a_person_is_asked_where_the_budget_says_so(starts: Starts) -> None:
    runtime = starts(
        limits={"projects": {"site": {"budget": {"max_cost_usd": 0.05, "on_violation": "ask"}}}}, sessions_per_actor=3
    )
    sessions = [runtime.open_session(metadata={"project": "site"}) for _ in range(3)]

    runs = submitted(sessions, 1)

    def two() -> list[dict[str, Any]]:
        pending = runtime.pending_approvals()
        return pending if len(pending) == 2 else []

    asked = wait_until(two, what="two questions")
    runtime.decide_approval(asked[0]["id"], "approve")
    runtime.decide_approval(asked[1]["id"], "deny")

    assert {"completed": 2, "budget_exceeded": 1} == outcomes(runs)
    assert {"greenroom.budget"} == {one["tool_name"] for one in asked}


def test_other_tenants_and_the_tree_above_and_below(starts: Starts) -> None:
    tenants = {"acme": {"budget": {"max_cost_usd": 0.2}}, "free": {}}
    runtime = starts(limits={"budget": {"max_cost_usd": 0.3}, "tenants": tenants}, sessions_per_actor=4)
    acme = runtime.open_session(metadata={"tenant": "acme"})
    free = runtime.open_session(metadata={"tenant": "free"})

    assert {"completed": 4, "budget_exceeded": 2} == outcomes(submitted([acme], 6))
    assert {"completed": 2, "budget_exceeded": 1} == outcomes(submitted([free], 3)), "the whole runtime has 0.30"
    spent = {scope: state.spent_usd for scope, state in runtime.budgets().items()}
    assert {"runtime": pytest.approx(0.3), "tenant:acme": pytest.approx(0.2)} == spent
    with pytest.raises(greenroom.BudgetExceeded) as refused:
        ray.get(free.execute_run.remote("x", COST))
    assert "runtime" == refused.value.details["scope"]


def test_what_was_spent_is_known_after_a_kill_and_after_a_restart(starts: Starts) -> None:
    settings: dict[str, Any] = {"limits": {"tenants": {"acme": {"budget": {"max_cost_usd": 0.1}}}}, "lease_s": 1.0}
    runtime = starts(**settings)
    session = runtime.open_session(metadata={"tenant": "acme"})
    assert {"completed": 1} == outcomes(submitted([session], 1))

    kill_9(runtime, "Limiter")
    assert {"completed": 1, "budget_exceeded": 1} == outcomes(submitted([session], 2))
    runtime.shutdown()
    again = starts(**settings)
    other = again.open_session(metadata={"tenant": "acme"})

    assert {"budget_exceeded": 1} == outcomes(submitted([other], 1))


# Policies, with the real SDK


@pytest.fixture
def messages_server() -> Iterator[MessagesServer]:
    with MessagesServer() as server:
        yield server


@pytest.fixture
def claude(starts: Starts, messages_server: MessagesServer) -> Runtime:
    declared = {"kind": "anthropic", "base_url": messages_server.url, "api_key_env": API_KEY_VARIABLE}
    return starts(
        providers={"claude": declared}, limits={"tenants": {"acme": {"policy": {"tool_rules": [{"deny": ["touch"]}]}}}}
    )


def test_a_tool_that_the_tenants_policy_denies_never_runs(
    claude: Runtime, messages_server: MessagesServer, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"

    def touch() -> str:
        """Leave a mark."""
        touched.touch()
        return "done"

    messages_server.answers += [answers.tool_use("touch", {}), answers.text("Done.")]
    session = claude.open_session(provider="claude", tools=[touch], metadata={"tenant": "acme"})

    with pytest.raises(greenroom.PolicyViolation):
        ray.get(session.execute_run.remote("touch it", {"policy": {"tool_rules": [{"allow": ["touch*"]}]}}))

    (violation,) = session.follow(follow=False, types=[EventType.POLICY_VIOLATION.value])
    assert ("touch", None) == (violation.data["tool_name"], violation.data.get("advisory"))
    assert not touched.exists()
    messages_server.answers.clear()
    messages_server.answers += [answers.tool_use("touch", {}), answers.text("Done.")]
    free = claude.open_session(provider="claude", tools=[touch])
    assert "Done." == ray.get(free.execute_run.remote("touch it")).output["content"]
    assert touched.exists(), "it runs where nobody denies it"


def test_a_provider_that_is_silent_is_stopped_at_max_duration(claude: Runtime, messages_server: MessagesServer) -> None:

    messages_server.answers.append(replace(answers.text("never heard"), ending=Ending.STALL))
    session = claude.open_session(provider="claude")

    with pytest.raises(greenroom.PolicyViolation) as stopped:
        ray.get(session.execute_run.remote("say it", {"policy": {"limits": {"max_duration_s": 3.0}}}))

    assert "max_duration_s" == stopped.value.details["metric"]
    assert messages_server.requests[0].wait_disconnected()


def test_the_price_of_a_run_and_its_limit_come_from_the_price_list(
    claude: Runtime, messages_server: MessagesServer
) -> None:
    usage = TokenUsage(input_tokens=1_000, output_tokens=1_000_000)
    messages_server.answers += [answers.text("dear", usage=usage), answers.text("cheap")]
    session = claude.open_session(provider="claude")

    with pytest.raises(greenroom.PolicyViolation) as stopped:
        ray.get(session.execute_run.remote("x", {"policy": {"limits": {"max_cost_usd": 1.0}}}))
    result = ray.get(session.execute_run.remote("x", {"policy": {"limits": {"max_cost_usd": 1.0}}}))

    assert stopped.value.details["value"] > 1.0
    assert result.cost_usd is not None
    assert 0 < result.cost_usd < 0.01
    assert [] == result.policy["violations"]
