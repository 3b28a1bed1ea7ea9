"""Refusals of the server, in the JSON form of OpenAI's API."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from t5peft.compat.json_text import REPEATED
from t5peft.compat.suggestions import did_you_mean
from t5peft.serving.requests import (
    EngineClosedError,
    QueueFullError,
    TooLongError,
    UnknownAdapterError,
    UnusableAdapterError,
)

logger = logging.getLogger(__name__)

CLIENT_GONE = 499  # the status by which nginx logs it; nobody receives it


class ApiError(Exception):
    """A refusal with a status code.

    Args:
        message: What came, what was expected, and what to do.
        status: Of the response.
        code: OpenAI's name of the problem, or our own.
        param: The field of the request that it is about.
    """

    def __init__(self, message: str, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI's API writes it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


class Json(JSONResponse):
    """JSON whose texts may hold lone surrogates, which only an escape can write."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body.

        Args:
            content: Values of JSON.

        Returns:
            UTF-8.
        """
        return to_json(content)


def to_json(content: Any) -> bytes:
    """Return a value as JSON in UTF-8; NaN and infinity are errors, as JSON has neither."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


# Status, code and field for each error of the engine or the pool.
_REFUSALS: dict[type[Exception], tuple[int, str, str | None]] = {
    UnknownAdapterError: (404, "model_not_found", "model"),
    UnusableAdapterError: (422, "unusable_adapter", "model"),
    TooLongError: (400, "context_length_exceeded", "prompt"),
    QueueFullError: (503, "queue_full", None),
    EngineClosedError: (503, "shutting_down", None),
}


def as_api_error(error: Exception) -> ApiError:
    """Return the refusal for an error of the engine or the pool, and one of status 500 for any other.

    Args:
        error: What was raised.

    Returns:
        The refusal. Errors that no client can cause are logged with their traceback, and their text stays here.
    """
    if isinstance(error, ApiError):
        return error
    text = str(error.args[0]) if error.args else ""
    for kind, (status, code, param) in _REFUSALS.items():
        if isinstance(error, kind):
            return ApiError(text, status, code, param)
    logger.error("A request failed.", exc_info=error)
    return ApiError("Got an unexpected error; expected an answer. See the log of the server.", 500, "internal_error")


def add_error_handlers(app: FastAPI, retry_after_seconds: int) -> None:
    """Let an application answer every error in OpenAI's form.

    Args:
        app: The application.
        retry_after_seconds: Of the header ``Retry-After`` beside a status of 503.
    """

    def refuse(error: ApiError, headers: Mapping[str, str] | None = None) -> Json:
        waits = {"Retry-After": str(retry_after_seconds)} if error.status == 503 else {}
        return Json(error.body(), error.status, headers={**waits, **(headers or {})})

    async def invalid(request: Request, error: Exception) -> Json:
        assert isinstance(error, RequestValidationError)
        return refuse(_of_fields(error.errors(), request))

    async def http(request: Request, error: Exception) -> Json:
        assert isinstance(error, HTTPException)
        message = {
            404: f"Got the path {request.url.path[:200]!r}; expected one of those in /openapi.json. Correct it.",
            413: error.detail,
            405: f"Got the method {request.method[:20]!r}; expected another for this path. See /openapi.json.",
        }.get(error.status_code, f"Got a request that cannot be read ({error.detail}); expected JSON. Correct it.")
        code = "body_too_large" if error.status_code == 413 else None
        return refuse(ApiError(message, error.status_code, code), error.headers)

    async def other(request: Request, error: Exception) -> Json:
        return refuse(as_api_error(error))

    async def gone(request: Request, error: Exception) -> Json:
        return Json({}, CLIENT_GONE)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGoneError, gone)
    kinds: list[type[Exception]] = [ApiError, *_REFUSALS]
    for kind in kinds:
        app.add_exception_handler(kind, other)


# Fields of several types: pydantic lists a problem for each of them.
_EXPECTED = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    "task": "a record, such as {'text': '...'}, or a list of records",
    "stop": "a text or a list of at most 4 texts",
}


def _of_fields(problems: Sequence[Mapping[str, Any]], request: Request) -> ApiError:
    """Return one refusal for all fields of a body that are wrong, without the values that came."""
    if invalid := [problem for problem in problems if problem["type"] == "json_invalid"]:
        reason = str(invalid[0].get("ctx", {}).get("error", ""))
        if REPEATED in reason:
            return ApiError(f"Got a body where {reason}; expected each key once. Correct it.", 400, "invalid_fields")
        return ApiError("Got a body that is not JSON; expected a JSON object. Correct it.")
    found: dict[str, str] = {}
    for problem in problems:
        field = next((str(part) for part in problem["loc"][1:]), "body")
        if problem["type"] == "extra_forbidden":
            text = f"it is unknown.{did_you_mean(field, _fields_of(request))}"
        elif field in _EXPECTED:
            text = f"expected {_EXPECTED[field]}."
        else:
            text = f"{str(problem['msg'])[:1].lower()}{str(problem['msg'])[1:]}."
        found.setdefault(field[:80], text)
    listed = " ".join(f"{field}: {text}" for field, text in list(found.items())[:10])
    param = next(iter(found), None)
    message = f"Got invalid fields; expected those of {request.url.path} in /openapi.json. Correct them. {listed}"
    return ApiError(message, 400, "invalid_fields", None if param == "body" else param)


def _fields_of(request: Request) -> list[str]:
    """Return the names of the fields that the body of a route has."""
    body = getattr(request.scope.get("route"), "body_field", None)
    kind = getattr(getattr(body, "field_info", None), "annotation", None)
    return list(getattr(kind, "model_fields", ()))
