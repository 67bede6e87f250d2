"""A session of an agent: a conversation, and the settings that the agent offers for it."""

from typing import Any, Protocol

from ....domain.errors import CapabilityNotSupported, ProviderInvalidRequest
from ....domain.permission_mode import PermissionMode
from .connection import AcpConnection, Params, RequestFailed
from .errors import error_of_answer
from .modes import SessionSettings, mode_id
from .options import AcpOptions


class Hearer(Protocol):
    """A turn of a session, which hears what is said of it."""

    async def heard(self, params: Params) -> None: ...

    async def permission_asked(self, request_id: object, params: Params) -> None: ...

    def withdrawn(self, request_id: object) -> bool:
        """The agent wants no answer any more. False: it has not asked this turn, or has its answer."""
        ...


class AcpSession:
    """A conversation of the agent; it takes one prompt at a time."""

    def __init__(
        self, connection: AcpConnection, agent_name: str, session_id: str, answer: Params, *, cost_usd: float | None
    ) -> None:
        """`answer` is that of session/new or session/load."""
        self._connection = connection
        self._agent_name = agent_name
        self.session_id = session_id
        self.settings = SessionSettings.of(answer)
        self.cost_usd = cost_usd
        """What it has cost so far; None: nobody knows."""
        self.turn: Hearer | None = None
        self.has_begun = False
        """Whether there was a turn."""
        self._initial_mode = self.settings.mode.current if self.settings.mode else None

    async def prepare(self, mode: PermissionMode, model: str | None, options: AcpOptions) -> None:
        """Have it as the next run wants it, whatever the one before did. CapabilityNotSupported for what it has not."""
        for config_id, value in options.config_options.items():
            if config_id not in self.settings.config_ids:
                raise CapabilityNotSupported(
                    f"config_options.{config_id}: the agent offers no such setting; it has"
                    f" {', '.join(sorted(self.settings.config_ids)) or 'none'}.",
                    details={"field": f"config_options.{config_id}"},
                )
            if config_id in self.settings.mode_ids:
                raise CapabilityNotSupported(
                    f"config_options.{config_id}: it chooses the mode; use the permission_mode of the run for it.",
                    details={"field": f"config_options.{config_id}"},
                )
            await self._set_option(config_id, value)
        if options.config_options:
            self.settings = self.settings.with_mode(None)  # which they may have changed
        if model is not None:
            await self._set_model(model)
        await self._set_mode(mode, options)

    async def _set_model(self, model: str) -> None:
        choice = self.settings.model
        if choice is None:
            raise CapabilityNotSupported(
                "The agent offers no choice of models over the protocol; configure it in its own way.",
                details={"field": "model"},
            )
        if choice.config_id is not None:
            await self._set_option(choice.config_id, model, field="model")
        else:
            await self._set("session/set_model", {"modelId": model}, field="model")

    async def _set_mode(self, mode: PermissionMode, options: AcpOptions) -> None:
        choice = self.settings.mode
        wanted = mode_id(mode, choice, agent=self._agent_name, given=options.modes, initial=self._initial_mode)
        if wanted is None or choice is None or choice.current == wanted:
            return
        self.settings = self.settings.with_mode(None)
        if choice.config_id is not None:
            await self._set_option(choice.config_id, wanted, field="permission_mode")
        else:
            await self._set("session/set_mode", {"modeId": wanted}, field="permission_mode")
        self.settings = self.settings.with_mode(wanted)

    async def _set_option(self, config_id: str, value: str | bool, *, field: str | None = None) -> None:
        params: dict[str, Any] = {"configId": config_id, "value": value}
        if isinstance(value, bool):
            params["type"] = "boolean"
        await self._set("session/set_config_option", params, field=field or f"config_options.{config_id}")

    async def _set(self, method: str, params: Params, *, field: str) -> None:
        try:
            await self._connection.request(method, {"sessionId": self.session_id, **params})
        except RequestFailed as exc:
            said = error_of_answer(exc.error).message
            raise ProviderInvalidRequest(
                f"The agent does not take this {field}: {said}", details={"field": field}
            ) from exc
