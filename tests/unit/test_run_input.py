"""Inputs of runs: three forms in, one form kept, everything else refused by the name of its field."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.domain.errors import ValidationError
from greenroom.domain.run_input import Message, Role, messages_to_input, parse_input

texts = st.text(min_size=1).filter(lambda text: bool(text.strip()))
message_lists = st.lists(st.builds(Message, st.sampled_from(Role), texts), min_size=1, max_size=5)


def test_text_and_prompt_and_one_message_are_the_same_input() -> None:
    expected = (Message(Role.USER, "Hello!"),)

    assert expected == parse_input("Hello!")
    assert expected == parse_input({"prompt": "Hello!"})
    assert expected == parse_input({"messages": [{"role": "user", "content": "Hello!"}]})


def test_a_message_without_a_role_is_the_users() -> None:
    assert (Message(Role.USER, "Hi."),) == parse_input({"messages": [{"content": "Hi."}]})


def test_roles_are_taken_in_any_case() -> None:
    assert (Message(Role.ASSISTANT, "Hi."),) == parse_input({"messages": [{"role": "Assistant", "content": "Hi."}]})


@given(message_lists)
def test_messages_keep_their_order_and_come_back_from_the_form_that_is_kept(messages: list[Message]) -> None:
    assert tuple(messages) == parse_input(messages_to_input(messages))


@pytest.mark.parametrize(
    ("given_input", "field"),
    [
        (None, "input"),
        (7, "input"),
        (b"Hello!", "input"),
        ([], "input"),
        ("", "input"),
        (" \n", "input"),
        ("\ud800", "input"),
        ({}, "input"),
        ({"prompt": "a", "messages": [{"content": "b"}]}, "input"),
        ({"promt": "a"}, "input.promt"),
        ({"prompt": "a", "extra": 1}, "input.extra"),
        ({"prompt": ""}, "input.prompt"),
        ({"prompt": None}, "input.prompt"),
        ({"prompt": ["a"]}, "input.prompt"),
        ({"messages": []}, "input.messages"),
        ({"messages": "Hello!"}, "input.messages"),
        ({"messages": b"Hello!"}, "input.messages"),
        ({"messages": {"role": "user", "content": "a"}}, "input.messages"),
        ({"messages": ["Hello!"]}, "input.messages[0]"),
        ({"messages": [{"content": "a"}, {"content": "b", "name": "c"}]}, "input.messages[1].name"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "input.messages[0].role"),
        ({"messages": [{"role": None, "content": "a"}]}, "input.messages[0].role"),
        ({"messages": [{"role": "user"}]}, "input.messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "input.messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "\t"}]},
            "input.messages[1].content",
        ),
        ({"messages": [{"role": "user", "content": "a\udfff"}]}, "input.messages[0].content"),
    ],
)
def test_a_malformed_input_is_refused_by_the_name_of_its_field(given_input: Any, field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_input(given_input)

    assert field == refused.value.details["field"]
    assert refused.value.message.startswith(f"{field} ")


def test_the_size_counts_in_bytes_over_all_messages() -> None:
    messages = {"messages": [{"content": "é" * 5}, {"content": "a" * 5}]}

    assert 2 == len(parse_input(messages, max_bytes=15))
    with pytest.raises(ValidationError) as refused:
        parse_input(messages, max_bytes=14)

    assert {"field": "input", "bytes": 15, "max_bytes": 14} == refused.value.details
