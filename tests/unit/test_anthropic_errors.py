"""Every error of the anthropic SDK has its place in the table, and none takes a secret along."""

import importlib
import pkgutil
from typing import get_args

import anthropic
import httpx2
import pytest
from anthropic import types
from anthropic.types.shared.error_type import ErrorType

from greenroom.adapters.providers.anthropic.errors import (
    BY_CLASS,
    BY_ERROR_CODE,
    BY_TYPE,
    FOREIGN_ERRORS,
    translated,
)
from greenroom.adapters.providers.http_errors import class_of_status
from greenroom.domain.errors import (
    GreenroomError,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderInvalidRequest,
    ProviderOverloaded,
    ProviderQuotaExceeded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)

REQUEST = httpx2.Request("POST", "http://127.0.0.1:1/v1/messages")
SECRET = "sk-ant-secret"

ABSTRACT = {anthropic.AnthropicError, anthropic.APIError, anthropic.APIStatusError}
"""Never raised themselves for a status of 4xx or 5xx; a 200 in the middle of a stream is decided by its type."""


def all_errors(root: type[Exception]) -> set[type[Exception]]:
    found: set[type[Exception]] = set()
    for cls in root.__subclasses__():
        found |= {cls} | all_errors(cls)
    return found


def sdk_errors() -> set[type[anthropic.AnthropicError]]:
    """What the SDK gives out as its errors; those of its tool runners and cloud platforms are not used here."""
    named = (*vars(anthropic).values(), *vars(importlib.import_module("anthropic._exceptions")).values())
    return {each for each in named if isinstance(each, type) and issubclass(each, anthropic.AnthropicError)} - ABSTRACT


def status_error(
    status: int,
    kind: str | None = None,
    *,
    message: str = "no",
    error_code: str | None = None,
    headers: dict[str, str] | None = None,
) -> anthropic.APIStatusError:
    detail = {"type": kind, "message": message, "details": {"error_code": error_code} if error_code else None}
    response = httpx2.Response(status, headers={"request-id": "req_1", **(headers or {})}, request=REQUEST)
    return anthropic.APIStatusError("failed", response=response, body={"type": "error", "error": detail})


def test_every_error_class_without_a_status_is_in_the_table() -> None:
    listed = {foreign for foreign, _ in BY_CLASS}
    without_status = {cls for cls in sdk_errors() if not issubclass(cls, anthropic.APIStatusError)}

    assert {cls for cls in without_status if listed.isdisjoint(cls.__mro__)} == set()


def test_every_error_class_with_a_status_has_a_class_of_ours() -> None:
    with_status = {cls for cls in sdk_errors() if issubclass(cls, anthropic.APIStatusError)}

    assert all(class_of_status(getattr(cls, "status_code", 500)) for cls in with_status)


def test_every_error_type_that_the_sdk_knows_is_in_the_table() -> None:
    assert set(get_args(ErrorType)) - set(BY_TYPE) == set()


def test_every_error_code_about_money_is_in_the_table() -> None:
    words = ("spend_limit", "billing", "quota")
    codes: set[str] = set()
    for module in pkgutil.walk_packages(types.__path__, "anthropic.types."):
        if module.name.endswith("_error_details") and ".beta" not in module.name:
            for value in vars(importlib.import_module(module.name)).values():
                codes |= set(get_args(getattr(value, "__annotations__", {}).get("error_code")))
    of_the_platform_customer = {"user_profile_billing_not_authorized"}

    about_money = {code for code in codes if any(word in code for word in words)}

    assert about_money - of_the_platform_customer == set(BY_ERROR_CODE)


def test_every_httpx_error_that_a_stream_can_raise_is_translated() -> None:
    for cls in all_errors(httpx2.HTTPError) | all_errors(httpx2.StreamError) | {httpx2.InvalidURL}:
        assert issubclass(cls, FOREIGN_ERRORS), cls


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (status_error(400, "invalid_request_error"), ProviderInvalidRequest),
        (status_error(400, "invalid_request_error", message="Your credit balance is too low"), ProviderQuotaExceeded),
        (status_error(401, "authentication_error"), ProviderAuthenticationFailed),
        (status_error(402, "billing_error"), ProviderQuotaExceeded),
        (status_error(403, "permission_error"), ProviderAuthenticationFailed),
        (status_error(404, "not_found_error"), ProviderInvalidRequest),
        (status_error(413, "request_too_large"), ProviderInvalidRequest),
        (status_error(422), ProviderInvalidRequest),
        (status_error(418), ProviderInvalidRequest),
        (status_error(429, "rate_limit_error"), ProviderRateLimited),
        (
            status_error(429, "rate_limit_error", error_code="contract_spend_limit_reached"),
            ProviderQuotaExceeded,
        ),
        (status_error(500, "api_error"), ProviderUnavailable),
        (status_error(502), ProviderUnavailable),
        (status_error(504, "timeout_error"), ProviderTimeout),
        (status_error(529, "overloaded_error"), ProviderOverloaded),
        (status_error(200, "overloaded_error"), ProviderOverloaded),
        (status_error(200, "api_error"), ProviderUnavailable),
        (status_error(200, "unheard_of"), ProviderError),
        (anthropic.APITimeoutError(REQUEST), ProviderTimeout),
        (anthropic.APIConnectionError(request=REQUEST), ProviderUnavailable),
        (httpx2.ReadTimeout("slow"), ProviderTimeout),
        (httpx2.RemoteProtocolError("peer closed connection"), ProviderUnavailable),
        (httpx2.ReadError("reset"), ProviderUnavailable),
        (anthropic.AnthropicError("new"), ProviderError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(getattr(value, "type", type(value).__name__)),
)
def test_an_error_gets_the_class_that_says_what_can_be_done(exc: Exception, expected: type[GreenroomError]) -> None:
    assert type(translated(exc, secret=SECRET)) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_the_service_asks_for_is_in_seconds(headers: dict[str, str], expected: float | None) -> None:
    error = translated(status_error(429, "rate_limit_error", headers=headers), secret=SECRET)

    assert error.details.get("retry_after_s") == expected


def test_the_foreign_error_is_kept_as_plain_data() -> None:
    error = translated(status_error(529, "overloaded_error", message="busy"), secret=SECRET)

    assert error.provider_error == {
        "status_code": 529,
        "type": "overloaded_error",
        "request_id": "req_1",
        "body": {"type": "error", "error": {"type": "overloaded_error", "message": "busy", "details": None}},
    }


def test_a_key_that_the_service_repeats_is_struck_out() -> None:
    error = translated(status_error(401, "authentication_error", message=f"bad key {SECRET}"), secret=SECRET)

    assert SECRET not in str(error.to_record())
    assert "bad key ***" in error.message
