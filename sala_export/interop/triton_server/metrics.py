"""The metrics of `sala-export serve`, shown among those of Triton Inference Server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from prometheus_client import Metric

_IS_COUNT = {"counter", "histogram"}
_TIME_OF_BIRTH = "_created"


class ShownMetrics:
    """Brings metrics to the server, under their names, with the model and its instance as further labels.

    The parts of a histogram are counters there: its buckets, sum and count. Prometheus computes quantiles of them.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._families: dict[str, Any] = {}
        self._shown: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Any, float]] = {}

    def show(self, families: Iterable[Metric]) -> None:
        """Bring what has changed."""
        for family in families:
            is_count = family.type in _IS_COUNT
            for sample in family.samples:
                if not sample.name.endswith(_TIME_OF_BIRTH):
                    self._show(sample.name, sample.labels, sample.value, family.documentation, is_count=is_count)

    def _show(self, name: str, labels: Mapping[str, str], value: float, what: str, *, is_count: bool) -> None:
        key = (name, tuple(sorted(labels.items())))
        if key not in self._shown:
            metric = self._family(name, what, is_count=is_count).Metric(labels={**self._labels, **labels})
            self._shown[key] = (metric, 0.0)
        metric, before = self._shown[key]
        if value == before:
            return
        if is_count:
            metric.increment(value - before)
        else:
            metric.set(value)
        self._shown[key] = (metric, value)

    def _family(self, name: str, what: str, *, is_count: bool) -> Any:
        if name not in self._families:
            kind = pb_utils.MetricFamily.COUNTER if is_count else pb_utils.MetricFamily.GAUGE
            self._families[name] = pb_utils.MetricFamily(name=name, description=what, kind=kind)
        return self._families[name]
