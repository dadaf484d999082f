"""Every page of metrics is one that ``promtool check metrics`` takes without a word."""

import asyncio
import re
import shutil
import subprocess

import pytest

from laser_features.testing import tiny_spec
from seqvault.ingest.kafka_ingest import KafkaIngest
from seqvault.service.metrics import GAUGES
from seqvault.service.metrics import Metrics as StoreMetrics
from serving.gateway.gateway import Gateway
from serving.runtime.http_server import HttpServer

TYPE = re.compile(r"# TYPE (\w+) (counter|gauge|histogram)")
HELP = re.compile(r"# HELP (\w+) (\S.*)")


def store_page():
    metrics = StoreMetrics()
    metrics.count("Read", "OK", 0.01)
    sources = {'a "quoted" one': 3}
    return metrics.text({**dict.fromkeys(GAUGES, 1), "sources": sources}, 2, 1.5)


def ingest_page():
    ingest = object.__new__(KafkaIngest)  # one that is made looks for its broker
    ingest.topic, ingest.lag = "events", lambda: {0: 3, 1: 0}
    ingest.counts = {"messages": 4, "events": 3, "malformed": 1, "retries": 0}
    return ingest.metrics_text()


def gateway_page():
    async def page():
        gateway = Gateway(tiny_spec(), object(), object())
        gateway.watch(HttpServer(gateway.answer, "127.0.0.1", 0))
        metrics = gateway._metrics
        metrics.count_request("/v1/rank", 200)
        metrics.count_refused("deadline")
        metrics.count_outside("rank", {"history_item_id": 2})
        metrics.count_degraded("history")
        metrics.observe({"store_ms": 1.0, "total_ms": 2.0})
        return metrics.text().decode()

    return asyncio.run(page())


def training_page():
    metrics_log = pytest.importorskip("tfx_pipeline.training.metrics_log")
    return metrics_log.textfile({"eval_auc": 0.75, "eval/like_auc": 1.0, "step": 9})


def feature_host_page():
    metrics = pytest.importorskip("tfx_pipeline.feature_host.host_metrics").HostMetrics()
    metrics.sent({"requests": 3, "ids: history_item_id": 5}, 1000)
    metrics.streams(1)
    return metrics.text()


PAGES = {
    "store": store_page,
    "ingest": ingest_page,
    "gateway": gateway_page,
    "training": training_page,
    "feature host": feature_host_page,
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_keep_to_the_conventions(name):
    text = PAGES[name]()
    kinds = dict(TYPE.findall(text))
    assert kinds and set(dict(HELP.findall(text))) == set(kinds)
    for metric, kind in kinds.items():
        assert (kind == "counter") == metric.endswith("_total"), metric
        assert not re.search(r"_(ms|millis|milliseconds|minutes|kib|mib|created)\b", metric), metric
    for line in text.splitlines():
        if not line.startswith("#"):
            sample = re.match(r"\w+", line).group()
            assert re.sub("_(bucket|sum|count)$", "", sample) in kinds or sample in kinds, line
    assert len(text.splitlines()) == len(set(text.splitlines()))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian has it in prometheus")
@pytest.mark.parametrize("name", PAGES)
def test_promtool_finds_nothing(name):
    page = PAGES[name]()
    check = ["promtool", "check", "metrics"]
    done = subprocess.run(check, input=page, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
