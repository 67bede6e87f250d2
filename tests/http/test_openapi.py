"""The OpenAPI file against the service, by schemathesis: every route, every check, with two tenants."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import greenroom
from greenroom.adapters.http_settings import HttpSettings
from greenroom.domain.api_key import Scope
from greenroom.serve.http import records
from tests.http.conftest import Clients, new_key, opened, serving, submitted

SEED = os.environ.get("SCHEMATHESIS_SEED", "7")
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")
PATIENCE_S = 400.0

ENDS_SOON = HttpSettings(max_stream_s=0.2)
"""Streams that would never end do, so that they are tried like everything else."""

CONFIG = """
[parameters]
wait_s = 0.01  # else it takes as long as its longest wait

[auth.wfc]
path = "{users}"
user = "acme"
peers = ["acme", "thief"]

[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 410, 422, 429]  # names, cursors and types are the service's to know
"""


@pytest.fixture(scope="module")
def url(runtime: greenroom.Runtime) -> Iterator[str]:
    with serving(runtime, ENDS_SOON) as url:
        yield url


def user(name: str, key: str) -> dict[str, Any]:
    return {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]}


def test_no_request_breaks_it_or_is_answered_otherwise_than_described(
    url: str, runtime: greenroom.Runtime, tmp_path: Path
) -> None:
    users, config = tmp_path / "users.json", tmp_path / "schemathesis.toml"
    users.write_text(
        json.dumps({"auth": [user(name, new_key(runtime, name, Scope.ADMIN)) for name in ("acme", "thief")]})
    )
    config.write_text(CONFIG.format(users=users))
    program = Path(sys.executable).with_name("schemathesis")
    asked = ["--config-file", str(config), "run", f"{url}/openapi.json", "--checks", "all", "--seed", SEED]
    bounds = ["--max-examples", EXAMPLES, "--request-timeout", "30", "--suppress-health-check", "all"]
    done = subprocess.run(
        [program, *asked, *bounds], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )

    assert 0 == done.returncode, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "✅ Stateful" in done.stdout, "all phases were run"


@pytest.fixture
def described(url: str) -> dict[str, Any]:
    return httpx2.get(f"{url}/openapi.json").json()


def test_the_file_is_of_version_3_1_and_describes_each_route_with_its_problems(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            if path.startswith("/v1/"):
                assert [{"key": []}] == operation["security"], (method, path)
                problem = operation["responses"]["401"]["content"]["application/problem+json"]["schema"]
                assert {"$ref": "#/components/schemas/Problem"} == problem, (method, path)


def test_what_is_described_of_records_is_what_they_are(clients: Clients, url: str) -> None:
    client = clients(url=url)
    session_id = opened(client)
    run_id = submitted(client, session_id)
    of_session = f"/v1/sessions/{session_id}"
    for path, model in (
        (f"{of_session}/runs/{run_id}?wait_s=30", records.RunRecord),
        (of_session, records.SessionRecord),
        (f"{of_session}/status", records.StatusRecord),
        (f"{of_session}/events", records.EventPage),
        (f"{of_session}/runs", records.RunPage),
        (f"{of_session}/transcript", records.TranscriptRecord),
        ("/v1/sessions", records.SessionPage),
        ("/v1/providers", records.ProviderList),
        ("/v1/budgets", records.BudgetList),
        ("/v1/approvals", records.ApprovalList),
    ):
        model.model_validate(client.get(path).json(), strict=False)
