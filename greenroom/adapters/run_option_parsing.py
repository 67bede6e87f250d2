"""Run options from what a caller gave, over what the session says."""

from collections.abc import Mapping
from typing import Any

from ..domain.errors import CapabilityNotSupported, ValidationError
from ..domain.policy import parse_policy
from ..domain.run_options import DEFAULT_RUN_OPTIONS, LATER_OPTIONS, RunOptions, given_options, merge_options
from .json_safety import require_json_safe


def load_parser() -> None:
    """Load and build what the first options of a process need (50 ms), so that no run has to."""
    parse_run_options({}, {"metadata": {}})


def parse_run_options(
    defaults: Mapping[str, Any], given: Mapping[str, Any] | RunOptions | None, *, field: str = "options"
) -> RunOptions:
    """The run's options. Raises ValidationError that names the field; CapabilityNotSupported for what comes later."""
    if isinstance(given, RunOptions):
        given = given_options(given)
    if given is not None and not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  callers of an actor are not type-checked
        raise ValidationError(f"{field} must be a mapping, not {type(given).__name__}.", details={"field": field})
    if not given and not defaults:
        return DEFAULT_RUN_OPTIONS
    merged = merge_options(defaults, given or {})
    for name in merged:
        if name in LATER_OPTIONS:
            raise CapabilityNotSupported(
                f"{field}.{name} is not in this version.", details={"field": f"{field}.{name}"}
            )
    for index, policy in enumerate(merged.get("policies", ())):
        parse_policy(policy, field=f"{field}.policies[{index}]")
    for name in ("metadata", "provider_options"):
        require_json_safe(merged.get(name), field=f"{field}.{name}")
    from .option_parsing import parse_options  # noqa: PLC0415  loads pydantic: a session without options need not

    parsed = parse_options(RunOptions, merged, field=field)
    for name, value in given_options(parsed).items():
        require_json_safe(value, field=f"{field}.{name}")
    return parsed
