"""What Ray's errors say, in words for people."""

from __future__ import annotations

from typing import Any

from core.errors import CrossdockError


def ray_error() -> type[Exception]:
    """The root of Ray's errors. Ray is imported late: its environment must be set before."""
    error: type[Exception] = _exceptions().RayError
    return error


def own_error(error: BaseException) -> CrossdockError | None:
    """What an actor of ours raised, if that is what Ray reports."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, CrossdockError) else None


def summary(error: BaseException) -> str:
    """The last line of Ray's report, or of the traceback in it: the rest is about Ray itself."""
    if isinstance(error, _exceptions().ActorDiedError):
        for part in str(error).split("Worker exit detail: ")[1:]:
            return f"its process died ({part.split('. Some common causes')[0].strip()})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _exceptions() -> Any:
    import ray

    return ray.exceptions
