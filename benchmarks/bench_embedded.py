"""What the embedded log costs: appends and reads, a wake, an idle member, a retention check, and a trim beside a writer.

``python -m benchmarks.bench_embedded [--mb 200] [--waiting 64]`` prints a table. The machine may be shared: compare figures of one run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil

from broker.errors import LogUnavailable
from broker.log import Log, TopicSpec
from broker.open import open_log

SPAWN = multiprocessing.get_context("spawn")
RECORD = bytes(range(256)) * 10  # 2.5 KB, as a sample of 200 tokens


def url_of(directory: str) -> str:
    return f"sqlite://{directory}/log"


def fill(log: Log, topic: str, megabytes: float, partitions: int = 8) -> int:
    """Append that much, in flushes of 1,000 records."""
    producer = log.producer()
    count = int(megabytes * 2**20 / len(RECORD))
    for i in range(count):
        producer.send(topic, b"k", RECORD, i % partitions)
        if i % 1000 == 999:
            producer.flush()
    producer.flush()
    producer.close()
    return count


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def appends_and_reads(log: Log) -> list[str]:
    log.create([TopicSpec("speed", 8)])
    before = cpu()
    count = fill(log, "speed", 50)
    written = cpu() - before
    reader, before, left = log.reader("speed"), cpu(), count
    while left:
        left -= len(reader.poll(1000))
    read = cpu() - before
    reader.close()
    return [f"append: {count / written:,.0f} records per CPU s", f"read: {count / read:,.0f} records per CPU s"]


def wakes(log: Log) -> list[str]:
    """One record arrives on a topic that a reader has read to its end."""
    out = []
    for partitions in (8, 64, 256, 1024):
        topic = f"wake{partitions}"
        log.create([TopicSpec(topic, partitions)])
        producer, reader = log.producer(), log.reader(topic)
        took = []
        for i in range(40):
            reader.poll()
            producer.send(topic, b"k", b"v", i % partitions)
            producer.flush()
            started = time.perf_counter()
            while not reader.poll(256, 0.0):
                pass
            took.append(time.perf_counter() - started)
        out.append(f"wake with {partitions} partitions: {1000 * statistics.median(took):.2f} ms")
        producer.close()
        reader.close()
    return out


def wait_about(url: str, member: int, ready: object, stop: object) -> None:
    consumer = open_log(url).consumer(["idle"], f"g{member % 4}", f"m{member}")
    ready.release()  # type: ignore[attr-defined]
    while not stop.is_set():  # type: ignore[attr-defined]
        consumer.poll(64, 0.05)


def idle(log: Log, url: str, count: int) -> list[str]:
    log.create([TopicSpec("idle", 64)])
    ready, stop = SPAWN.Semaphore(0), SPAWN.Event()
    members = [SPAWN.Process(target=wait_about, args=(url, i, ready, stop), daemon=True) for i in range(count)]
    for member in members:
        member.start()
    for _ in members:
        ready.acquire()
    time.sleep(2)

    def used() -> float:
        return sum(sum(psutil.Process(m.pid).cpu_times()[:2]) for m in members)

    before, began = used(), time.monotonic()
    time.sleep(8)
    share = (used() - before) / (time.monotonic() - began)
    stop.set()
    for member in members:
        member.join()
    return [f"{count} members that wait: {share:.3f} of a core"]


def answer(url: str, seen: object, stop: object) -> None:
    consumer = open_log(url).consumer(["latency"], "g", "m")
    seen.put(0.0)  # type: ignore[attr-defined]
    while not stop.is_set():  # type: ignore[attr-defined]
        for record in consumer.poll(64, 0.05):
            seen.put(time.time() - float(record.value))  # type: ignore[attr-defined]


def latency(log: Log, url: str) -> list[str]:
    """From before the append to the member in another process."""
    log.create([TopicSpec("latency", 8)])
    seen, stop = SPAWN.Queue(), SPAWN.Event()
    member = SPAWN.Process(target=answer, args=(url, seen, stop), daemon=True)
    member.start()
    seen.get()
    producer, out = log.producer(), []
    for rate, count in ((2, 12), (20, 80), (200, 400)):
        took = []
        for _ in range(count):
            time.sleep(1 / rate)
            producer.send("latency", b"k", str(time.time()).encode())
            producer.flush()
            took.append(seen.get())
        took.sort()
        out.append(
            f"latency at {rate}/s: p50 {1000 * took[len(took) // 2]:.2f} ms, p99 {1000 * took[int(0.99 * len(took))]:.2f} ms"
        )
    stop.set()
    member.join()
    producer.close()
    return out


def retention(log: Log, megabytes: float) -> list[str]:
    """What an append costs beside the one that looks for expired records, with nothing to remove."""
    import broker.sqlite.topic as topic_module

    log.create([TopicSpec("kept", 8, retention_seconds=1e6)])
    fill(log, "kept", megabytes)
    topic_module.RETENTION_CHECK_SECONDS = 0.0
    producer, took = log.producer(), []
    for _ in range(9):
        producer.send("kept", b"k", b"v")
        started = time.perf_counter()
        producer.flush()
        took.append(time.perf_counter() - started)
    producer.close()
    return [f"append with a retention check, {megabytes:.0f} MB kept: {1000 * statistics.median(took):.2f} ms"]


def trim(log: Log, directory: Path, megabytes: float) -> list[str]:
    log.create([TopicSpec("trimmed", 8)])
    fill(log, "trimmed", megabytes)
    done, longest, failed = threading.Event(), [0.0], [0]

    def write() -> None:
        producer = open_log(url_of(str(directory))).producer()
        while not done.is_set():
            producer.send("trimmed", b"k", b"v")
            started = time.monotonic()
            try:
                producer.flush()
            except LogUnavailable:
                failed[0] += 1
            longest[0] = max(longest[0], time.monotonic() - started)
            time.sleep(0.01)
        producer.close()

    def size() -> float:
        return sum(p.stat().st_size for p in (directory / "log").glob("trimmed.sqlite*")) / 2**20

    writer, before = threading.Thread(target=write), size()
    writer.start()
    started = time.monotonic()
    log.trim("trimmed", log.ends("trimmed"))
    took = time.monotonic() - started
    done.set()
    writer.join()
    return [
        f"trim of {megabytes:.0f} MB: {took:.1f} s; longest append beside it {longest[0]:.2f} s, refused {failed[0]}; "
        f"on disk {before:.0f} -> {size():.0f} MB"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=200.0)
    parser.add_argument("--waiting", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = url_of(directory)
        log = open_log(url)
        for part in (
            lambda: appends_and_reads(log),
            lambda: wakes(log),
            lambda: latency(log, url),
            lambda: idle(log, url, options.waiting),
            lambda: retention(log, options.mb / 4),
            lambda: retention(log, options.mb * 3 / 4),
            lambda: trim(log, Path(directory), options.mb),
        ):
            for line in part():
                print(line, flush=True)
        log.close()


if __name__ == "__main__":
    main()
