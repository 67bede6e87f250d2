"""How an agent is told who pays, without a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from ....domain.errors import ProviderAuthenticationFailed
from .presets import preset_of_agent


def way_to_log_in(agent: str, methods: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> str:
    """The id of an authMethod that needs nobody, since a variable that it reads is set.

    ProviderAuthenticationFailed says which variables would do.
    """
    variables: list[str] = []
    for method in methods:
        needed = _variables(agent, method)
        if any(environment.get(name) for name in needed):
            return str(method.get("id"))
        variables += [name for name in needed if name not in variables]
    remedy = f"Set {' or '.join(variables)} for it" if variables else "Log it in by hand, in the session's home"
    ways = ", ".join(str(method.get("name") or method.get("id")) for method in methods)
    raise ProviderAuthenticationFailed(
        f"The agent {agent!r} wants to know who pays. {remedy} (provider options 'pass_env', 'env', 'home'). Its ways"
        f" to log in: {ways or 'none that it tells of'}.",
        details={"variables": variables},
    )


def _variables(agent: str, method: Mapping[str, Any]) -> tuple[str, ...]:
    """One of which must be set for this way; none: it needs a person."""
    if method.get("type") == "env_var":
        return tuple(str(one.get("name")) for one in method.get("vars") or ())
    preset = preset_of_agent(agent)
    return preset.key_methods.get(str(method.get("id")), ()) if preset else ()
