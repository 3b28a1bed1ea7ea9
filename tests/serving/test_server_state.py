"""Adapters that come, go and change, health and metrics, keys and limits of the server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from served_folder import FREE, LABELS, context_of, held_rows, serving, wait_until_free, write_adapter, write_folder
from starlette.testclient import TestClient

from t5peft.cli.data import save_task
from t5peft.data import Task
from t5peft.serving.scheduler import Limits
from t5peft.serving.served import is_name


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(template: Path) -> Iterator[TestClient]:
    with serving(template) as client:
        yield client


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(template, tmp_path / "served"))


def state(client: TestClient) -> dict[str, dict]:
    return {card["name"]: card for card in client.get("/v1/adapters").json()["data"]}


def ask(client: TestClient, model: str = "lora", **body: object) -> Any:
    return client.post("/v1/completions", json={"model": model, "prompt": "a source", "max_tokens": 6, **body})


def test_adapters_are_listed_loaded_and_unloaded_by_name(client: TestClient) -> None:
    cards = state(client)
    assert list(cards) == ["beams", "head", "labels", "lora", "plain"]
    assert cards["lora"]["task"]["columns"] == ["text"]
    assert cards["labels"]["task"]["labels"] == ["0", "1"]
    assert [cards[name]["method"] for name in cards] == ["ia3", "lora", "prefix", "lora", "prompt"]
    assert [name for name, card in cards.items() if card["has_head"]] == ["head"]
    assert client.post("/v1/adapters/load", json={"adapter": "lora"}).json() == {"name": "lora", "loaded": True}
    found = client.get("/v1/adapters").json()
    assert state(client)["lora"]["num_bytes"] == found["num_bytes"] > 0
    assert client.post("/v1/adapters/unload", json={"adapter": "lora"}).json() == {"name": "lora", "loaded": False}
    assert not state(client)["lora"]["loaded"]
    assert ask(client).status_code == 200
    assert state(client)["lora"]["loaded"]


NO_NAMES = (
    "../base", "/etc", "lora/..", "..", ".", "lora/", "\x00", "lora\x00", "a\\b", ".hidden", "lora/adapter", "x" * 300, "\ud800",
    "ß" * 200, "C:lora", "lora\n", "%2e%2e", "nobody",
)  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_a_request_never_names_a_path(client: TestClient, name: str) -> None:
    for path, body in (
        ("adapters/load", {"adapter": name}),
        ("adapters/unload", {"adapter": name}),
        ("completions", {"model": name, "prompt": "a"}),
        ("rank", {"model": name, "prompt": "a", "candidates": ["b"]}),
    ):
        response = client.post(f"/v1/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert response.status_code == (400 if len(name) > 255 or name == "\ud800" else 404), response.text
    assert client.get("/v1/models/..%2Fbase").status_code == 404


def test_only_plain_names_are_names() -> None:
    assert [name for name in NO_NAMES if is_name(name)] == ["%2e%2e", "nobody"]
    assert all(is_name(name) for name in ("lora", "a b", "v1.2", "Straße", "a-b_c", "x" * 255))
    assert not is_name("ß" * 200)  # longer than a file name in bytes


def test_models_are_the_backbone_and_the_adapters_of_now(folder: Path) -> None:
    with serving(folder) as client:
        names = [card["id"] for card in client.get("/v1/models").json()["data"]]
        assert names == ["base", "beams", "head", "labels", "lora", "plain"]
        assert client.get("/v1/models/lora").json()["id"] == "lora"
        assert client.get("/v1/models/other").status_code == 404
        write_adapter(folder, "other", FREE)
        assert client.get("/v1/models/other").json()["id"] == "other"
        assert ask(client, "other").status_code == 200
        shutil.rmtree(folder / "adapters" / "other")
        assert ask(client, "other").status_code == 404


def test_an_adapter_with_the_name_of_the_backbone_is_refused_at_the_start(folder: Path) -> None:
    (folder / "adapters" / "lora").rename(folder / "adapters" / "base")
    with pytest.raises(ValueError, match="Got an adapter 'base' beside a backbone of this name"), serving(folder):
        pass


def test_a_replaced_adapter_answers_with_its_new_weights_and_its_new_task(folder: Path) -> None:
    with serving(folder) as client:
        before = ask(client, logprobs=0).json()["choices"]
        records = {"model": "lora", "task": {"text": "a"}}
        assert client.post("/v1/completions", json=records).json()["usage"]["prompt_tokens"] == len("say: a") + 1
        shutil.rmtree(folder / "adapters" / "lora")
        write_adapter(folder, "lora", Task("new", "say it now: {text}", max_target_length=3), seed=9)
        assert ask(client, logprobs=0).json()["choices"] != before
        found = client.post("/v1/completions", json=records).json()["usage"]
        assert found == {"prompt_tokens": len("say it now: a") + 1, "completion_tokens": 3, "total_tokens": 17}


def test_a_damaged_adapter_is_refused_without_the_path_of_its_folder(folder: Path) -> None:
    weights = folder / "adapters" / "lora" / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    (folder / "adapters" / "labels" / "task.yaml").write_text("name: [")
    (folder / "adapters" / "plain" / "adapter_config.json").write_text("{")
    with serving(folder) as client:
        for name in ("lora", "labels", "plain"):
            for response in (
                ask(client, name),
                ask(client, name, stream=True),
                client.post("/v1/adapters/load", json={"adapter": name}),
            ):
                assert response.status_code == 422, response.text
                error = response.json()["error"]
                assert error["code"] == "unusable_adapter"
                assert str(folder) not in error["message"]
                assert name in error["message"]
        assert ask(client, "beams").status_code == 200
        problems = {name: card["problem"] for name, card in state(client).items() if card["problem"]}
        assert set(problems) == {"labels", "plain"}
        assert str(folder) not in str(problems)


def test_a_pinned_manifest_that_differs_is_refused(folder: Path) -> None:
    with serving(folder) as client:
        context_of(client).pool.sha256["lora"] = "0" * 64
        response = ask(client)
        assert response.status_code == 422
        assert "0" * 64 in response.json()["error"]["message"]


def test_the_server_tells_its_state_and_its_figures(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    ask(client)
    ask(client, "nobody")
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['t5peft_requests_total{route="/v1/completions",status="200"}']) >= 1
    assert float(lines['t5peft_requests_total{route="/v1/completions",status="404"}']) >= 1
    assert float(lines['t5peft_tokens_total{kind="completion",model="lora"}']) >= 6
    assert float(lines["t5peft_engine_generated_tokens_total"]) >= 6
    assert float(lines["t5peft_engine_running"]) == 0
    assert float(lines["t5peft_adapters_loaded"]) >= 1
    assert "nobody" not in text  # names that requests make up are not labels


def test_a_server_that_stops_is_not_ready(template: Path) -> None:
    with serving(template) as client:
        context_of(client).stopping = True
        response = client.get("/ready")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        context_of(client).engine.close()
        response = ask(client)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        assert client.get("/health").status_code == 200


def test_more_requests_than_may_wait_are_refused_and_the_others_answered(template: Path) -> None:
    limits = Limits(max_rows=1, max_waiting=2)
    with serving(template, limits=limits, step_seconds=0.02) as client, ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda _: ask(client), range(8)))
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503}
        refused = responses[statuses.index(503)]
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert len({str(r.json()["choices"]) for r in responses if r.status_code == 200}) == 1
        # a list of which only a part fits gives back all that it took
        assert ask(client, prompt=["a"] * 9, max_tokens=200).status_code == 503
        wait_until_free(client)
        assert client.app.state.context.engine.stats().cancelled > 0


def test_a_body_that_is_too_long_is_refused_by_its_header_and_while_it_comes(template: Path) -> None:
    with serving(template, max_body_bytes=1000) as client:
        body = json.dumps({"model": "base", "prompt": "a " * 1000}).encode()
        chunks = (body[i : i + 100] for i in range(0, len(body), 100))
        for content in (body, chunks):
            response = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
            assert response.status_code == 413, response.text
            assert response.json()["error"]["code"] == "body_too_large"
        assert ask(client).status_code == 200


def test_with_keys_every_request_that_tells_something_needs_one(template: Path) -> None:
    with serving(template, api_keys=("first", "second")) as client:
        for path in ("/v1/models", "/v1/adapters", "/metrics", "/nothing"):
            response = client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/", "/docs", "/openapi.json", "/health", "/ready"):
            assert client.get(path).status_code == 200
        for header in (
            "Bearer third",
            "Bearer ",
            "Bearer firs",
            "Basic first",
            "first",
            "Bearer first second",
            "Bearer \xe9",
        ):
            value: Any = header.encode("latin-1")  # not ASCII, which a text may not hold
            found = client.get("/v1/models", headers={"Authorization": value})
            assert found.status_code == 401, header
        for key in ("first", "second"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        # with a key the host may have any name
        headers = {"Authorization": "Bearer first", "Host": "models.example"}
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_without_keys_only_loopback_names_are_served(client: TestClient) -> None:
    for host in ("127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::2]:1", "localhost.evil"):
        response = client.get("/v1/models", headers={"Host": host})
        assert response.status_code == 403, host
        assert response.json()["error"]["code"] == "foreign_host"


def test_paths_and_methods_that_are_not_there_have_errors_in_the_same_form(client: TestClient) -> None:
    for response, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/completions"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["message"].startswith("Got ")


class Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value for name, value in attrs if name == "src" or (name == "href" and tag == "link") or "//" in str(value)
        ]


def test_the_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/docs"):
        response = client.get(path)
        loads = Loads()
        loads.feed(response.text)
        assert loads.found == ["data:,"]
        assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_openapi_page_names_every_route_and_its_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/completions", "/v1/models", "/v1/models/{model}", "/v1/rank", "/v1/classify", "/v1/adapters", "/v1/adapters/load",
        "/v1/adapters/unload", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            if path.startswith("/v1"):
                assert {"4XX", "503"} <= set(operation["responses"])


def test_one_adapter_at_a_time_is_described_while_many_ask(client: TestClient) -> None:
    """Requests from many threads have the answers that they have one by one."""
    bodies = [
        {"model": name, "task": {"text": f"{name} {i}", "count": i}}
        for i in range(3)
        for name in ("lora", "labels", "head", "beams")
    ]
    alone = [client.post("/v1/completions", json=body).json()["choices"] for body in bodies]
    barrier = threading.Barrier(4)

    def all_of_them(_: int) -> list[Any]:
        barrier.wait()
        return [client.post("/v1/completions", json=body).json()["choices"] for body in bodies]

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(all_of_them, range(4)):
            for one, other in zip(found, alone, strict=True):
                assert [c["text"] for c in one] == [c["text"] for c in other]
    assert held_rows(client) == 0


def test_a_task_that_changes_is_read_anew(folder: Path) -> None:
    with serving(folder) as client:
        assert client.post("/v1/classify", json={"model": "labels", "task": {"text": "a"}}).status_code == 200
        changed = Task("other", "{words}", "{label}", {"x": "one", "y": "two"}, metrics=("accuracy",))
        save_task(changed, folder / "adapters" / "labels")
        assert LABELS.columns != changed.columns
        found = client.post("/v1/classify", json={"model": "labels", "task": {"words": "a"}}).json()["results"][0]
        assert set(found["probabilities"]) == {"x", "y"}
