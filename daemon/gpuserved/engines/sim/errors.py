"""vLLM's error bodies."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        }


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A value out of range."""
    return ApiError(400, message, "BadRequestError", param)


def bad_parameter(message: str, param: str, value: object = None) -> ApiError:
    """A value out of range, with vLLM's trailer that names it."""
    shown = "" if value is None else f", value={value}"
    return bad_request(f"{message} (parameter={param}{shown})", param)


def invalid(*faults: dict[str, Any]) -> ApiError:
    """A body of the wrong shape. Each fault has type, loc, msg and input, as pydantic words them."""
    plural = "error" if len(faults) == 1 else "errors"
    lines = [f"{len(faults)} validation {plural}:", *(f"  {fault}" for fault in faults)]
    return ApiError(400, "\n".join(lines), "Bad Request", faults[0].get("loc"))


def shown(value: object) -> str:
    """How vLLM repeats an input in an error."""
    if isinstance(value, dict):
        return f"<dict of {len(value)} items>"
    if isinstance(value, list):
        return f"<list of {len(value)} items>"
    return str(value)


def missing(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A required field is not there."""
    return {"type": "missing", "loc": f"body.{name}", "msg": "Field required", "input": shown(body)}


def unknown_model(name: object, served: str) -> ApiError:
    """The request names another model."""
    message = f"The model `{name}` does not exist. Valid aliases: {served}."
    return ApiError(404, message, "NotFoundError", "model")


def engine_dead(message: str) -> ApiError:
    """There is no engine to ask."""
    return ApiError(500, message, "InternalServerError")
