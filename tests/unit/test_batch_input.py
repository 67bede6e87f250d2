"""What is made of the columns of a row."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from greenroom.adapters.batch.templates import renderer, template_text
from greenroom.domain.batch_input import RowLayout, RowReader
from greenroom.domain.errors import GreenroomError, ValidationError

SAID = {"messages": [{"role": "user", "content": "x"}]}


def reader(template: str | None = None, **layout: Any) -> RowReader:
    render = renderer(template) if template is not None else None
    return RowReader(RowLayout(**layout), render=render, tool_names=["add", "sub"], max_input_bytes=1_000)


@pytest.mark.parametrize(
    ("row", "inputs"),
    [
        ({"id": 1, "prompt": "x"}, ("x",)),
        ({"id": 1, "messages": [{"role": "user", "content": "x"}]}, (SAID,)),
        ({"id": 1, "prompt": [{"content": "x"}]}, ({"messages": [{"content": "x"}]},)),
        ({"id": 1, "prompt": {"prompt": "x"}}, ({"prompt": "x"},)),
        ({"id": 1, "prompt": None, "messages": [{"content": "y"}]}, ({"messages": [{"content": "y"}]},)),
        ({"id": 1, "prompt": "ignored", "turns": ["a", {"prompt": "b"}]}, ("a", {"prompt": "b"})),
        ({"id": 1, "prompt": "x", "turns": None}, ("x",)),
    ],
)
def test_the_input_is_found_where_it_usually_is(row: dict[str, Any], inputs: tuple[Any, ...]) -> None:
    assert inputs == reader().read(row).inputs


def test_columns_can_be_named() -> None:
    read = reader(key="n", prompt="q").read({"n": 7, "q": "x", "prompt": "no", "turns": ["no"]})

    assert ("7", ("x",)) == (read.key, read.inputs)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"id": 1}, "prompt"),
        ({"id": 1, "prompt": None}, "prompt"),
        ({"id": 1, "prompt": 3}, "prompt"),
        ({"id": 1, "prompt": ""}, "input"),
        ({"id": 1, "prompt": "x" * 1_001}, "input"),
        ({"id": 1, "prompt": []}, "input.messages"),
        ({"id": 1, "prompt": [{"role": "boss", "content": "x"}]}, "input.messages[0].role"),
        ({"id": 1, "turns": []}, "turns"),
        ({"id": 1, "turns": "x"}, "turns"),
        ({"id": 1, "turns": [None]}, "turns[0]"),
        ({"id": 1, "turns": ["x"] * 1_001}, "turns"),
        ({"id": True, "prompt": "x"}, "id"),
        ({"id": 1.5, "prompt": "x"}, "id"),
        ({"id": {"a": 1}, "prompt": "x"}, "id"),
        ({"id": "", "prompt": "x"}, "id"),
        ({"id": "x" * 1_025, "prompt": "x"}, "id"),
        ({"id": 1, "prompt": "x", "tools": "add"}, "tools"),
        ({"id": 1, "prompt": "x", "tools": ["os.system"]}, "tools"),
    ],
)
def test_a_row_that_asks_for_nothing_that_can_be_done_is_told_which_column_is_wrong(
    row: dict[str, Any], field: str
) -> None:
    with pytest.raises(GreenroomError) as caught:
        reader().read(row)

    assert field == caught.value.details["field"]


@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=4))
def test_without_a_key_a_row_is_named_by_what_it_holds_in_whatever_order(row: dict[str, Any]) -> None:
    row.pop("id", None)
    named = reader()

    assert named.key(row) == named.key(dict(reversed(list(row.items()))))
    assert named.key(row) != named.key({**row, "more": 1})


def test_a_template_is_filled_in_and_says_what_is_missing() -> None:
    read = reader("{{ name }} has {{ n * 2 }}{% for one in list %}, {{ one }}{% endfor %}")

    assert ("Ada has 6, x, y",) == read.read({"id": 1, "name": "Ada", "n": 3, "list": ["x", "y"]}).inputs
    rows: list[dict[str, object]] = [{"name": "Ada"}, {"name": "Ada", "n": None}, {"name": "A", "n": [], "list": 3}]
    for row in rows:
        with pytest.raises(ValidationError, match="cannot be filled in"):
            read.read({"id": 1, **row})


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ x.append(1) }}", "{% include '/etc/passwd' %}", "{{ 1 / 0 }}"]
)
def test_a_template_cannot_get_out_of_its_sandbox(template: str) -> None:
    with pytest.raises(ValidationError, match="cannot be filled in"):
        reader(template).read({"id": 1, "x": [1]})


def test_a_template_may_be_a_file_and_must_be_one_or_the_other(tmp_path: Any) -> None:
    (tmp_path / "t.j2").write_text("Hello {{ name }}")

    assert "Hello {{ name }}" == template_text(str(tmp_path / "t.j2"))
    with pytest.raises(ValidationError, match="no file that can be read"):
        template_text(str(tmp_path / "none.j2"))
    with pytest.raises(ValidationError, match="The template is wrong"):
        renderer("{{ a")


def test_a_column_that_only_another_row_has_does_not_change_which_row_it_is() -> None:
    named = reader()

    assert (
        named.key({"prompt": "x"}) == named.key({"prompt": "x", "more": None}) == named.key({"id": None, "prompt": "x"})
    )
    for key in ("a\0b", "\ud800"):
        with pytest.raises(ValidationError, match="cannot be stored"):
            named.key({"id": key})
