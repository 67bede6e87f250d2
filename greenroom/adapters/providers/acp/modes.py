"""The modes and settings that an agent offers for a session, as it said when the session began."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from ....domain.errors import CapabilityNotSupported
from ....domain.permission_mode import PermissionMode
from .presets import ModeNames, modes_of_agent


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting: what may be chosen, and what is."""

    current: str | None
    offered: frozenset[str]
    config_id: str | None
    """Its id among the configOptions; None: it has a method of its own."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Of one session. Agents tell of modes and models in one of two ways, or in both."""

    mode: Choice | None
    model: Choice | None
    config_ids: frozenset[str]
    mode_ids: frozenset[str]
    """Those of them that choose a mode."""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "SessionSettings":
        """From the answer of session/new, session/load."""
        options = {str(option.get("id")): option for option in _mappings(answer.get("configOptions"))}
        return cls(
            mode=_own_choice(answer.get("modes"), "availableModes", "id", "currentModeId")
            or _config_choice(options, "mode"),
            model=_config_choice(options, "model")
            or _own_choice(answer.get("models"), "availableModels", "modelId", "currentModelId"),
            config_ids=frozenset(options),
            mode_ids=frozenset(one for one, option in options.items() if "mode" in (one, option.get("category"))),
        )

    def updated(self, update: Mapping[str, Any]) -> "SessionSettings":
        """After a session/update of any kind."""
        kind = update.get("sessionUpdate")
        if kind == "current_mode_update":
            return self.with_mode(update.get("currentModeId"))
        if kind == "config_option_update":
            options = {str(option.get("id")): option for option in _mappings(update.get("configOptions"))}
            mode = _config_choice(options, "mode")
            return self if mode is None else self.with_mode(mode.current)
        return self

    def with_mode(self, mode_id: str | None) -> "SessionSettings":
        """With this mode as the current one; None: nobody knows which it is."""
        return self if self.mode is None else replace(self, mode=replace(self.mode, current=mode_id))


def mode_id(
    mode: PermissionMode, choice: Choice | None, *, agent: str, given: Mapping[PermissionMode, str], initial: str | None
) -> str | None:
    """What the agent calls the mode; None: there is nothing to be set.

    `given` are names that the options have; `initial` is the mode that the session began in. CapabilityNotSupported for
    a mode that the agent does not offer: it is never replaced by a looser one.
    """
    wanted = PermissionMode.DEFAULT if mode is PermissionMode.FULL_AUTO else mode
    known: ModeNames = modes_of_agent(agent)
    skips = PermissionMode.DANGEROUSLY_SKIP_PERMISSIONS
    if wanted is not skips and given.get(wanted) in known.get(skips, ()):
        raise CapabilityNotSupported(
            f"modes.{wanted.value}: with {given[wanted]!r} the agent {agent!r} asks for nothing; run with"
            f" permission_mode={skips.value!r} if that is meant.",
            details={"field": f"modes.{wanted.value}"},
        )
    names = (given[wanted],) if wanted in given else tuple(known.get(wanted, ()))
    offered = choice.offered if choice else frozenset[str]()
    found = next((name for name in names if name in offered), None)
    if found is not None:
        return found
    if wanted is PermissionMode.DEFAULT and wanted not in given and (choice is None or not _is_known(agent)):
        return initial
    raise CapabilityNotSupported(
        f"The agent {agent!r} has no mode for permission_mode {mode.value!r} now; it offers"
        f" {', '.join(sorted(offered)) or 'none'}. Name one with the provider option 'modes', or run in another mode.",
        details={"field": "permission_mode", "offered": sorted(offered)},
    )


def _is_known(agent: str) -> bool:
    return modes_of_agent(agent) is not modes_of_agent("")


def _own_choice(given: object, offered: str, id_key: str, current: str) -> Choice | None:
    if not isinstance(given, dict):
        return None
    said = cast("dict[str, Any]", given)
    ids = frozenset(str(one.get(id_key)) for one in _mappings(said.get(offered)))
    return Choice(said.get(current), ids, None) if ids else None


def _config_choice(options: Mapping[str, Mapping[str, Any]], category: str) -> Choice | None:
    option = options.get(category) or next(
        (one for one in options.values() if one.get("category") == category and one.get("type") == "select"), None
    )
    if option is None:
        return None
    return Choice(option.get("currentValue"), frozenset(_values(option.get("options"))), str(option.get("id")))


def _values(options: object) -> list[str]:
    """Options are a list, or groups of lists."""
    values: list[str] = []
    for one in _mappings(options):
        values += _values(one["options"]) if "options" in one else [str(one.get("value"))]
    return values


def _mappings(given: object) -> list[dict[str, Any]]:
    items = cast("list[object]", given) if isinstance(given, list) else []
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]
