"""Bodies of requests and responses, as the OpenAPI page shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Texts = Annotated[list[str], Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = str | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
Record = dict[str, Any]
Records = Record | Annotated[list[Record], Field(min_length=1)]

# A number that ranges over all reals has neither NaN nor infinity here.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=255)]


class Body(BaseModel):
    """A request whose types are exact and whose unknown fields are refused, as OpenAI refuses them."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SourceBody(Body):
    """Sources, as texts, as token ids, or as records of the adapter's task."""

    model: Name = Field(description="the name of an adapter, or that of the backbone for an answer without an adapter")
    prompt: Prompt | None = Field(None, description="source texts, or token ids")
    task: Records | None = Field(
        None, description="in the place of `prompt`: a record, or a list, with the columns of the adapter's task"
    )
    user: str | None = Field(None, description="ignored")


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None


class CompletionBody(SourceBody):
    """A request of OpenAI's ``/v1/completions``, with ``task`` and ``num_beams`` beside its fields."""

    max_tokens: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="with the end token; default: max_target_length of the adapter's task, else 16",
    )
    n: int | None = Field(None, ge=1, le=64, description="answers to each prompt")
    temperature: Finite | None = Field(None, ge=0, le=2, description="default 0: the most probable answer")
    top_p: Finite | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="default: another one for every request")
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    num_beams: int | None = Field(
        None, ge=1, le=32, description="default: that of the adapter's task for records, else 1"
    )
    echo: bool | None = Field(None, description="only false")
    best_of: int | None = Field(None, description="only 1")
    suffix: str | None = Field(None, description="only empty")
    presence_penalty: Finite | None = Field(None, description="only 0")
    frequency_penalty: Finite | None = Field(None, description="only 0")
    logit_bias: dict[str, Finite] | None = Field(None, description="only empty")


class RankBody(SourceBody):
    """A request to score candidates."""

    candidates: Texts | None = Field(None, description="default: the words of the adapter's task")
    normalize_by_length: bool | None = Field(None, description="divide each log-probability by its number of tokens")


class ClassifyBody(SourceBody):
    """A request for the probabilities of the labels of a task or of the classes of a head."""


class AdapterBody(Body):
    """An adapter by its name."""

    adapter: Name


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LogProbabilities(BaseModel):
    """Log-probabilities of the tokens of an answer; tokens are the pieces of the tokenizer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: LogProbabilities | None = None
    finish_reason: Literal["stop", "length"] | None
    probabilities: dict[str, float] | None = Field(None, description="of the labels, where the task has some")


class Answer(BaseModel):
    """The fields that every answer has."""

    id: str
    created: int
    model: str


class Completion(Answer):
    """Answers to a request; a stream sends several, each with the text that came."""

    object: Literal["text_completion"]
    choices: list[Choice]
    usage: Usage | None = None


class Candidate(BaseModel):
    """A candidate with its score."""

    text: str
    label: str | None = Field(None, description="where the candidates are the words of the task")
    log_probability: float
    probability: float


class RankResult(BaseModel):
    """The scores of one source, in the order of the candidates."""

    index: int
    best: int
    candidates: list[Candidate]


class RankAnswer(Answer):
    """Scores of candidates."""

    object: Literal["ranking"]
    results: list[RankResult]
    usage: Usage


class ClassifyResult(BaseModel):
    """The most probable label of one source, and the probability of each."""

    index: int
    label: str
    probabilities: dict[str, float]


class ClassifyAnswer(Answer):
    """Probabilities of labels."""

    object: Literal["classification"]
    results: list[ClassifyResult]
    usage: Usage


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models that can be asked."""

    object: Literal["list"]
    data: list[ModelCard]


class AdapterState(BaseModel):
    """The state of an adapter, also after a request to load or unload it."""

    name: str
    loaded: bool


class AdapterCard(AdapterState):
    """An adapter of the folder."""

    method: str | None
    task: dict[str, Any] | None
    num_bytes: int | None = Field(description="in memory; null where it is not loaded")
    has_head: bool = Field(description="whether it classifies by a head and generates nothing")
    problem: str | None = Field(description="why it cannot be described")


class AdapterList(BaseModel):
    """All adapters of the folder."""

    data: list[AdapterCard]
    num_bytes: int
    max_bytes: int | None


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok", "ready", "stopping"]


class ErrorDetail(BaseModel):
    """An error with a message that says what came, what was expected, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in the form of OpenAI's API."""

    error: ErrorDetail
