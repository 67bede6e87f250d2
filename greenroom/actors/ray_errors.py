"""Errors as they come over Ray, and as Greenroom means them."""

from typing import NoReturn

import ray.exceptions

from ..domain.errors import GreenroomError, InternalError, RuntimeGone, SessionMoved, Timeout

RAY_TROUBLE = (ray.exceptions.RayError, ConnectionError)


def raise_bare(exc: BaseException) -> NoReturn:
    """Raise what the actor raised, without Ray's wrapping; other trouble of Ray's as the nearest error of ours."""
    cause = getattr(exc, "cause", None)
    if isinstance(cause, GreenroomError):
        raise cause from None
    if isinstance(exc, GreenroomError):
        raise exc
    if isinstance(exc, ray.exceptions.RayActorError):
        raise SessionMoved(f"The actor behind this call is gone ({type(exc).__name__}). Call again.") from exc
    if isinstance(exc, ray.exceptions.GetTimeoutError):
        raise Timeout from exc
    if isinstance(exc, ray.exceptions.RaySystemError | ConnectionError):
        raise RuntimeGone from exc
    if isinstance(exc, ray.exceptions.RayError):
        raise InternalError(f"Ray failed: {type(exc).__name__}.") from exc
    raise exc
