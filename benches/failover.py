"""How long clients cannot write, fault by fault, and whether an acknowledged row is ever lost.

Three pods; one writer inserts a number every 20 ms straight at the members, or several without a pause, never a number twice. A
writer that has had no answer for `GIVE_UP_SECONDS` is cut, as an application's own time limit would. The outage is the longest
time between two acknowledged inserts around the fault. Called by benches/run as `--only failover`.
"""

import contextlib
import os
import random
import socket
import threading
import time

import psycopg
from machine import TimedOut, wait_until

PAUSE_SECONDS = 0.02
GIVE_UP_SECONDS = 1.0
SETTLE_SECONDS = 90
POLL_SECONDS = 0.2
ANSWER_SECONDS = 0.2
# PostgreSQL's manual, 53.7 "Message Formats": length 8, code 80877103; any server answers with one byte.
SSL_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)


class Writers:
    """Sessions that write numbers and remember which were acknowledged, and when the last was."""

    def __init__(self, dsns, count=1):
        self.dsns, self.count = dsns, count
        # Several are to load the cluster: they do not pause between two that are taken.
        self.pause_seconds = PAUSE_SECONDS if count == 1 else 0
        self.lock = threading.Lock()
        self.number = 0
        self.acknowledged = []
        self.last = time.monotonic()
        self.longest = 0.0
        self.stopping = threading.Event()
        self.busy = {}
        self.threads = []

    def start(self):
        with contextlib.closing(self.connect()) as session:
            session.execute("CREATE TABLE IF NOT EXISTS numbers (number bigint PRIMARY KEY, at timestamptz DEFAULT now())")
            self.number = session.execute("SELECT coalesce(max(number), 0) FROM numbers").fetchone()[0]
        for work in [self.write] * self.count + [self.cut_the_stuck]:
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self.threads.append(thread)

    def end(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(10)

    def connect(self):
        """A session with whoever accepts writes now; None when stopping."""
        while not self.stopping.is_set():
            for dsn in random.sample(self.dsns, len(self.dsns)):
                try:
                    session = psycopg.connect(dsn, autocommit=True, connect_timeout=2) if answers(dsn) else None
                except psycopg.Error:
                    session = None
                if session is None:
                    continue
                with contextlib.suppress(psycopg.Error):
                    if not session.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
                        return session
                session.close()
            time.sleep(PAUSE_SECONDS)
        return None

    def write(self):
        session = None
        while not self.stopping.is_set():
            session = session or self.connect()
            if session is None:
                return
            with self.lock:
                self.number += 1
                number = self.number
            me = threading.get_ident()
            self.busy[me] = (time.monotonic(), session.fileno())
            try:
                session.execute("INSERT INTO numbers (number) VALUES (%s)", (number,))
                self.note(number)
            except (psycopg.Error, OSError):
                session.close()
                session = None
            self.busy.pop(me, None)
            time.sleep(self.pause_seconds)
        if session:
            session.close()

    def note(self, number):
        now = time.monotonic()
        with self.lock:
            self.longest = max(self.longest, now - self.last)
            self.last = now
            self.acknowledged.append(number)

    def cut_the_stuck(self):
        while not self.stopping.wait(0.1):
            for since, descriptor in list(self.busy.values()):
                if time.monotonic() - since > GIVE_UP_SECONDS:
                    with contextlib.suppress(OSError):
                        duplicate = socket.socket(fileno=os.dup(descriptor))
                        duplicate.shutdown(socket.SHUT_RDWR)
                        duplicate.close()

    def reset(self):
        with self.lock:
            self.longest, self.last = 0.0, time.monotonic()

    def outage(self):
        with self.lock:
            return max(self.longest, time.monotonic() - self.last)

    def flowing(self):
        return time.monotonic() - self.last < 0.2


def answers(dsn):
    """Whether a server says anything at all: libpq cannot wait for less than 2 s, which would be the outage's length then."""
    where = psycopg.conninfo.conninfo_to_dict(dsn)
    try:
        with socket.create_connection((where["host"], int(where["port"])), ANSWER_SECONDS) as probe:
            probe.settimeout(ANSWER_SECONDS)
            probe.sendall(SSL_REQUEST)
            return probe.recv(1) in (b"S", b"N")
    except OSError:
        return False


def failover(contender, name, faults, runs, count=1):
    """Outages by fault, rejoin times, and the number of acknowledged rows that are missing at the end."""
    dsns = contender.dsns()
    writers = Writers(list(dsns.values()), count)
    writers.start()
    chosen = [fault for fault in faults if fault in contender.faults]
    results = {fault: [] for fault in chosen}
    try:
        for _ in range(runs):
            for fault in chosen:
                results[fault].append(once(contender, writers, fault))
                print(f"{name}, {fault}: {results[fault][-1]}", flush=True)
    finally:
        writers.end()
    wait_until(contender.complete, SETTLE_SECONDS, "the members")
    results["lost"] = lost(dsns, writers)
    return results


def lost(dsns, writers):
    """Acknowledged numbers that a member does not have, once all have replayed everything."""
    missing = {}
    for name, dsn in dsns.items():
        with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as session:
            def absent(session=session):
                rows = {row[0] for row in session.execute("SELECT number FROM numbers")}
                return [number for number in writers.acknowledged if number not in rows]
            with contextlib.suppress(TimedOut):
                wait_until(lambda: not absent(), 20, "replay")
            missing[name] = len(absent())
    return {"acknowledged": len(writers.acknowledged), "missing": missing}


def once(contender, writers, fault):
    """One fault, from all well to all well."""
    wait_until(contender.complete, SETTLE_SECONDS, "the members", POLL_SECONDS)
    wait_until(writers.flowing, SETTLE_SECONDS, "the writers")
    time.sleep(random.uniform(1.0, 3.0))
    primary = contender.primary()
    writers.reset()
    began = time.monotonic()
    heal = contender.inject(fault)
    time.sleep(1.0)
    wait_until(writers.flowing, SETTLE_SECONDS, "writes")
    # The fault lasts for a while after writes flow again, as it would.
    time.sleep(2.0)
    outage = writers.outage()
    heal()
    healed = time.monotonic()
    wait_until(contender.complete, SETTLE_SECONDS, "the members", POLL_SECONDS)
    outage = max(outage, writers.outage()) if fault == "api_down" else outage
    return {
        "outage_seconds": round(outage, 3),
        "rejoined_seconds": round(time.monotonic() - (healed if fault in ("freeze", "sidecar_frozen") else began), 1),
        "moved": contender.primary() != primary,
    }
