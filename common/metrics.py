"""Counts as Prometheus reads them: the one module that knows prometheus_client. Loaded only where metrics are served.

The HTTP server has threads of its own. They read integers and copies of what the one working thread counts, and
change nothing; a scrape may see one count a moment before another.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import refused
from common.histogram import Histogram

FILES_LABELLED_MAX: Final = 100
"""How many files get a time series of their own: the first that were known."""
_FIRST, _LAST = 4, 26
"""The buckets told, to 2^4 and up to 2^26 microseconds: 16 µs and a minute."""
_BOUNDS: Final = [str((1 << bucket) / 1e6) for bucket in range(_FIRST, _LAST + 1)]
Labels = tuple[str, ...]
_IDLE_S: Final = 10.0
"""A connection on which nothing is asked for so long is closed."""
CONNECTIONS_MAX: Final = 16
"""How many are served at once; more are closed, so that they never take the descriptors that clients need."""
_SWITCH_S: Final = 0.000_5
"""How long a scrape keeps the interpreter from the thread that works. Python's own 5 ms would be ten grants."""


class Source(Protocol):
    """What is scraped."""

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they are now. Called by another thread than the one that counts."""


class Metrics:
    """An HTTP server for scrapes. It ends with the process."""

    def __init__(self, host: str, port: int) -> None:
        """Listen on an address; port 0 takes a free one. Raises CommandError."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        shown = f"[{host}]" if ":" in host else host
        # Whoever ends this process has its main thread in mind, which waits for the signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            server, _ = start_http_server(port, host, self._registry)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise refused(f"cannot serve metrics on {shown}:{port} ({reason}); choose another --metrics") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        handler: Any = server.RequestHandlerClass
        server.RequestHandlerClass = type("Handler", (handler,), {"timeout": _IDLE_S})
        _bound(server)
        sys.setswitchinterval(_SWITCH_S)
        server.handle_error = _but_for_broken_connections(server.handle_error)  # type: ignore[assignment]
        self.url = f"http://{shown}:{server.server_port}/metrics"

    def serve(self, source: Source) -> None:
        """Tell of `source` from now on."""
        self._registry.register(_Told(source))


class _Told(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return []  # or it would be collected once at its registration

    def collect(self) -> Iterable[Metric]:
        return self._source.collect()


def _bound(server: Any) -> None:
    """Have the server hold no more than CONNECTIONS_MAX connections."""
    slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
    begin, serve = server.process_request, server.process_request_thread

    def begin_if_there_is_room(request: object, address: object) -> None:
        if slots.acquire(blocking=False):
            begin(request, address)
        else:
            server.shutdown_request(request)

    def serve_and_make_room(request: object, address: object) -> None:
        try:
            serve(request, address)
        finally:
            slots.release()

    server.process_request, server.process_request_thread = begin_if_there_is_room, serve_and_make_room


def _but_for_broken_connections(tell: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Return what tells of an error in a request, unless its reader has just gone away."""

    def handle_error(request: object, address: object) -> None:
        if not isinstance(sys.exception(), OSError):
            tell(request, address)

    return handle_error


def counter(name: str, about: str, value: int) -> Metric:
    """Return a counter without labels; `_total` is put behind its name."""
    return CounterMetricFamily(name, about, value=value)


def counters(name: str, about: str, labels: Sequence[str], values: Iterable[tuple[Labels, float]]) -> Metric:
    """Return a counter for each tuple of label values."""
    return _labelled(CounterMetricFamily(name, about, labels=labels), values)


def gauge(name: str, about: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, about, value=value)


def gauges(name: str, about: str, labels: Sequence[str], values: Iterable[tuple[Labels, float]]) -> Metric:
    """Return a gauge for each tuple of label values."""
    return _labelled(GaugeMetricFamily(name, about, labels=labels), values)


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[Labels, float]]
) -> CounterMetricFamily | GaugeMetricFamily:
    for key, value in values:
        family.add_metric(key, value)
    return family


def histogram(name: str, about: str, durations: Histogram) -> Metric:
    """Return durations as a histogram of seconds."""
    return HistogramMetricFamily(name, about, buckets=_buckets(durations), sum_value=durations.sum_us / 1e6)


def histograms(name: str, about: str, label: str, values: Iterable[tuple[str, Histogram]]) -> Metric:
    """Return a histogram of seconds for each value of a label."""
    family = HistogramMetricFamily(name, about, labels=[label])
    for key, durations in values:
        family.add_metric([key], _buckets(durations), durations.sum_us / 1e6)
    return family


def _buckets(durations: Histogram) -> list[tuple[str, float]]:
    counts = list(durations.counts)
    total = sum(counts[:_FIRST])
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(_BOUNDS, counts[_FIRST:], strict=False):
        total += count
        buckets.append((bound, total))
    return [*buckets, ("+Inf", sum(counts))]
