"""Completions, rankings and classifications over HTTP are those of the library, and wrong requests are told what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_folder import BEAMS, COLORS, FREE, LABELS, held_rows, serving, write_folder
from starlette.testclient import TestClient

from t5peft.adapters import load_saved
from t5peft.cli.predict import answer
from t5peft.data import Task
from t5peft.evaluation import predict, rank
from t5peft.models.backbone import load_backbone
from t5peft.serving.answers import as_json_number, softmax


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving(folder) as client:
        yield client
        assert held_rows(client) == 0


def completed(client: TestClient, **body: object) -> dict:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def texts(completion: dict) -> list[str]:
    assert [choice["index"] for choice in completion["choices"]] == list(range(len(completion["choices"])))
    return [choice["text"] for choice in completion["choices"]]


def streamed(client: TestClient, **body: object) -> list[dict]:
    response = client.post("/v1/completions", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


RECORDS: list[dict[str, Any]] = [
    {"text": "a film", "count": 2},
    {"text": "b", "count": 3.5},
    {"text": "</s> c", "count": "x"},
]


@pytest.mark.parametrize(
    ("name", "task"),
    [("lora", FREE), ("beams", BEAMS), ("labels", LABELS), ("head", COLORS)],
    ids=["lora", "beams", "labels", "head"],
)
def test_a_record_has_the_answer_that_predict_writes(client: TestClient, folder: Path, name: str, task: Task) -> None:
    model, tokenizer = load_saved(folder / "adapters" / name)
    expected = [new for chunk in answer(model, tokenizer, task, RECORDS) for _, new in chunk]
    found = completed(client, model=name, task=RECORDS)
    assert texts(found) == [one["answer"] for one in expected]
    assert texts(completed(client, model=name, task=RECORDS[1])) == [expected[1]["answer"]]
    if task.verbalizer:
        for choice, one in zip(found["choices"], expected, strict=True):
            assert choice["probabilities"] == pytest.approx(one["probability"], abs=1e-4)
            assert choice["finish_reason"] == "stop"


def test_prompts_have_the_answers_that_predict_gives_as_texts_and_as_ids(client: TestClient, folder: Path) -> None:
    sources = ["one source", "two", "a third one that is longer"]
    for name in ("base", "plain", "lora"):
        model, tokenizer = load_backbone(folder / "base") if name == "base" else load_saved(folder / "adapters" / name)
        expected = predict(model, tokenizer, sources, max_new_tokens=9)
        found = completed(client, model=name, prompt=sources, max_tokens=9)
        assert texts(found) == expected
        ids = tokenizer(sources)["input_ids"]
        assert texts(completed(client, model=name, prompt=ids, max_tokens=9)) == expected
        without_end = [row[:-1] for row in ids]
        assert texts(completed(client, model=name, prompt=without_end, max_tokens=9)) == expected
        assert texts(completed(client, model=name, prompt=ids[1], max_tokens=9)) == [expected[1]]
        assert texts(completed(client, model=name, prompt=sources[0], max_tokens=9, n=2)) == [expected[0]] * 2
        beams = predict(model, tokenizer, sources, max_new_tokens=9, num_beams=4)
        assert texts(completed(client, model=name, prompt=sources, max_tokens=9, num_beams=4)) == beams
        counts = found["usage"]
        assert counts["prompt_tokens"] == sum(map(len, ids))
        assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]


def test_the_longest_answer_is_that_of_the_task_or_sixteen_tokens(client: TestClient) -> None:
    assert completed(client, model="lora", prompt="a")["usage"]["completion_tokens"] == FREE.max_target_length
    assert completed(client, model="base", prompt="a")["usage"]["completion_tokens"] == 16
    assert completed(client, model="base", prompt="a")["choices"][0]["finish_reason"] == "length"
    assert completed(client, model="lora", prompt="a", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_samples_differ_and_return_with_their_seed(client: TestClient) -> None:
    options = {"model": "base", "prompt": "a source", "n": 4, "temperature": 1.0, "max_tokens": 12}
    first, again, other = (texts(completed(client, **options, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len(set(first)) > 1
    unseeded = [texts(completed(client, **options)) for _ in range(3)]
    assert len({str(one) for one in unseeded}) > 1
    best = texts(completed(client, model="base", prompt="a source", max_tokens=12))
    assert texts(completed(client, **options, seed=3, top_p=1e-9)) == best * 4


@pytest.mark.parametrize("name", ["base", "lora", "labels"])
@pytest.mark.parametrize("options", [{}, {"n": 2, "temperature": 1.0, "seed": 5}, {"num_beams": 2}, {"stop": ["$$$"]}])
def test_the_parts_of_a_stream_are_the_whole_answer(client: TestClient, name: str, options: dict) -> None:
    body = {"model": name, "prompt": ["one", "two two"], "max_tokens": 14, "logprobs": 1, **options}
    whole = completed(client, **body)
    events = streamed(client, **body, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        for key in ("tokens", "token_logprobs", "text_offset"):
            assert [one for part in parts for one in part["logprobs"][key]] == (
                pytest.approx(choice["logprobs"][key], abs=1e-5) if key == "token_logprobs" else choice["logprobs"][key]
            )


def test_records_stream_too(client: TestClient) -> None:
    for name in ("lora", "beams", "labels", "head"):
        whole = completed(client, model=name, task=RECORDS)
        events = streamed(client, model=name, task=RECORDS)
        for index, text in enumerate(texts(whole)):
            assert "".join(e["choices"][0]["text"] for e in events if e["choices"][0]["index"] == index) == text


def test_a_stop_text_ends_the_answer_before_it_and_frees_the_row(client: TestClient) -> None:
    text = texts(completed(client, model="base", prompt="one", max_tokens=200))[0]
    assert len(text) > 20
    stop = text[7:10]
    found = completed(client, model="base", prompt="one", max_tokens=200, stop=stop)
    assert texts(found) == [text[: text.index(stop)]]
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] < 200
    assert texts(completed(client, model="base", prompt="one", max_tokens=200, stop=["nowhere", stop])) == texts(found)


def test_log_probabilities_are_those_of_the_model_at_the_places_of_the_tokens(client: TestClient, folder: Path) -> None:
    choice = completed(client, model="lora", prompt="one", max_tokens=10, logprobs=3)["choices"][0]
    found = choice["logprobs"]
    model, tokenizer = load_saved(folder / "adapters" / "lora")
    total = sum(found["token_logprobs"])
    if choice["finish_reason"] == "stop":
        assert total == pytest.approx(
            float(rank(model, tokenizer, ["one"], [choice["text"]]).log_probabilities), abs=1e-4
        )
    assert all(len(row) == 3 for row in found["top_logprobs"])
    for token, value, row in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert row[token] == value == max(row.values())
    assert found["text_offset"][0] == 0
    assert found["text_offset"] == sorted(found["text_offset"])
    assert completed(client, model="lora", prompt="one", logprobs=0)["choices"][0]["logprobs"]["tokens"]


def test_log_probabilities_that_json_cannot_write_are_the_lowest_of_openai() -> None:
    assert [as_json_number(value) for value in (-1.5, -math.inf, -1e6)] == [-1.5, -9999.0, -9999.0]
    assert softmax([0.0, -9999.0]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("completions", '{"model": "lora", "prompt": "a", "prompt": "b"}', "prompt"),
        ("rank", '{"model": "lora", "prompt": "a", "candidates": ["a"], "candidates": ["b"]}', "candidates"),
        ("classify", '{"model": "labels", "task": {"text": "a", "text": "b"}}', "text"),
        ("adapters/load", '{"adapter": "lora", "adapter": "labels"}', "adapter"),
    ],
)
def test_a_body_that_names_a_key_twice_is_refused(client: TestClient, path: str, body: str, key: str) -> None:
    answer = client.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert f"the key '{key}' stands more than once; expected each key once" in answer.json()["error"]["message"]


def test_candidates_are_ranked_as_by_the_library(client: TestClient, folder: Path) -> None:
    model, tokenizer = load_saved(folder / "adapters" / "lora")
    candidates = ["yes", "no", "a longer one"]
    for normalize in (False, True):
        body = {"model": "lora", "prompt": ["one", "two"], "candidates": candidates, "normalize_by_length": normalize}
        results = client.post("/v1/rank", json=body).json()["results"]
        expected = rank(model, tokenizer, ["one", "two"], candidates, normalize_by_length=normalize)
        for result, scores, shares in zip(
            results, expected.log_probabilities.tolist(), expected.probabilities.tolist(), strict=True
        ):
            assert [one["text"] for one in result["candidates"]] == candidates
            assert [one["log_probability"] for one in result["candidates"]] == pytest.approx(scores, abs=1e-4)
            assert [one["probability"] for one in result["candidates"]] == pytest.approx(shares, abs=1e-4)
            assert result["best"] == scores.index(max(scores))


def test_without_candidates_the_words_of_the_task_are_ranked(client: TestClient) -> None:
    found = client.post("/v1/rank", json={"model": "labels", "task": {"text": "a film"}}).json()["results"][0]
    assert [(one["text"], one["label"]) for one in found["candidates"]] == [("bad", "0"), ("good", "1")]
    labels = client.post("/v1/classify", json={"model": "labels", "task": {"text": "a film"}}).json()["results"][0]
    assert [one["probability"] for one in found["candidates"]] == list(labels["probabilities"].values())
    assert labels["label"] == max(labels["probabilities"], key=labels["probabilities"].get)


def test_a_head_classifies_records_and_prompts(client: TestClient) -> None:
    found = client.post("/v1/classify", json={"model": "head", "prompt": ["a film", "another"]}).json()
    assert [set(one["probabilities"]) for one in found["results"]] == [{"r", "g", "b"}] * 2
    assert math.isclose(sum(found["results"][0]["probabilities"].values()), 1)
    record = client.post("/v1/classify", json={"model": "head", "task": {"text": "a film"}}).json()["results"][0]
    assert record["probabilities"] == pytest.approx(found["results"][0]["probabilities"], abs=1e-6)


PROMPT = {"model": "base", "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", {"model": "base"}, 400, "Got neither of prompt and task"),
        ("completions", {**PROMPT, "task": {"text": "a"}}, 400, "Got both of prompt and task"),
        ("completions", {"prompt": "a"}, 400, "model: field required"),
        ("completions", {**PROMPT, "promt": "a"}, 400, "promt: it is unknown. Did you mean 'prompt'?"),
        ("completions", {**PROMPT, "prompt": 3}, 400, "prompt: expected a text, a list of texts"),
        ("completions", {**PROMPT, "prompt": []}, 400, "prompt: expected a text"),
        ("completions", {**PROMPT, "prompt": ""}, 400, "Got a blank text as number 0 of prompt"),
        ("completions", {**PROMPT, "prompt": [1, 5000]}, 400, "Got the token id 5000"),
        ("completions", {**PROMPT, "prompt": ["a"] * 65}, 400, "Got 65 entries of prompt; expected at most 64"),
        ("completions", {**PROMPT, "prompt": ["a"] * 9, "n": 8}, 400, "Got 9 entries of prompt; expected at most 8"),
        ("completions", {**PROMPT, "prompt": "\ud800"}, 400, "Got half of a character"),
        ("completions", {**PROMPT, "prompt": "a" * 2000}, 400, "Got a source of 2001 tokens; expected at most 1024"),
        ("completions", {**PROMPT, "max_tokens": 0}, 400, "max_tokens: input should be greater than or equal to 1"),
        ("completions", {**PROMPT, "max_tokens": 600}, 400, "expected at most 512"),
        ("completions", {**PROMPT, "temperature": 3}, 400, "temperature: input should be less than or equal to 2"),
        ("completions", {**PROMPT, "temperature": "hot"}, 400, "temperature: "),
        ("completions", {**PROMPT, "echo": True}, 400, "Got echo; expected none"),
        ("completions", {**PROMPT, "best_of": 2}, 400, "Got best_of; expected none"),
        ("completions", {**PROMPT, "num_beams": 2, "temperature": 1}, 400, "Got num_beams=2 with temperature=1"),
        ("completions", {**PROMPT, "stream_options": {}}, 400, "Got stream_options without stream"),
        ("completions", {**PROMPT, "model": "nobody"}, 404, "Got the model 'nobody'"),
        ("completions", {**PROMPT, "model": "nobody", "stream": True}, 404, "Got the model 'nobody'"),
        ("completions", {**PROMPT, "model": "head"}, 400, "has a classification head"),
        ("completions", {"model": "base", "task": {"text": "a"}}, 400, "which has no task"),
        ("completions", {"model": "plain", "task": {"text": "a"}}, 400, "which has no task"),
        ("completions", {"model": "lora", "task": {"words": "a"}}, 400, "names the column 'text'"),
        ("completions", {"model": "lora", "task": {"text": None}}, 400, "text"),
        ("completions", {"model": "lora", "task": {"text": "\udc80"}}, 400, "lone surrogate"),
        ("rank", {"model": "lora", "prompt": "a"}, 400, "Got no candidates for 'lora'"),
        ("rank", {"model": "head", "prompt": "a"}, 400, "has a classification head"),
        ("rank", {**PROMPT, "candidates": ["a", "a"]}, 400, "Got candidates 0 and 1, which have the same tokens"),
        ("rank", {**PROMPT, "candidates": [str(i) for i in range(300)]}, 400, "Got 300 entries of candidates"),
        ("rank", {**PROMPT, "candidates": []}, 400, "candidates: list should have at least 1 item"),
        ("classify", {"model": "lora", "prompt": "a"}, 400, "which has neither a head nor a task with labels"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_what_came_what_was_expected_and_what_to_do(
    client: TestClient, path: str, body: dict, status: int, words: str
) -> None:
    response = client.post(f"/v1/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error["message"]
    assert error["message"].startswith("Got ")
    assert "expected" in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", ["", "{", "[1]", "3", '{"model": NaN}', "[" * 5000, "\x00", '{"model": ' + "9" * 5000 + "}"]
)
def test_a_body_that_is_no_request_is_refused(client: TestClient, body: str) -> None:
    for path in ("completions", "rank", "classify", "adapters/load"):
        response = client.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"].startswith("Got ")
    headers = {"Content-Type": "text/plain"}
    assert client.post("/v1/completions", content=json.dumps(PROMPT), headers=headers).status_code == 400
