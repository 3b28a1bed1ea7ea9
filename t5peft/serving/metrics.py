"""Prometheus metrics of the server, its engine and its pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from t5peft.serving.engine import Engine
from t5peft.serving.pool import AdapterPool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Figures of the engine that only grow.
_COUNTED = {"finished", "cancelled", "failed", "generated_tokens", "steps"}


class Metrics:
    """Counts of one application, in a registry of its own.

    Args:
        engine: Whose figures are read when metrics are asked for.
        pool: Likewise.
    """

    def __init__(self, engine: Engine, pool: AdapterPool) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "t5peft_requests", "Responses by route and status.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "t5peft_request_seconds",
            "Time from the request to the end of the response.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.gone = Counter(
            "t5peft_clients_gone", "Requests whose client went away before the answer.", registry=self._registry
        )
        self._tokens = Counter(
            "t5peft_tokens", "Tokens of answered requests.", ("model", "kind"), registry=self._registry
        )
        self._registry.register(_State(engine, pool))

    def count_tokens(self, model: str, usage: Mapping[str, int]) -> None:
        """Count the tokens of an answered request.

        Args:
            model: That answered.
            usage: As the response has it.
        """
        for kind in ("prompt", "completion"):
            self._tokens.labels(model, kind).inc(usage[f"{kind}_tokens"])

    def exposition(self) -> tuple[bytes, str]:
        """Return the metrics as text, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


def labeled(texts: Mapping[str, str]) -> bytes:
    """Join the metrics of several replicas, each with a label of its own.

    Args:
        texts: The exposition of each replica, by its name.

    Returns:
        One exposition, with the label ``replica`` at every sample.
    """
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                joined.add_sample(sample.name, {"replica": replica, **sample.labels}, sample.value)
    return generate_latest(SimpleNamespace(collect=families.values))


class _State(Collector):
    """The figures of the engine and the pool at the time of asking."""

    def __init__(self, engine: Engine, pool: AdapterPool) -> None:
        self._engine, self._pool = engine, pool

    def collect(self) -> Iterable[Metric]:
        for name, value in asdict(self._engine.stats()).items():
            kind = CounterMetricFamily if name in _COUNTED else GaugeMetricFamily
            yield kind(f"t5peft_engine_{name}", f"The engine's {name.replace('_', ' ')}.", value=value)
        pool = self._pool
        yield GaugeMetricFamily("t5peft_adapters_loaded", "Adapters in memory.", value=len(pool.loaded()))
        yield GaugeMetricFamily("t5peft_adapters_bytes", "Memory of the loaded adapters.", value=pool.num_bytes)
