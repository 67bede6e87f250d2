"""The demo: two slots, some runs, two kills, and one stream that goes on as if nothing had happened."""

import asyncio
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from ..adapters.rendering.compact import CompactRenderer
from ..adapters.rendering.event_text import short_id
from ..adapters.rendering.paint import Paint
from ..domain.event import RUN_ENDINGS, Event, EventType
from ..domain.run import Run, RunStatus
from .cli_errors import FAILED, OK
from .cli_options import DataDir, Debug, invocation_of
from .cli_runtime import opened_runtime
from .plain_table import table

if TYPE_CHECKING:
    from ..actors.runtime import Runtime
    from ..actors.session_handle import SessionHandle

_STORY = (
    *("The house lights dim.", "Somebody coughs.", "The curtain rises.", "A door opens slowly.", "Nobody comes in."),
    *("A telephone rings.", "It rings again.", "A hand picks it up.", "It was for you.", "The curtain falls."),
)
_STORY_DELAY_S = 0.3
_COUNT = 'for act in 1 2 3 4 5 6 7 8 9; do echo "act $act of 9"; sleep 0.35; done'
_CHUNKS_BEFORE_KILL = 3
"""Of each of the two runs in flight: far enough in that a kill hurts, far enough from the end that it hits."""


_LEGEND = "q+ queued, << asked, r+ started, >> says, t+ t- tool call, msg whole message, tk tokens in/out, r- ended."


def _story_options() -> dict[str, Any]:
    width = max(len(line) for line in _STORY) + 1  # the script cuts its reply into pieces of equal length
    reply = "".join(line.ljust(width) for line in _STORY)
    return {"reply": reply, "chunks": len(_STORY), "chunk_delay_s": _STORY_DELAY_S}


_RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Tell a story.", "scripted", _story_options()),
    (_COUNT, "shell", {}),
    (
        "What is the weather?",
        "scripted",
        {
            "reply": "Rain, then applause.",
            "chunks": 4,
            "chunk_delay_s": 0.1,
            "tool_calls": [{"name": "weather", "input": {"city": "Oslo"}, "output": "rain", "delay_s": 0.3}],
        },
    ),
    ("echo the stage is empty; uname -s", "shell", {}),
)


def demo(context: typer.Context, data_dir: DataDir = None, debug: Debug = False) -> int:
    """Show what Greenroom does: needs no key, and kills two of its own processes on the way."""
    _say("Starting a runtime (Ray and an event store; some seconds) ...")
    with opened_runtime(invocation_of(context)) as runtime:
        return Demo(runtime).play()


@dataclass
class Demo:
    """One performance: what it has shown, and how far it is."""

    runtime: "Runtime"
    seqs: list[int] = field(default_factory=list[int])
    chunks: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    """Streamed pieces by run and attempt."""
    running: dict[str, int] = field(default_factory=dict[str, int])
    """Attempt of each run that is in flight."""
    left: set[str] = field(default_factory=set[str])
    kills: list[str] = field(default_factory=list[str])

    def play(self) -> int:
        """Show it all; returns the exit code."""
        self._paint = Paint.for_stream(sys.stdout)
        self._renderer = CompactRenderer(self._paint)
        session = self.runtime.open_session(
            agent_id="demo", provider="scripted", max_concurrent_runs=2, run_defaults={"on_crash": "retry"}
        )
        _say(f"Session {session.session_id}: {len(_RUNS)} runs, two at a time. Each line begins with its run;")
        _say(_LEGEND + "\n")
        asyncio.run(self._follow(session))
        return self._conclude(session.session_id)

    async def _follow(self, session: "SessionHandle") -> None:
        for text, provider, options in _RUNS:
            run = {"provider": provider, "provider_options": options}
            self.left.add(await session.submit_run.remote(text, run))
        stream = session.follow()
        async for event in stream:
            self._show(event)
            self._note(event)
            if self._is_time_for_kill():
                self._kill(session.session_id)
            if event.type in RUN_ENDINGS and not self.left:
                await session.complete.remote()
        sys.stdout.write(self._renderer.finish())
        self._stored = [event.seq async for event in session.follow(follow=False)]

    def _show(self, event: Event) -> None:
        sys.stdout.write(self._renderer.render(event))
        sys.stdout.flush()

    def _note(self, event: Event) -> None:
        """Keep account of the event."""
        self.seqs.append(event.seq)
        if event.run_id is None:
            return
        attempt = event.attempt or 1
        if event.type is EventType.RUN_STARTED:
            self.running[event.run_id] = attempt
        elif event.type is EventType.MESSAGE_STREAMED:
            self.chunks[event.run_id, attempt] += 1
        elif event.type in RUN_ENDINGS:
            self.running.pop(event.run_id, None)
            self.left.discard(event.run_id)

    def _is_time_for_kill(self) -> bool:
        """The session's process in the first attempt of two runs, the store's in the second."""
        attempt = len(self.kills) + 1
        return attempt <= len(_VICTIMS) and [
            self.chunks[run_id, attempt] >= _CHUNKS_BEFORE_KILL
            for run_id, running in self.running.items()
            if running == attempt
        ] == [True, True]

    def _kill(self, session_id: str) -> None:
        kind, what = _VICTIMS[len(self.kills)]
        pid = next(
            actor["pid"]
            for actor in self.runtime.stats().actors
            if actor["kind"] == kind and (kind == "EventStore" or session_id in actor["session_ids"])
        )
        os.kill(pid, signal.SIGKILL)
        self.kills.append(what)
        told = f"--- kill -9 {pid}: {what}, with {len(self.running)} runs in flight ---"
        sys.stdout.write(self._renderer.break_line() + self._paint(told, "bold yellow") + "\n")
        sys.stdout.flush()

    def _conclude(self, session_id: str) -> int:
        runs = self.runtime.list_runs(session_id=session_id)
        whole = self.seqs == list(range(1, len(self.seqs) + 1)) == self._stored
        ended = all(run.status is RunStatus.COMPLETED for run in runs)
        _say("\n" + table(("RUN", "STATUS", "ATTEMPTS", "WHAT"), [_row(run) for run in runs]))
        for what in self.kills:
            _say(f"Killed on the way: {what}.")
        _say(
            f"The stream that was open all the time: seq 1..{len(self.seqs)}, no gap, no repeat, the same as is stored."
            if whole
            else f"The stream has a gap or a repeat: {self.seqs}; stored are {self._stored}"
        )
        if not ended:
            _say("Not every run completed; see above.")
        _say(f"\nEverything is in {self.runtime.data_dir}. Look again:")
        where = f" --data-dir {self.runtime.data_dir}"
        _say(f"  greenroom show {session_id}{where}\n  greenroom events {session_id}{where}")
        return OK if whole and ended and len(self.kills) == len(_VICTIMS) else FAILED


_VICTIMS = (("SessionServer", "the session's process"), ("EventStore", "the event store's process"))
"""Class of the actor to kill, and what to call it; in that order."""


def _row(run: Run) -> tuple[str, ...]:
    status = f"{run.status}: {run.error['code']}" if run.error else str(run.status)
    return short_id(run.id), status, str(run.attempt), run.input["messages"][0]["content"]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
