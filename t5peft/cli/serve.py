"""Serve a backbone and the adapters of a folder over HTTP, with an OpenAI-compatible API. See docs/serving.md."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import socket
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5peft.cli.options import memory_size

if TYPE_CHECKING:
    from t5peft.serving.launch import ServeOptions

KEY_VARIABLE = "T5PEFT_API_KEY"
_INSTALL = 'pip install "t5peft[serving]"'

EPILOG = """
Examples:
  t5peft serve --backbone mini --adapters adapters
  t5peft serve --backbone google/flan-t5-base --adapters adapters --host 0.0.0.0 --api-key-file keys --memory 2GB
  t5peft serve --backbone google/flan-t5-base --adapters adapters --ray --replicas 4
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"model": "reviews", "prompt": "a text"}'
SIGTERM and Ctrl+C stop the server: new requests are refused, and running requests may finish.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft serve``."""
    add = parser.add_argument
    add("--backbone", required=True, metavar="NAME", help="mini, a hub name or a folder")
    add("--adapters", required=True, metavar="DIR", help="a folder with one folder per adapter")
    add("--host", default="127.0.0.1", help="the address to listen on; any other than the loopback requires an API key")
    add("--port", type=int, default=8000, help="the port to listen on; 0 chooses a free port")
    add(
        "--api-key-file",
        metavar="FILE",
        help=f"accepted API keys, one per line; default: the key in {KEY_VARIABLE}, if it is set",
    )
    add("--quantize", choices=("int8", "nf4"), help="how to load the backbone")
    add("--memory", metavar="SIZE", type=memory_size, help="memory for loaded adapters, such as 2GB; default: no limit")
    add("--pin", metavar="NAME", action="append", default=[], help="an adapter to load at startup and keep loaded")
    add("--pins", metavar="FILE", help="lines of `SHA256  NAME`: refuse an adapter whose manifest has another hash")
    add("--max-rows", type=int, default=64, help="how many answers are generated at once")
    add("--max-waiting", type=int, default=256, help="how many requests may wait; more are refused with 503")
    add("--max-source-tokens", type=int, default=1024, help="maximum tokens of a source")
    add("--max-new-tokens", type=int, default=512, help="maximum tokens of an answer")
    add("--max-body", metavar="SIZE", type=memory_size, default=1 << 20, help="maximum size of a request body")
    add(
        "--stop-seconds",
        type=int,
        default=30,
        help="how long running requests may take to finish when the server stops",
    )
    add("--ray", action="store_true", help="serve replicas with Ray, on a cluster or on this machine")
    add("--replicas", type=int, default=1, help="with --ray: the number of replicas, or the minimum")
    add("--max-replicas", type=int, help="with --ray: the maximum number of replicas; their number follows the load")
    add("--gpus", type=float, default=0, help="with --ray: GPUs per replica")


def run(args: argparse.Namespace) -> int:
    """Serve until the process is told to stop."""
    keys = read_keys(args.api_key_file)
    if not keys and not is_loopback(args.host):
        raise ValueError(
            f"Got the host {args.host} without an API key; expected one, because others can reach this address. Use "
            f"--api-key-file or set {KEY_VARIABLE}."
        )
    pins = read_pins(Path(args.pins)) if args.pins else {}
    _ensure_installed()
    options = _options(args, keys, pins)
    if args.ray:
        _serve_by_ray(options, args)
    else:
        _serve(options, args.host, args.port, args.stop_seconds)
    return 0


def _options(args: argparse.Namespace, keys: tuple[str, ...], pins: dict[str, str]) -> ServeOptions:
    from t5peft.serving.launch import ServeOptions, public_name
    from t5peft.serving.scheduler import Limits
    from t5peft.serving.settings import ServerSettings

    settings = ServerSettings(
        backbone_name=public_name(args.backbone),
        api_keys=keys,
        max_body_bytes=args.max_body,
        max_answers=min(ServerSettings.max_answers, args.max_waiting),
    )
    limits = Limits(
        max_rows=args.max_rows,
        max_waiting=args.max_waiting,
        max_source_tokens=args.max_source_tokens,
        max_new_tokens=args.max_new_tokens,
    )
    return ServeOptions(
        args.backbone, args.adapters, settings, limits, args.quantize, args.memory, tuple(args.pin), pins
    )


def _serve(options: ServeOptions, host: str, port: int, stop_seconds: int) -> None:
    from t5peft.serving.launch import open_app

    with _bind(host, port) as listening, open_app(options) as app:
        print(_greeting(options, *listening.getsockname()[:2]), flush=True)
        _run_uvicorn(app, listening, stop_seconds)


def _serve_by_ray(options: ServeOptions, args: argparse.Namespace) -> None:
    try:
        from t5peft.serving.ray import build, start, stop
    except ImportError as error:
        raise ImportError(
            f'Got no package {error.name}; expected the extra cluster. Run pip install "t5peft[cluster]".'
        ) from error

    application = build(
        options, replicas=args.replicas, max_replicas=args.max_replicas, gpus=args.gpus, stop_seconds=args.stop_seconds
    )
    told = threading.Event()
    try:
        start(application, args.host, args.port)
        # Ray has a handler of its own from its start on.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: told.set())
        print(_greeting(options, args.host, args.port), flush=True)
        while not told.wait(1):  # a wait without end would keep signals from being handled
            pass
    finally:
        stop()


def _greeting(options: ServeOptions, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"Serving {options.settings.backbone_name} and {options.adapters} on http://{shown}:{port}"


def _run_uvicorn(app: Any, listening: socket.socket, stop_seconds: int) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=stop_seconds,
        server_header=False,
        ws="none",
    )
    # uvicorn finishes what runs, and then raises the signal again for whoever handled it before.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def read_keys(path: str | None) -> tuple[str, ...]:
    """Return the API keys of a file, or the one in the environment.

    Args:
        path: Of the file; None for the environment.

    Returns:
        The keys; none where none is set.

    Raises:
        ValueError: The file holds none, or one has characters that no header carries.
    """
    if path is None:
        keys = [os.environ.get(KEY_VARIABLE, "").strip()]
    else:
        keys = [line.strip() for line in _lines(path, "keys")]
        if not any(keys):
            raise ValueError(f"Got no key in {path}; expected one per line. Add one, such as 32 random letters.")
    found = tuple(filter(None, keys))
    if any(not (key.isascii() and key.isprintable() and " " not in key) for key in found):
        where = path or KEY_VARIABLE
        raise ValueError(
            f"Got a key in {where} with spaces or non-ASCII characters; expected ASCII without spaces. Choose another one."
        )
    return found


def read_pins(path: Path) -> dict[str, str]:
    """Return the SHA-256 by the name of an adapter, from lines as ``sha256sum`` writes them.

    Args:
        path: Of the file. Empty lines and those that begin with # are left out.

    Returns:
        Name to hash.

    Raises:
        ValueError: A line is none of these, or a name stands twice.
    """
    pins: dict[str, str] = {}
    for number, line in enumerate(_lines(path, "pins"), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not (found := re.fullmatch(r"([0-9a-fA-F]{64})\s+(\S.*)", text)) or found[2] in pins:
            raise ValueError(
                f"Got line {number} of {path}, {text[:90]!r}; expected a SHA-256 of 64 hexadecimal digits and the name of an "
                "adapter, each name once. `sha256sum` of the manifest t5peft.json prints this hash."
            )
        pins[found[2]] = found[1].lower()
    return pins


def _lines(path: str | Path, what: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"Got no file of {what} at {path} that can be read ({error}); expected a text file. Create it."
        ) from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host's address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, before anything is loaded."""
    if not 0 <= port < 1 << 16:
        raise ValueError(f"Got --port {port}; expected a number from 0 to 65535. Give another one.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"Got the address {host} port {port}, on which the server cannot listen ({error}); expected a free one. Choose "
            "another --port, or 0 for any."
        ) from error


def _ensure_installed() -> None:
    try:
        for name in ("fastapi", "prometheus_client", "uvicorn"):
            import_module(name)
    except ImportError as error:
        raise ImportError(f"Got no package {error.name}; expected the extra serving. Run {_INSTALL}.") from error
