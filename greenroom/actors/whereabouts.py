"""Where a session is served, as far as a handle knows it: asked for anew whenever it is lost."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions

from .actor_states import actor_is_dead
from .ray_errors import raise_bare

_LOOK_AGAIN_S = 2.0
"""How often a handle in use asks where its session is: by way of an actor that has it no more a call takes longer."""


class Whereabouts:
    """The actor that has a session. Any thread may ask."""

    def __init__(self, session_id: str, directory: Callable[[], Any], actor: Any = None) -> None:
        self._session_id = session_id
        self._directory = directory
        self._lock = threading.Lock()
        self._actor = actor
        self._locating: Any = None
        self._looking: Any = None
        self._looked_at = time.monotonic()

    def known(self) -> Any:
        """The actor, if it is known and lives; else asks for it, and meanwhile None. Never waits."""
        with self._lock:
            if self._actor is not None and not actor_is_dead(self._actor):
                self._look_again()
                return self._actor
            self._actor = None
            locating = self._ask()
        ready, _ = ray.wait([locating], timeout=0)
        return self._answer(locating) if ready else None

    def found(self) -> Any:
        """The actor, waiting for the Directory's answer. The Directory's error, where the session is gone."""
        actor = self.known()
        if actor is not None:
            return actor
        with self._lock:
            locating = self._ask()
        return self._answer(locating)

    def _ask(self) -> Any:
        if self._locating is None:
            self._locating = self._directory().locate.remote(self._session_id)
        return self._locating

    def _answer(self, locating: Any) -> Any:
        try:
            actor = ray.get(locating)["actor"]
        except ray.exceptions.RayError as exc:
            raise_bare(exc)
        finally:
            with self._lock:
                if self._locating is locating:
                    self._locating = None
        with self._lock:
            self._actor = actor
        return actor

    def _look_again(self) -> None:
        """Learn, without waiting, when the session has gone to another actor."""
        if self._looking is None:
            if time.monotonic() - self._looked_at > _LOOK_AGAIN_S:
                self._looking = self._directory().whereabouts.remote(self._session_id)
            return
        ready, _ = ray.wait([self._looking], timeout=0)
        if ready:
            looking, self._looking, self._looked_at = self._looking, None, time.monotonic()
            with contextlib.suppress(ray.exceptions.RayError):
                self._actor = ray.get(looking) or self._actor
