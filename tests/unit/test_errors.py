"""Errors: every code has its class, and an error survives pickling and being written as a record."""

import pickle
from typing import Any

import pytest

import greenroom
from greenroom.domain.errors import (
    ERRORS_BY_CODE,
    ErrorCategory,
    GreenroomError,
    UnknownError,
    ValidationError,
    error_from_record,
)

CONTRACT_CODES: dict[str, set[str]] = {
    "validation": {"validation_error", "invalid_input", "missing_required_field", "invalid_format"},
    "state": {
        "invalid_status",
        "invalid_transition",
        "invalid_event_type",
        "invalid_capability_type",
        "missing_required_capability",
        "stream_closed",
        "context_mismatch",
        "invalid_cursor",
        "session_mismatch",
        "run_mismatch",
        "resync_required",
        "session_moved",
        "session_draining",
        "writer_fenced",
    },
    "resource": {
        "not_found",
        "session_not_found",
        "run_not_found",
        "capability_not_found",
        "already_exists",
        "duplicate_capability",
    },
    "provider": {
        "provider_error",
        "provider_unavailable",
        "provider_rate_limited",
        "provider_timeout",
        "provider_overloaded",
        "provider_authentication_failed",
        "provider_quota_exceeded",
        "provider_invalid_request",
        "provider_content_refused",
    },
    "storage": {
        "storage_error",
        "storage_connection_failed",
        "storage_write_failed",
        "storage_read_failed",
        "storage_full",
    },
    "runtime": {
        "timeout",
        "cancelled",
        "policy_violation",
        "internal_error",
        "unknown_error",
        "run_interrupted",
        "approval_denied",
        "budget_exceeded",
        "deadline_exceeded",
        "runtime_gone",
    },
    "concurrency": {
        "max_sessions_exceeded",
        "max_runs_exceeded",
        "capability_not_supported",
        "invalid_operation",
        "queue_full",
    },
    "access": {"unauthorized", "forbidden", "rate_limited"},
    "tool": {"tool_error", "tool_not_found", "tool_execution_failed", "tool_permission_denied"},
}
"""contract.md and behaviour.md section 3.2."""

RETRYABLE = {
    "provider_timeout",
    "provider_rate_limited",
    "provider_unavailable",
    "provider_overloaded",
    "storage_connection_failed",
    "session_moved",
    "timeout",
    "rate_limited",
}

EVERY_CLASS = sorted(ERRORS_BY_CODE.values(), key=lambda cls: cls.code)
every_class = pytest.mark.parametrize("cls", EVERY_CLASS, ids=lambda cls: cls.code)


def all_of(error: GreenroomError) -> tuple[Any, ...]:
    return type(error), error.code, error.message, error.details, error.provider_error, str(error)


def test_every_code_of_the_contract_has_a_class_in_its_category() -> None:
    found = {
        category: {code for code, cls in ERRORS_BY_CODE.items() if cls.category == category}
        for category in CONTRACT_CODES
    }

    assert CONTRACT_CODES == found


def test_there_is_one_class_for_each_code_and_no_class_without_a_code() -> None:
    assert sorted(ERRORS_BY_CODE) == [cls.code for cls in EVERY_CLASS]
    assert len(EVERY_CLASS) == len({cls.__name__ for cls in EVERY_CLASS})
    assert set(EVERY_CLASS) == set(GreenroomError.__subclasses__())


def test_those_that_may_pass_when_tried_again_are_marked_retryable() -> None:
    assert RETRYABLE == {code for code, cls in ERRORS_BY_CODE.items() if cls.retryable}


@every_class
def test_an_error_is_public_under_the_name_of_its_class(cls: type[GreenroomError]) -> None:
    assert cls.__name__ in greenroom.__all__
    assert cls is getattr(greenroom, cls.__name__)


@every_class
def test_the_docstring_is_the_default_message(cls: type[GreenroomError]) -> None:
    error = cls()

    assert cls.__doc__
    assert " ".join(cls.__doc__.split()) == error.message
    assert f"[{cls.code}] {error.message}" == str(error)


@every_class
def test_an_error_pickles_with_all_it_holds(cls: type[GreenroomError]) -> None:
    error = cls("It broke.", details={"field": "x", "at": [1, None]}, provider_error={"status": 429})

    assert all_of(error) == all_of(pickle.loads(pickle.dumps(error)))


@every_class
def test_an_error_comes_back_from_its_record(cls: type[GreenroomError]) -> None:
    error = cls("It broke.", details={"field": "x"}, provider_error={"status": 429})

    assert all_of(error) == all_of(error_from_record(error.to_record()))


def test_a_record_leaves_out_what_is_not_there() -> None:
    assert {"code": "validation_error", "message": "No."} == ValidationError("No.").to_record()


def test_an_unknown_code_becomes_an_unknown_error_that_keeps_it() -> None:
    found = error_from_record({"code": "from_the_future", "message": "?", "details": {"a": 1}})

    assert (UnknownError, "?", {"a": 1, "code": "from_the_future"}) == (type(found), found.message, found.details)


def test_an_error_does_not_share_its_details_with_the_raiser() -> None:
    details = {"field": "x"}
    error = ValidationError(details=details)

    details["field"] = "y"

    assert {"field": "x"} == error.details


def test_the_root_is_no_code_of_its_own() -> None:
    assert GreenroomError not in ERRORS_BY_CODE.values()
    assert ErrorCategory.UNKNOWN == GreenroomError.category


def test_all_is_sorted_and_every_name_resolves() -> None:
    def place(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert sorted(set(greenroom.__all__), key=place) == greenroom.__all__
    assert [] == [name for name in greenroom.__all__ if getattr(greenroom, name, None) is None]
    assert set(greenroom.__all__) <= set(dir(greenroom))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Runtme"):
        _ = greenroom.Runtme
