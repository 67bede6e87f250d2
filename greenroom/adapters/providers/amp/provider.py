"""Kind `amp`: the Amp CLI, one process a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ....domain.capability import Capability, CapabilityType
from ....domain.provider import ProviderRequest
from ..agents.prompt import prompt_of
from ..agents.provider import AgentProvider
from ..agents.turn import AgentTurn
from .options import AmpLaunch, AmpOptions, check_amp_options

if TYPE_CHECKING:
    from .client import AmpTurn


class AmpProvider(AgentProvider):
    """Runs that go on with one thread go one after the other; all others may be under way at once.

    Amp asks nobody: permission modes and policies are rules that it is started with, see `permission_rules`. A call
    that they reject ends denied. A message for a run under way is taken up when the turn has ended.
    """

    CAPABILITIES = (
        Capability(name="streaming", type=CapabilityType.SAMPLING),
        Capability(name="interrupt", type=CapabilityType.SAMPLING),
        Capability(name="steer", type=CapabilityType.SAMPLING),
        Capability(name="tool_use", type=CapabilityType.TOOL),
        Capability(name="bash", type=CapabilityType.TOOL),
        Capability(name="mcp", type=CapabilityType.TOOL),
        Capability(name="file_operations", type=CapabilityType.FILE_ACCESS),
        Capability(name="code_execution", type=CapabilityType.CODE_EXECUTION),
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._busy: set[AmpTurn] = set()

    @staticmethod
    def check_options(options: Mapping[str, Any], *, field: str) -> AmpOptions:
        """The parsed options; ValidationError names the field that is wrong."""
        return check_amp_options(options, field=field)

    async def begin(self, request: ProviderRequest) -> AgentTurn:
        from .client import AmpTurn  # noqa: PLC0415  not before there is something to do

        launch = AmpLaunch.of(request, self.check_options(request.options, field="options"))
        await self._thread_is_free(launch.thread_id)
        turn = AmpTurn(request, launch, self._busy.discard)
        self._busy.add(turn)
        await turn.start(prompt_of(request))
        return turn

    async def close_clients(self) -> None:
        """There are none between runs."""

    async def _thread_is_free(self, thread_id: str | None) -> None:
        while thread_id is not None:
            using = next((turn for turn in self._busy if turn.thread_id == thread_id), None)
            if using is None:
                return
            await using.over.wait()
