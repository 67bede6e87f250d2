"""How a command ends: its exit code, and one line on stderr when something is wrong."""

import sys
import traceback

from typer.exceptions import TyperException

from ..domain.errors import ErrorCategory, GreenroomError, InternalError, InvalidCursor, InvalidFormat, RuntimeGone

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


def report(error: BaseException, *, debug: bool = False) -> int:
    """Say on stderr what went wrong, on one line; returns the exit code that goes with it."""
    if debug and not isinstance(error, TyperException):
        traceback.print_exception(error)
    known = _as_known(error)
    if isinstance(known, TyperException):
        message, code, status = _usage_message(known), "usage", known.exit_code
    else:
        message, code, status = known.message, known.code, _exit_code(known)
    sys.stderr.write(f"greenroom: {' '.join(message.split())} [{code}]\n")
    return status


def _as_known(error: BaseException) -> GreenroomError | TyperException:
    """The error itself, or what it means here when it is somebody else's."""
    if isinstance(error, GreenroomError | TyperException):
        return error
    if isinstance(error, ConnectionError) or type(error).__module__.startswith("ray."):
        return RuntimeGone(f"The runtime does not answer any more ({type(error).__name__}). Start the command again.")
    return InternalError(f"{type(error).__name__}: {error}. This is a fault in Greenroom; --debug shows the trace.")


def _exit_code(error: GreenroomError) -> int:
    """USAGE for what the caller can only mend by calling differently."""
    if isinstance(error, InvalidFormat):  # it is the stored data that is wrong
        return FAILED
    return USAGE if error.category is ErrorCategory.VALIDATION or isinstance(error, InvalidCursor) else FAILED


def _usage_message(error: TyperException) -> str:
    message = error.format_message().rstrip()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "greenroom"
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{path} --help`."
