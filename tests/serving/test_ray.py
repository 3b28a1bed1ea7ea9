"""Two replicas on a local Ray: the API of one server, and no request lost where one replica is killed or an adapter replaced."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from live_server import Live, served
from served_folder import FREE, serving, write_adapter, write_folder

pytest.importorskip("ray")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    from t5peft.serving.ray import _metrics, adapter_of, app

NAMES = ("lora", "beams", "labels", "head")


def test_the_adapter_of_a_body_is_found_or_none() -> None:
    assert adapter_of(b'{"model": "lora", "prompt": "a"}') == "lora"
    assert adapter_of(b'{"adapter": "lora"}') == "lora"
    for body in (b"", b"{", b"[1]", b"3", b'{"model": 3}', b"\xff", b"[" * 100_000, b'{"prompt": "a"}'):
        assert adapter_of(body) == ""
    assert adapter_of(b'{"model": "\\ud800"}') == "?"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "Got no backbone and no adapters"),
        ({"backbone": "mini", "adapters": "x", "replica": "2"}, "Got replica; expected some of backbone"),
        ({"backbone": "mini", "adapters": "x", "replicas": "two"}, "Got replicas='two'; expected a whole number"),
        ({"backbone": "mini", "adapters": "x", "replicas": "0"}, "Got 0 to 0 replicas"),
        ({"backbone": "mini", "adapters": "x", "replicas": "3", "max_replicas": "2"}, "Got 3 to 2 replicas"),
        ({"backbone": "mini", "adapters": "x", "max_rows": "0"}, "Got max_rows=0"),
    ],
)
def test_wrong_arguments_of_serve_run_are_told(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        app(arguments)


def test_arguments_of_serve_run_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T5PEFT_BACKBONE", "mini")
    monkeypatch.setenv("T5PEFT_ADAPTERS", "adapters")
    monkeypatch.setenv("T5PEFT_MAX_ROWS", "7")
    assert app({"replicas": "2", "max_replicas": "3"}) is not None


def test_the_metrics_of_replicas_are_joined_with_their_names() -> None:
    one = '# HELP t5peft_requests_total Responses.\n# TYPE t5peft_requests_total counter\nt5peft_requests_total{route="/"} 3.0\n'
    two = one.replace("3.0", "4.0") + "# HELP up Up.\n# TYPE up gauge\nup 1.0\n"
    begin: dict[str, Any] = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/plain; version=0.0.4")],
    }
    every: dict[str, list[Any]] = {name: [begin, {"body": text.encode()}] for name, text in (("b", two), ("a", one))}
    response = _metrics(every)
    assert response.headers["content-type"] == "text/plain; version=0.0.4"
    lines = bytes(response.body).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        't5peft_requests_total{replica="a",route="/"} 3.0',
        't5peft_requests_total{replica="b",route="/"} 4.0',
        'up{replica="b"} 1.0',
    ]
    assert len([line for line in lines if line.startswith("# TYPE")]) == 2
    refused = _metrics({"a": every["a"], "b": [{**begin, "status": 401}, {"body": b"key"}]})
    assert (refused.status_code, refused.body) == (401, b"key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """The answers of one server to a record of each adapter."""
    with serving(folder) as client:
        return {name: choices(client.post("/v1/completions", json=body(name))) for name in NAMES}


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with served(folder, "--ray", "--replicas", "2", "--port", port) as live:
        yield live
        live.stop(signal.SIGTERM)


def body(name: str) -> dict:
    return {"model": name, "task": {"text": "a film", "count": 3}}


def choices(response: Any) -> str:
    assert response.status_code == 200, response.text
    return json.dumps([choice["text"] for choice in response.json()["choices"]])


def replicas(live: Live) -> list[psutil.Process]:
    """The processes of the replicas; of Ray's processes only those that our server has started."""
    found = psutil.Process(live.process.pid).children(recursive=True)
    return [one for one in found if one.is_running() and "ray::ServeReplica:t5peft:Replica" in " ".join(one.cmdline())]


@contextmanager
def load(url: str, seen: Callable[[str, httpx.Response], None], clients: int = 6) -> Iterator[None]:
    """Clients that ask without a break while the block runs, and are patient where the server asks for it."""
    done, problems = threading.Event(), []

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not done.is_set():
                name = NAMES[number % len(NAMES)]
                try:
                    response = client.post("/v1/completions", json=body(name))
                    if response.status_code == 503 and response.json()["error"]["code"] == "queue_full":
                        time.sleep(float(response.headers["retry-after"]))
                        continue
                    seen(name, response)
                except Exception as error:
                    problems.append(repr(error))
                number += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert problems == []


@pytest.mark.slow
def test_replicas_answer_as_one_server_does(live: Live, expected: dict[str, str]) -> None:
    assert len(replicas(live)) == 2
    with httpx.Client(base_url=live.url, timeout=60) as client:
        assert {name: choices(client.post("/v1/completions", json=body(name))) for name in NAMES} == expected
        assert client.get("/ready").json() == {"status": "ready"}
        names = re.findall(r't5peft_adapters_loaded\{replica="(.+?)"\}', client.get("/metrics").text)
        assert len(names) == len(set(names)) == 2
        assert client.post("/v1/completions", json={"model": "nobody", "prompt": "a"}).status_code == 404
        assert client.post("/v1/completions", content=b"x" * (2 << 20)).status_code == 413
        lines = client.post("/v1/completions", json={"model": "base", "prompt": "a", "stream": True}).text.split("\n\n")
        assert lines[-2] == "data: [DONE]"
        assert client.post("/v1/adapters/load", json={"adapter": "plain"}).json()["loaded"]
        assert client.post("/v1/adapters/unload", json={"adapter": "plain"}).json() == {
            "name": "plain",
            "loaded": False,
        }


@pytest.mark.slow
def test_an_adapter_is_rolled_out_under_load_without_a_lost_request(
    live: Live, folder: Path, expected: dict[str, str]
) -> None:
    old, new = folder / "adapters" / "lora", folder / "new"
    (new / "adapters").mkdir(parents=True)
    shutil.copytree(folder / "base", new / "base")
    write_adapter(new, "lora", FREE, method="ia3", seed=9)
    with serving(new) as client:
        after = choices(client.post("/v1/completions", json=body("lora")))
    assert after != expected["lora"]
    counts: Counter[tuple[str, bool]] = Counter()

    def seen(name: str, response: httpx.Response) -> None:
        answer = choices(response)
        assert answer in (expected[name], after if name == "lora" else expected[name])
        counts[name, answer == expected[name]] += 1

    with load(live.url, seen):
        time.sleep(2)
        os.rename(old, folder / "before")
        os.rename(new / "adapters" / "lora", old)
        time.sleep(4)
    assert counts["lora", True]
    assert counts["lora", False]
    assert choices(httpx.post(f"{live.url}/v1/completions", json=body("lora"), timeout=60)) == after
    os.rename(old, folder / "new" / "adapters" / "lora")
    os.rename(folder / "before", old)
    assert choices(httpx.post(f"{live.url}/v1/completions", json=body("lora"), timeout=60)) == expected["lora"]


@pytest.mark.slow
def test_a_replica_killed_under_load_loses_no_request(live: Live, expected: dict[str, str]) -> None:
    counts: Counter[str] = Counter()

    def seen(name: str, response: httpx.Response) -> None:
        assert choices(response) == expected[name]
        counts[name] += 1

    with load(live.url, seen):
        time.sleep(2)
        victim = replicas(live)[0]
        victim.kill()
        time.sleep(3)
        before = sum(counts.values())
        deadline = time.monotonic() + 90
        while len(replicas(live)) < 2 or victim.pid in {one.pid for one in replicas(live)}:
            assert time.monotonic() < deadline, "the replica was not replaced"
            time.sleep(0.5)
        time.sleep(3)
    assert sum(counts.values()) > before > 0
    assert set(counts) == set(NAMES)


@pytest.mark.slow
def test_a_client_that_goes_away_frees_its_row(live: Live) -> None:
    slow = {"model": "base", "prompt": "a source", "max_tokens": 500, "stream": True}
    with httpx.Client(base_url=live.url, timeout=60) as client:
        with client.stream("POST", "/v1/completions", json={**slow, "seed": 1}) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 20
        while True:
            # either replica may answer
            texts = [client.get("/metrics").text for _ in range(4)]
            if any("t5peft_engine_cancelled_total 1.0" in text for text in texts):
                break
            assert time.monotonic() < deadline, "the request was not given up"
            time.sleep(0.2)


@pytest.mark.slow
def test_sigterm_ends_the_server_with_0(live: Live) -> None:
    """The last test of this server."""
    assert live.stop(signal.SIGTERM) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{live.url}/health")
