"""A server in a process of its own: the ``openai`` client, clients that go away, and signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from live_server import Live, served
from served_folder import write_folder

KEY = "a-key-of-this-test"
SLOW = {"prompt": "a source", "max_tokens": 400}  # takes seconds on this backbone

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    with served(folder, "--max-rows", "2", "--max-waiting", "6", "--pin", "lora", T5PEFT_API_KEY=KEY) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def figure(live: Live, name: str) -> float:
    text = httpx.get(f"{live.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def wait_for(live: Live, name: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while figure(live, name) != value:
        assert time.monotonic() < deadline, f"{name} stays at {figure(live, name)}"
        time.sleep(0.02)


def test_the_openai_client_works_as_it_is(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()][:2] == ["base", "beams"]
    assert client.models.retrieve("lora").owned_by == "t5peft"
    whole = client.completions.create(model="base", prompt=["one", "two"], max_tokens=12, logprobs=2)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 8
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.top_logprobs or ()) == 12
    stream = client.completions.create(
        model="base", prompt="one", max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 12


def test_the_openai_client_asks_by_records_and_beams(client: openai.OpenAI) -> None:
    found = client.completions.create(model="labels", prompt=None, extra_body={"task": {"text": "a film"}})
    assert found.choices[0].text in ("0", "1")
    beams = client.completions.create(model="base", prompt="one", extra_body={"num_beams": 2})
    assert beams.choices[0].finish_reason in ("stop", "length")


def test_the_openai_client_knows_the_errors(live: Live, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Got the model 'nobody'"):
        client.completions.create(model="nobody", prompt="a")
    with pytest.raises(openai.BadRequestError, match="Got echo"):
        client.completions.create(model="base", prompt="a", echo=True)
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="Got no API key or a wrong one"),
    ):
        stranger.models.list()


def test_a_client_that_goes_away_frees_its_row(live: Live) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    gone, cancelled = figure(live, "t5peft_clients_gone_total"), figure(live, "t5peft_engine_cancelled_total")
    with httpx.Client(base_url=live.url, headers=headers) as client:
        with client.stream("POST", "/v1/completions", json={"model": "base", **SLOW, "stream": True}) as response:
            next(response.iter_lines())
        wait_for(live, "t5peft_engine_cancelled_total", cancelled + 1)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={"model": "base", **SLOW, "prompt": ["a source"] * 6}, timeout=0.2)
        wait_for(live, "t5peft_engine_cancelled_total", cancelled + 7)
    wait_for(live, "t5peft_clients_gone_total", gone + 2)


def test_a_connection_that_breaks_in_its_request_holds_nothing(live: Live) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    for sent in (b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert httpx.get(f"{live.url}/health").status_code == 200


def test_curl_has_its_round_trip(live: Live) -> None:
    body = json.dumps({"model": "lora", "task": {"text": "a"}})
    done = subprocess.run(
        ["curl", "--silent", "--fail", f"{live.url}/v1/completions", "-H", "Content-Type: application/json",
         "-H", f"Authorization: Bearer {KEY}", "-d", body],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["object"] == "text_completion"


def test_overload_is_refused_and_a_patient_client_gets_its_answer(live: Live) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as hasty:
        statuses: list[int] = []
        waits: list[str | None] = []

        def ask() -> None:
            try:
                hasty.completions.create(model="base", prompt="a source", max_tokens=20)
                statuses.append(200)
            except openai.APIStatusError as error:
                statuses.append(error.status_code)
                waits.append(error.response.headers.get("retry-after"))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=9) as patient:
            assert patient.completions.create(model="lora", prompt="a", max_tokens=3).choices[0].text is not None
        for thread in threads:
            thread.join()
    assert set(statuses) == {200, 503}
    assert set(waits) == {"1"}


def test_sigterm_finishes_what_runs_and_ends_with_0(live: Live) -> None:
    """The last test of this server."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "base", "prompt": "a source", "max_tokens": 60}
    with httpx.Client(base_url=live.url, headers=headers, timeout=30) as client:
        expected = client.post("/v1/completions", json=body).json()["choices"]
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(live.process.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == expected[0]["finish_reason"]
    assert live.process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{live.url}/health")


@pytest.mark.slow
def test_a_request_that_is_longer_than_the_time_to_stop_is_given_up(folder: Path) -> None:
    with served(folder, "--stop-seconds", "1") as live:
        endless = {"model": "base", "prompt": ["a source"] * 64, "max_tokens": 500, "temperature": 1}
        with httpx.Client(base_url=live.url, timeout=30) as client:
            waiting = threading.Thread(target=lambda: _ignored(client, endless))
            waiting.start()
            time.sleep(0.5)
            began = time.monotonic()
            assert live.stop(signal.SIGINT) == 0
            assert time.monotonic() - began < 15
            waiting.join()


def _ignored(client: httpx.Client, body: dict) -> None:
    with contextlib.suppress(httpx.HTTPError):
        client.post("/v1/completions", json=body)
