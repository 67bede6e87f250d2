"""The inspector page in a real browser, over a real service."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import greenroom
from greenroom.domain.api_key import Scope
from tests.http.conftest import Clients, new_key, opened, submitted

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = os.environ.get("GREENROOM_SCREENSHOTS")
"""A folder that is to hold the pictures of the README."""

PATIENCE_MS = 30_000

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: Debian's chromium is not installed, and the page was NOT tested"
)

POLICY = {"tool_rules": [{"ask": ["add"]}]}
CALL = {"name": "add", "input": {"a": 1, "b": 2}}
REPLY = (
    "One and two make three.\n\nI asked before I added them, as the policy of this session wants; the result came back"
    " at once. Nothing else was changed."
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails the test when a script of it fails, or breaks the content policy."""
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    yield page
    assert [] == faults


def signed_in(page: Page, address: str, token: str, place: str = "") -> None:
    page.goto(f"{address}/{place}")
    page.locator("#key").fill(token)
    page.get_by_test_id("sign-in").click()
    expect(page.get_by_test_id("session-list")).to_be_visible(timeout=PATIENCE_MS)


def last_seq(client: httpx2.Client, session_id: str) -> int:
    return client.get(f"/v1/sessions/{session_id}/events?limit=10000").json()["next_after"]


def expect_every_event_once(page: Page, count: int) -> None:
    """By what the page has counted, and by what stands in it: each seq in one place, streamed pieces as a count."""
    expect(page.get_by_test_id("event-count")).to_have_text(str(count), timeout=PATIENCE_MS)
    seqs, pieces = page.evaluate(
        """() => [
            [...document.querySelectorAll('[data-testid=event][data-seq]')].map(one => Number(one.dataset.seq)),
            [...document.querySelectorAll('[data-count]')].map(one => Number(one.dataset.count)),
        ]"""
    )
    assert len(seqs) == len(set(seqs)), f"some events stand in it twice: {sorted(seqs)}"
    assert count == len(seqs) + sum(pieces)


def shown(page: Page, name: str) -> None:
    if SCREENSHOTS is not None:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def test_a_live_run_is_followed_an_approval_decided_and_after_a_reload_every_event_stands_once(
    page: Page, clients: Clients, address: str, runtime: greenroom.Runtime
) -> None:
    client = clients("watched")
    for agent_id in ("planner", "summarizer", "triage"):
        submitted(client, opened(client, agent_id=agent_id, tags=["nightly"]), "Have a look at the queue.")
    session_id = opened(
        client, agent_id="reviewer", tags=["demo"], tools=["tests.http.tools:add"], run_defaults={"policy": POLICY}
    )
    signed_in(page, address, new_key(runtime, "watched", Scope.ADMIN))
    page.locator(f"[data-testid=session-item][data-session-id={session_id}]").click()
    run_id = submitted(
        client,
        session_id,
        "Add one and two, and tell me.",
        provider_options={
            "tool_calls": [CALL],
            "reply": REPLY,
            "chunks": 60,
            "chunk_delay_s": 0.05,
            "usage": {"input_tokens": 812, "output_tokens": 57},
        },
    )

    page.get_by_test_id("approve").first.click()
    run = page.locator(f"[data-testid=run][data-run-id={run_id}]")
    expect(run).to_have_attribute("data-status", "running")
    expect(page.locator("[data-count]").first).to_be_visible()
    page.reload()
    expect(run).to_have_attribute("data-status", "completed", timeout=PATIENCE_MS)

    expect_every_event_once(page, last_seq(client, session_id))
    log = client.get(f"/v1/sessions/{session_id}/events", params={"types": "tool_approval_granted"}).json()
    assert 1 == len(log["events"]), "the page approved it"
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        shown(page, f"inspector-{theme}")


def test_a_stream_that_breaks_goes_on_and_shows_nothing_twice(
    page: Page, context: BrowserContext, clients: Clients, address: str, runtime: greenroom.Runtime
) -> None:
    client = clients("broken")
    session_id = opened(client)
    signed_in(page, address, new_key(runtime, "broken"), f"#/sessions/{session_id}")
    submitted(client, session_id, provider_options={"chunks": 40, "chunk_delay_s": 0.05})
    expect(page.locator("[data-count]").first).to_be_visible()
    context.set_offline(True)
    run_id = submitted(client, session_id)
    client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30})
    context.set_offline(False)

    expect(page.locator(f"[data-testid=run][data-run-id={run_id}]")).to_have_attribute("data-status", "completed")
    expect_every_event_once(page, last_seq(client, session_id))


def test_a_wrong_key_lets_nobody_in(page: Page, address: str) -> None:
    page.goto(address)
    page.locator("#key").fill("gk_0000000000000000_" + "x" * 43)
    page.get_by_test_id("sign-in").click()

    expect(page.get_by_test_id("sign-in")).to_be_visible()
    expect(page.get_by_test_id("session-list")).not_to_be_visible()


def test_what_a_run_says_stays_text(page: Page, clients: Clients, address: str, runtime: greenroom.Runtime) -> None:
    client = clients("hostile")
    session_id = opened(client, agent_id="<img src=x onerror=alert(1)>")
    run_id = submitted(client, session_id, "<script>document.title = 'taken'</script>")
    client.get(f"/v1/sessions/{session_id}/runs/{run_id}", params={"wait_s": 30})
    signed_in(page, address, new_key(runtime, "hostile"), f"#/sessions/{session_id}")

    expect(page.get_by_text("document.title = 'taken'").last).to_be_visible()
    assert "taken" != page.title()
    assert 0 == page.locator("img[src=x]").count()


def test_the_page_is_used_by_keyboard_alone(
    page: Page, clients: Clients, address: str, runtime: greenroom.Runtime
) -> None:
    client = clients("keys")
    sessions = [opened(client, agent_id=f"agent-{index}") for index in range(3)]
    page.goto(address)
    page.keyboard.press("Tab")
    page.locator("#key").focus()
    page.keyboard.type(new_key(runtime, "keys"))
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("session-item")).to_have_count(3)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")

    expect(page.get_by_test_id("timeline")).to_be_visible()
    assert any(session_id in page.url for session_id in sessions)
    page.keyboard.press("/")
    page.keyboard.type("agent-1")
    expect(page.get_by_test_id("session-item")).to_have_count(1)
