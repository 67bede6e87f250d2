"""Events as text: compact and verbose for people, JSON lines for programs."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from greenroom import Event, EventType
from greenroom.adapters.rendering.compact import CompactRenderer
from greenroom.adapters.rendering.event_text import one_line, short_model
from greenroom.adapters.rendering.paint import Paint
from greenroom.adapters.rendering.registry import EventFormat, new_renderer

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
RUN = "run_0000000000000000000000000000aaaa"
OTHER_RUN = "run_0000000000000000000000000000bbbb"


def an_event(event_type: EventType, data: Any = None, *, seq: int = 1, run_id: str | None = RUN) -> Event:
    return Event(
        seq=seq,
        id=f"evt_{seq}",
        session_id="ses_1",
        run_id=run_id,
        attempt=1 if run_id else None,
        type=event_type,
        timestamp=NOW,
        recorded_at=NOW,
        provider="scripted",
        data={} if data is None else data,
        metadata={},
    )


def streamed(text: str, *, run_id: str = RUN, **data: Any) -> Event:
    return an_event(EventType.MESSAGE_STREAMED, {"content": text, "kind": "text", **data}, run_id=run_id)


def compact(*events: Event) -> str:
    renderer = CompactRenderer()
    return "".join(renderer.render(event) for event in events)


@pytest.mark.parametrize("event_type", EventType)
@pytest.mark.parametrize("event_format", EventFormat)
def test_every_event_type_has_a_form_even_without_data(event_type: EventType, event_format: EventFormat) -> None:
    shown = new_renderer(event_format).render(an_event(event_type))

    assert shown.strip()
    assert "?:" not in shown


@pytest.mark.parametrize("event_type", EventType)
@pytest.mark.parametrize("event_format", EventFormat)
@pytest.mark.parametrize("data", [None, 7, {"content": 5, "kind": [], "tool_output": {1: b"x"}, "error": object()}])
def test_no_data_however_wrong_make_a_renderer_raise(
    event_type: EventType, event_format: EventFormat, data: object
) -> None:
    renderer = new_renderer(event_format)
    broken = an_event(event_type)
    object.__setattr__(broken, "data", data)

    assert renderer.render(broken)
    assert renderer.render(an_event(EventType.RUN_COMPLETED))


def test_jsonl_gives_each_event_back_on_a_line_of_its_own() -> None:
    events = [an_event(kind, {"text": "a\nb\u2028 æ"}, seq=seq) for seq, kind in enumerate(EventType, start=1)]
    renderer = new_renderer(EventFormat.JSONL)

    text = "".join(renderer.render(event) for event in events) + renderer.finish()

    assert [event.to_dict() for event in events] == [json.loads(line) for line in text.splitlines()]
    assert text.isascii()


def test_compact_keeps_the_tokens_of_a_run_on_one_line() -> None:
    shown = compact(
        an_event(EventType.RUN_STARTED, {"model": "claude-sonnet-5-5-20260101"}),
        an_event(EventType.TOOL_CALL_STARTED, {"tool_name": "weather"}),
        an_event(EventType.TOOL_CALL_COMPLETED, {"tool_name": "weather", "tool_output": {"sky": "grey"}}),
        an_event(EventType.TOKEN_USAGE_UPDATED, {"input_tokens": 10, "output_tokens": 5}),
        an_event(EventType.RUN_COMPLETED, {"stop_reason": "end_turn"}),
    )

    assert shown == 'aaaa r+ sonnet-5-5 t+weather t-weather tr:{"sky": "grey"} tk:10/5 r-:end\n'


def test_compact_shows_streamed_text_as_it_is_and_ends_its_line() -> None:
    shown = compact(an_event(EventType.RUN_STARTED), streamed("Hel"), streamed("lo"), an_event(EventType.RUN_COMPLETED))

    assert shown == "aaaa r+ >> Hello\naaaa r-\n"


def test_compact_begins_a_new_line_when_another_run_speaks() -> None:
    shown = compact(streamed("one"), streamed("two", run_id=OTHER_RUN), streamed("three"))

    assert shown == "aaaa >> one\nbbbb >> two\naaaa >> three"


def test_compact_tells_thinking_and_stderr_from_what_is_said() -> None:
    shown = compact(streamed("hm", kind="thinking"), streamed("yes"), streamed("oops", stream="stderr"))

    assert shown == "aaaa .. hm\naaaa >> yes\naaaa 2> oops"


def test_compact_names_the_error_of_a_failed_run() -> None:
    shown = compact(an_event(EventType.RUN_FAILED, {"error_code": "provider_error", "error_message": "It\nbroke."}))

    assert shown == "aaaa ! provider_error: It broke.\n"


def test_compact_counts_what_it_has_shown() -> None:
    renderer = CompactRenderer()
    renderer.render(an_event(EventType.TOOL_CALL_STARTED))

    assert renderer.finish() == "\n1 events, 1 tools\n"


def test_verbose_gives_each_event_one_line_with_all_that_it_carries() -> None:
    renderer = new_renderer(EventFormat.VERBOSE)

    shown = renderer.render(an_event(EventType.MESSAGE_RECEIVED, {"role": "assistant", "content": "a\nb"}, seq=7))

    assert shown == '    7 03:04:05.678000 aaaa [message_received] role="assistant" content="a\\nb"\n'


@pytest.mark.parametrize("event_format", [EventFormat.COMPACT, EventFormat.VERBOSE])
def test_control_characters_do_not_reach_the_terminal(event_format: EventFormat) -> None:
    renderer = new_renderer(event_format)

    shown = renderer.render(streamed("a\x1b[2Jb\x9b\r\x07")) + renderer.render(
        an_event(EventType.MESSAGE_RECEIVED, {"content": "\x1b]0;title\x07"})
    )

    assert not {"\x1b", "\x9b", "\r", "\x07"} & set(shown)


def test_what_is_no_terminal_gets_no_colours() -> None:
    assert not Paint.for_stream(io.StringIO()).colored
    assert Paint(colored=False)("text", "red") == "text"


def test_colours_are_there_for_those_who_want_them() -> None:
    assert Paint(colored=True)("text", "red") == "\x1b[31mtext\x1b[0m"


def test_long_values_are_cut_and_say_so() -> None:
    assert one_line("word " * 100, 9) == "word word..."
    assert one_line({"a": [1, 2]}, 40) == '{"a": [1, 2]}'
    assert one_line(" " * 1_000 + "late", 10) == "..."


def test_models_are_shown_without_their_makers() -> None:
    assert short_model("claude-sonnet-5-5-20260101") == "sonnet-5-5"
    assert short_model("anthropic.claude-opus-5-v1") == "opus-5-v1"
