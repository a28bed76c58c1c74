"""How long clients cannot write, fault by fault, and whether an acknowledged row is ever lost.

Three pods; writers insert a number every 20 ms straight at the members (or through the read-write routes), never a number twice. A
writer that has had no answer for `GIVE_UP_SECONDS` is cut, as an application's own time limit would. The outage is the longest
time between two acknowledged inserts around the fault. Called by benches/run as `--only failover`.
"""

import contextlib
import os
import random
import signal
import socket
import threading
import time

import psycopg
from machine import TimedOut, wait_until

WRITERS = 4
PAUSE_SECONDS = 0.02
GIVE_UP_SECONDS = 1.0
SETTLE_SECONDS = 60

FAULTS = ("postmaster", "pod", "freeze", "deleted", "switchover", "sidecar_frozen", "api_down")


class Writers:
    """Sessions that write numbers and remember which were acknowledged, and when the last was."""

    def __init__(self, dsns):
        self.dsns = dsns
        self.lock = threading.Lock()
        self.number = 0
        self.acknowledged = []
        self.refused_connections = 0
        self.last = time.monotonic()
        self.longest = 0.0
        self.stopping = threading.Event()
        self.busy = {}
        self.threads = []

    def start(self):
        with contextlib.closing(self.connect()) as session:
            session.execute("CREATE TABLE IF NOT EXISTS numbers (number bigint PRIMARY KEY, at timestamptz DEFAULT now())")
            self.number = session.execute("SELECT coalesce(max(number), 0) FROM numbers").fetchone()[0]
        for work in [self.write] * WRITERS + [self.cut_the_stuck]:
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
                    session = psycopg.connect(dsn, autocommit=True, connect_timeout=2)
                except psycopg.Error:
                    self.refused_connections += 1
                    continue
                with contextlib.suppress(psycopg.Error):
                    if not session.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
                        return session
                session.close()
            time.sleep(0.005)
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
            time.sleep(PAUSE_SECONDS)
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


def failover(cluster, faults, runs, api_seconds):
    """Outages by fault, rejoin times, and the number of acknowledged rows that are missing at the end."""
    dsns = [cluster.command("demo", "dsn", "--member", str(m["ordinal"])).strip() for m in cluster.view()]
    writers = Writers(dsns)
    writers.start()
    results = {fault: [] for fault in faults}
    try:
        for _ in range(runs):
            for fault in faults:
                results[fault].append(once(cluster, writers, fault, api_seconds))
                print(f"{fault}: {results[fault][-1]}", flush=True)
    finally:
        writers.end()
    wait_until(cluster.complete, SETTLE_SECONDS, "the members")
    results["lost"] = lost(cluster, writers)
    return results


def lost(cluster, writers):
    """Acknowledged numbers that a member does not have, once all have replayed everything."""
    missing = {}
    for member in cluster.view():
        dsn = cluster.command("demo", "dsn", "--member", str(member["ordinal"])).strip()
        with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as session:
            def absent(session=session):
                rows = {row[0] for row in session.execute("SELECT number FROM numbers")}
                return [number for number in writers.acknowledged if number not in rows]
            with contextlib.suppress(TimedOut):
                wait_until(lambda: not absent(), 20, "replay")
            missing[member["name"]] = len(absent())
    return {"acknowledged": len(writers.acknowledged), "missing": missing}


def once(cluster, writers, fault, api_seconds):
    """One fault, from all well to all well."""
    wait_until(cluster.complete, SETTLE_SECONDS, "the members")
    wait_until(writers.flowing, SETTLE_SECONDS, "the writers")
    time.sleep(random.uniform(1.0, 3.0))
    primary = cluster.primary()
    writers.reset()
    began = time.monotonic()
    heal = inject(cluster, primary, fault, api_seconds)
    time.sleep(1.0)
    wait_until(writers.flowing, SETTLE_SECONDS, "writes")
    # The fault lasts for a while after writes flow again, as it would.
    time.sleep(2.0)
    outage = writers.outage()
    heal()
    healed = time.monotonic()
    wait_until(cluster.complete, SETTLE_SECONDS, "the members")
    outage = max(outage, writers.outage()) if fault == "api_down" else outage
    return {
        "outage_seconds": round(outage, 3),
        "rejoined_seconds": round(time.monotonic() - (healed if fault in ("freeze", "sidecar_frozen") else began), 1),
        "moved": cluster.primary()["name"] != primary["name"],
    }


def inject(cluster, primary, fault, api_seconds):
    """Does it, and returns what undoes it."""
    ordinal, pids = str(primary["ordinal"]), primary["pids"]
    if fault == "postmaster":
        os.kill(pids["postgres"], signal.SIGKILL)
    elif fault == "pod":
        background(cluster, "demo", "delete-pod", ordinal, "--force")
    elif fault == "deleted":
        background(cluster, "demo", "delete-pod", ordinal)
    elif fault == "freeze":
        cluster.command("demo", "freeze", ordinal)
        return lambda: cluster.command("demo", "thaw", ordinal)
    elif fault == "switchover":
        background(cluster, "switchover")
    elif fault == "sidecar_frozen":
        os.kill(pids["sidecar"], signal.SIGSTOP)
        return lambda: os.kill(pids["sidecar"], signal.SIGCONT)
    elif fault == "api_down":
        cluster.command("demo", "api", "down")
        time.sleep(api_seconds / 3)
        background(cluster, "demo", "delete-pod", str(cluster.standbys()[0]["ordinal"]), "--force")
        time.sleep(api_seconds * 2 / 3)
        return lambda: cluster.command("demo", "api", "up")
    return lambda: None


def background(cluster, *words):
    threading.Thread(target=cluster.command, args=words, kwargs={"limit_seconds": 120}, daemon=True).start()
