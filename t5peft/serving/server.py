"""The HTTP server: OpenAI's completions, rankings and classifications of an engine and its adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

import t5peft
from t5peft.serving import openai, routes
from t5peft.serving.context import Context
from t5peft.serving.engine import Engine
from t5peft.serving.errors import Json, add_error_handlers
from t5peft.serving.metrics import Metrics
from t5peft.serving.middleware import BodyLimit, Count, Guard
from t5peft.serving.pool import AdapterPool
from t5peft.serving.served import Catalog
from t5peft.serving.settings import ServerSettings

HERE = Path(__file__).parent
# The pages load nothing from elsewhere, and ask only the server that they came from.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}


def create_app(engine: Engine, pool: AdapterPool, settings: ServerSettings) -> FastAPI:
    """Make the application.

    Args:
        engine: Answers requests. Whoever made it closes it, after the application has stopped.
        pool: The adapters of the engine.
        settings: The limits and keys.

    Returns:
        The application, for uvicorn or another ASGI server.

    Raises:
        ValueError: An adapter has the name of the backbone.
    """
    catalog, metrics = Catalog(pool, settings.backbone_name), Metrics(engine, pool)
    context = Context(engine, pool, settings, catalog, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        context.stopping = True

    app = FastAPI(
        title="t5peft",
        summary="One T5 and its adapters, by OpenAI's API",
        version=t5peft.__version__,
        docs_url=None,  # FastAPI's own pages load their scripts from the network
        redoc_url=None,
        default_response_class=Json,
        lifespan=lifespan,
    )
    app.state.context = context
    add_error_handlers(app, settings.retry_after_seconds)
    app.include_router(openai.router)
    app.include_router(routes.router)
    app.include_router(routes.state_router)
    _add_pages(app)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Guard, api_keys=settings.api_keys)
    app.add_middleware(Count, metrics=metrics)
    return app


def _add_pages(app: FastAPI) -> None:
    pages = {path: (HERE / name).read_text(encoding="utf-8") for path, name in _PAGES.items()}

    def add(path: str, page: str) -> None:
        async def show() -> HTMLResponse:
            return HTMLResponse(page, headers=_PAGE_HEADERS)

        app.add_api_route(path, show, include_in_schema=False)

    for path, page in pages.items():
        add(path, page)


_PAGES = {"/": "page.html", "/docs": "docs.html"}
