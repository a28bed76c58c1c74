"""How soon probes and routes see a killed server, and what a client pays for it.

A probe asks the same thing again and again from before the kill until all is well again; its record tells when the
answer turned bad, when it turned good, and the longest single wait.
"""

import contextlib
import os
import signal
import threading
import time

import psycopg
from machine import http_get, wait_until


class Probe(threading.Thread):
    """Calls `ask` (truth or falsehood) every `pause_seconds`, keeping the time at which each call began and ended."""

    def __init__(self, ask, pause_seconds):
        super().__init__(daemon=True)
        self.ask, self.pause_seconds = ask, pause_seconds
        self.records = []
        self.ended = threading.Event()

    def run(self):
        """Until `end`."""
        while not self.ended.is_set():
            began = time.monotonic()
            good = self.ask()
            self.records.append((began, time.monotonic(), good))
            self.ended.wait(self.pause_seconds)

    def end(self):
        """No further call; waits for the one under way."""
        self.ended.set()
        self.join(60)

    def good_since(self, moment):
        """Whether the newest answer, asked for after that moment, was good."""
        return bool(self.records) and self.records[-1][0] > moment and self.records[-1][2]

    def report(self, killed_at):
        """Milliseconds after the kill to the first bad and to the lasting good answer, bad answers, longest wait."""
        after = [record for record in self.records if record[1] >= killed_at]
        bad = [record for record in after if not record[2]]
        last_bad = bad[-1][1] if bad else killed_at
        good = next((record[1] for record in after if record[2] and record[1] >= last_bad), None)
        return {
            "bad_after_ms": round((bad[0][1] - killed_at) * 1000, 1) if bad else None,
            "good_after_ms": round((good - killed_at) * 1000, 1) if bad and good else None,
            "bad_answers": len(bad),
            "answers": len(after),
            "longest_wait_ms": round(max((r[1] - r[0] for r in after), default=0) * 1000, 1),
        }


def http_probe(host, port, path):
    """200 or not."""
    return Probe(lambda: http_get(host, port, path)[0] == 200, 0.005)


def query_probe(dsn):
    """A new connection and one query, as a client without a pool makes them."""

    def ask():
        with contextlib.suppress(psycopg.Error):
            with psycopg.connect(dsn, connect_timeout=20) as connection:
                connection.execute("select pg_is_in_recovery()").fetchone()
            return True
        return False

    return Probe(ask, 0.01)


def react(pid, probes, limit_seconds=90):
    """Kills a postmaster while the probes run; returns each probe's report.

    `probes` must all be good before; it ends when they have all been good for a second.
    """
    for probe in probes.values():
        probe.start()
    try:
        begun = time.monotonic()
        wait_until(lambda: all(p.good_since(begun) for p in probes.values()), 30, "good probes")
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)
        settled = [time.monotonic()]

        def settle():
            now = time.monotonic()
            if not all(p.good_since(killed_at) for p in probes.values()):
                settled[0] = now
            return now - settled[0] > 1

        with contextlib.suppress(Exception):
            wait_until(settle, limit_seconds, "good probes after the kill")
    finally:
        for probe in probes.values():
            probe.end()
    return {name: probe.report(killed_at) for name, probe in probes.items()}


def podgres_reactions(cluster):
    """A killed primary, then a killed standby, of podgres."""
    primary, standby = cluster.primary(), cluster.standbys()[0]
    of_primary = react(
        primary["pids"]["postgres"],
        {
            "/primary": http_probe(primary["host"], primary["http_port"], "/primary"),
            "/replica of a standby": http_probe(standby["host"], standby["http_port"], "/replica"),
            "read-write route": query_probe(cluster.dsn("--read-write")),
            "read-only route": query_probe(cluster.dsn("--read-only")),
            "server itself": query_probe(cluster.dsn("--member", str(primary["ordinal"]))),
        },
    )
    cluster.wait_complete()
    standby = cluster.member(standby["ordinal"])
    of_standby = react(
        standby["pids"]["postgres"],
        {
            "/replica": http_probe(standby["host"], standby["http_port"], "/replica"),
            "read-only route": query_probe(cluster.dsn("--read-only")),
            "server itself": query_probe(cluster.dsn("--member", str(standby["ordinal"]))),
        },
    )
    cluster.wait_complete()
    return {"primary killed": of_primary, "standby killed": of_standby}


def patroni_reactions(cluster):
    """The same of Patroni, which has no routes of its own."""
    primary = cluster.primary_host()
    standby = next(host for host in cluster.hosts if host != primary)
    of_primary = react(
        cluster.postmaster_pid(primary),
        {
            "/primary": http_probe(primary, 8008, "/primary"),
            "/replica of a standby": http_probe(standby, 8008, "/replica"),
            "server itself": query_probe(cluster.dsn(primary)),
        },
    )
    cluster.wait_complete()
    of_standby = react(
        cluster.postmaster_pid(standby),
        {
            "/replica": http_probe(standby, 8008, "/replica"),
            "server itself": query_probe(cluster.dsn(standby)),
        },
    )
    cluster.wait_complete()
    return {"primary killed": of_primary, "standby killed": of_standby}
