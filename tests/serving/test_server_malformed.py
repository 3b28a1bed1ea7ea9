"""Requests made up from the OpenAPI page, right and wrong ones: no error of the server, no hang, nothing held."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis import GenerationMode
from served_folder import context_of, serving, wait_until_free, write_folder
from served_folder import listening as listening_to
from starlette.testclient import TestClient

from t5peft.serving.scheduler import Limits

NAMES = ("lora", "labels", "beams", "head", "plain", "base")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    limits = Limits(max_new_tokens=24, max_source_tokens=128)
    with serving(write_folder(tmp_path_factory.mktemp("served")), limits=limits) as client:
        yield client


@pytest.fixture(scope="module")
def url(client: TestClient) -> Iterator[str]:
    with listening_to(client) as url:
        yield url


def ask(url: str, examples: int, number: int, until: float) -> Counter[int]:
    """Send ``examples`` requests for each operation and kind, and count the statuses.

    Problems are collected: what hypothesis raises is about its making of examples, which the schemas of the library change as
    they learn from responses.
    """
    problems: list[str] = []
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation: Any = found.ok()  # type: ignore[union-attr]  # a schema that cannot be read has none, and fails here
            has_body = operation.method.upper() == "POST"
            # Without a body or parameters nothing can be wrong.
            for mode in list(GenerationMode) if has_body else [GenerationMode.POSITIVE]:

                @seed(number)
                @settings(
                    max_examples=examples if has_body else max(1, examples // 20),
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(
                    case=operation.as_strategy(generation_mode=mode), name=st.sampled_from(NAMES), known=st.booleans()
                )
                def send(case: schemathesis.Case, name: str, known: bool) -> None:
                    if time.monotonic() > until:
                        return
                    if known and isinstance(
                        case.body, dict
                    ):  # else nearly every request ends at a name that is unknown
                        case.body["adapter" if "adapters" in case.path else "model"] = name
                    response = case.call(session=session, timeout=20)
                    statuses[response.status_code] += 1
                    try:
                        check(response, case)
                    except Exception as error:
                        problems.append(f"{case.as_curl_command()}: {response.status_code} {error}")

                with contextlib.suppress(FlakyStrategyDefinition):
                    send()
    assert problems == []
    return statuses


def check(response: schemathesis.Response, case: schemathesis.Case) -> None:
    assert response.status_code < 500 or response.status_code == 503, response.text
    if response.status_code >= 400:
        message = response.json()["error"]["message"]
        assert message.startswith("Got ")
        assert "expected" in message
        assert len(message) < 5000
    else:
        case.operation.validate_response(response)


def test_a_sample_of_made_up_requests_does_no_harm(client: TestClient, url: str) -> None:
    statuses = ask(url, 6, 0, time.monotonic() + 60)
    assert {200, 400, 404} <= set(statuses)
    wait_until_free(client)


@pytest.mark.slow
def test_ten_thousand_made_up_requests_do_no_harm(client: TestClient, url: str) -> None:
    began, statuses = time.monotonic(), Counter[int]()
    for number in range(100):
        statuses += ask(url, 100, number + 1, began + 900)
        if sum(statuses.values()) >= 10_000 or time.monotonic() > began + 900:
            break
    print(dict(statuses))
    assert sum(statuses.values()) >= 10_000
    assert {200, 400, 404} <= set(statuses)
    wait_until_free(client)
    assert not context_of(client).pool._replaced
