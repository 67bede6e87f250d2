"""The options of kind `anthropic`, and the key that they point at. Light: nothing here loads the SDK."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ....domain.errors import ProviderAuthenticationFailed, ValidationError
from ...option_parsing import parse_options

DEFAULT_MODEL = "claude-sonnet-5-5"
MIN_THINKING_TOKENS = 1024
"""The least budget that the API takes."""

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[\x21-\x7e]+")
_THINKING_KEYS = frozenset({"type", "budget_tokens", "display"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AnthropicOptions:
    """How to reach the Messages API, and what to ask of it."""

    model: str | None = None
    base_url: str | None = None
    """None: ANTHROPIC_BASE_URL if set, else Anthropic's own."""
    api_key_env: str = "ANTHROPIC_API_KEY"
    """Name of the environment variable that holds the key; read anew for each attempt."""
    api_key_file: str | None = None
    """Path of a file that holds the key, instead of the variable; read anew for each attempt."""
    max_tokens: Annotated[int, Field(gt=0)] = 16_000
    """Most tokens of one answer, thinking included."""
    thinking: bool | dict[str, Any] | None = None
    """None: as the model does by itself. True: as much as the model sees fit. False: not at all.
    `{"budget_tokens": n}`: at most so many; or a `thinking` mapping of the API as it is."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 120.0
    """Longest silence of the connection, in seconds; the API sends pings while the model works."""
    max_turns: Annotated[int, Field(gt=0)] = 50
    """Most answers of the model in one attempt, when the run itself sets none."""


def check_anthropic_options(options: Mapping[str, Any], *, field: str) -> AnthropicOptions:
    """The parsed options; ValidationError names the field that is wrong, and never repeats what may be a key."""
    parsed = parse_options(AnthropicOptions, options, field=field)
    if not _VARIABLE_NAME.fullmatch(parsed.api_key_env):
        raise _refusal(f"{field}.api_key_env", "must be the name of an environment variable, not the key itself")
    if parsed.base_url is not None and not parsed.base_url.startswith(("http://", "https://")):
        raise _refusal(f"{field}.base_url", "must begin with http:// or https://")
    _check_thinking(parsed, f"{field}.thinking")
    return parsed


def thinking_argument(thinking: bool | dict[str, Any] | None) -> dict[str, Any] | None:
    """The option in the API's own form; None: say nothing of it."""
    if thinking is None:
        return None
    if isinstance(thinking, bool):
        return {"type": "adaptive" if thinking else "disabled"}
    return {"type": "enabled" if "budget_tokens" in thinking else "adaptive", **thinking}


def read_api_key(options: AnthropicOptions) -> str:
    """The key; ProviderAuthenticationFailed says where it was looked for and what to do, never what was found."""
    if options.api_key_file is not None:
        place, remedy = f"file {options.api_key_file}", "Write the key, and nothing else, to that file"
        key = _file_text(options.api_key_file)
    else:
        place = f"environment variable {options.api_key_env}"
        remedy = (
            f"Set {options.api_key_env} where the session runs, or name another variable with api_key_env, "
            "or a file with api_key_file"
        )
        key = os.environ.get(options.api_key_env, "")
    details = {"api_key_env": options.api_key_env, "api_key_file": options.api_key_file}
    key = key.strip()
    if not key:
        raise ProviderAuthenticationFailed(f"There is no API key in {place}. {remedy}.", details=details)
    if not _KEY.fullmatch(key):  # the HTTP client would quote it in its complaint
        raise ProviderAuthenticationFailed(
            f"What stands in {place} is no API key: it has blanks or characters that no key has. {remedy}.",
            details=details,
        )
    return key


def _file_text(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _check_thinking(options: AnthropicOptions, field: str) -> None:
    thinking = options.thinking
    if thinking is None or isinstance(thinking, bool):
        return
    for key in thinking:
        if key not in _THINKING_KEYS:
            raise _refusal(f"{field}.{key}", f"is not known; known are: {', '.join(sorted(_THINKING_KEYS))}")
    budget = thinking.get("budget_tokens", MIN_THINKING_TOKENS)
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < MIN_THINKING_TOKENS:
        raise _refusal(f"{field}.budget_tokens", f"must be a whole number, at least {MIN_THINKING_TOKENS}")
    if "budget_tokens" in thinking and budget >= options.max_tokens:
        raise _refusal(f"{field}.budget_tokens", f"must be less than max_tokens, which is {options.max_tokens}")


def _refusal(field: str, reason: str) -> ValidationError:
    return ValidationError(f"{field} {reason}.", details={"field": field})
