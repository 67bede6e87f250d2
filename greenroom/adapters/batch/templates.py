"""The input of a run from the columns of a row, by a Jinja2 template in its sandbox."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...domain.errors import ValidationError

MAX_RENDERED_CHARACTERS = 16 * 1024 * 1024


def renderer(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from a row's columns to text. What the template names and the row has not, or has as null, is an error
    of the row, unless the template says otherwise (`{{ name | default("you") }}`). ValidationError if the template
    itself is wrong."""
    from jinja2 import StrictUndefined, TemplateError  # noqa: PLC0415  few batches have a template
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        compiled = environment.from_string(template)
    except TemplateError as exc:
        raise ValidationError(f"The template is wrong: {exc}.", details={"field": "template"}) from exc

    def render(values: Mapping[str, Any]) -> str:
        try:
            return _bounded(compiled.generate({name: value for name, value in values.items() if value is not None}))
        except ValidationError:
            raise
        except Exception as exc:  # a template can raise whatever the values in it do
            raise ValidationError(f"The template cannot be filled in: {exc}.", details={"field": "template"}) from exc

    return render


def _bounded(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_RENDERED_CHARACTERS:
            raise ValidationError(
                f"The template makes more than {MAX_RENDERED_CHARACTERS} characters of this row.",
                details={"field": "template"},
            )
        kept.append(piece)
    return "".join(kept)


def template_text(given: str | Path) -> str:
    """The template itself: a path is read, and text with braces is one. ValidationError where it is neither."""
    text = str(given)
    if isinstance(given, str) and ("{{" in text or "{%" in text):
        return text
    try:
        return Path(given).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValidationError(
            f"The template {text!r} is no file that can be read, and has no '{{{{' either.",
            details={"field": "template"},
        ) from exc
