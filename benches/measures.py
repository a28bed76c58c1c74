"""The measurements that need no probe running beside them: start, idle cost, clone, size.

Each takes what it measures and gives plain numbers; main.py prints them.
"""

import contextlib
import os
import statistics
import subprocess
import time
from pathlib import Path

import psycopg
from machine import (
    cpu_seconds,
    folder_bytes,
    owned_folder,
    pss_bytes,
    server_account,
    start,
    stop,
    wait_until,
)

# 992 letters a row and seven rows a page; not compressed, not moved out of line.
ROWS_PER_GIBIBYTE = 7 * 131072
FILLER = "create table filler as select i as id, repeat(md5(i::text), 31) as content from generate_series(1, {}) i"


def start_seconds(cluster):
    """From start to a primary and all others streaming. Stops the cluster again."""
    try:
        began = time.monotonic()
        cluster.start()
        cluster.wait_complete()
        return time.monotonic() - began
    finally:
        cluster.stop()


def idle_cost(clusters, settle_seconds, sample_seconds):
    """Memory (PSS, bytes) and processor (share of one core) of the agents, by cluster and member, over one time."""
    time.sleep(settle_seconds)
    pids = {name: cluster.agent_pids() for name, cluster in clusters.items()}

    def cpu_now():
        return {name: [sum(map(cpu_seconds, member)) for member in pids[name]] for name in pids}

    began, before = time.monotonic(), cpu_now()
    time.sleep(sample_seconds)
    elapsed, after = time.monotonic() - began, cpu_now()
    return {
        name: {
            "pss_bytes": [sum(map(pss_bytes, member)) for member in pids[name]],
            "cpu_share": [(b - a) / elapsed for a, b in zip(before[name], after[name], strict=True)],
            "pss_bytes_by_process": [[pss_bytes(pid) for pid in member] for member in pids[name]],
        }
        for name in pids
    }


def fill(dsn, gibibytes):
    """Makes a database of that size; returns what it really takes, in bytes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(FILLER.format(int(ROWS_PER_GIBIBYTE * gibibytes)))
        connection.execute("checkpoint")
        return connection.execute("select pg_database_size(current_database())").fetchone()[0]


class PlainServer:
    """PostgreSQL as `initdb` leaves it, to take a plain pg_basebackup from."""

    def __init__(self, bindir, folder):
        self.bindir, self.folder = Path(bindir), owned_folder(folder)
        self.process = None
        self.dsn = f"host={self.folder} user=postgres dbname=postgres"

    def run(self, program, *arguments, limit_seconds=600):
        """Runs one of PostgreSQL's programs as its user; returns its seconds."""
        account = server_account()
        began = time.monotonic()
        subprocess.run(
            [self.bindir / program, *map(str, arguments)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=limit_seconds,
            cwd="/",
            **({"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}),
        )
        return time.monotonic() - began

    def start(self):
        """initdb, then the server, on a socket only."""
        data = self.folder / "data"
        self.run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--data-checksums")
        self.process = start(
            [self.bindir / "postgres", "-D", data, "-k", self.folder, "-c", "listen_addresses="],
            self.folder / "server.log",
        )
        wait_until(self.answers, 30, "a plain PostgreSQL")

    def answers(self):
        """Whether it takes connections."""
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn).close()
            return True
        return False

    def base_backup_seconds(self):
        """pg_basebackup into a new folder, with WAL and fsync, as people run it."""
        copy = self.folder / "copy"
        seconds = self.run(
            "pg_basebackup", "-h", self.folder, "-U", "postgres", "-D", copy, "-X", "stream", "-c", "fast"
        )
        size = folder_bytes(copy)
        subprocess.run(["rm", "-rf", copy], check=True)
        return seconds, size

    def stop(self):
        """Fast shutdown."""
        if self.process:
            stop(self.process, 60, how=2)


def clone_seconds(cluster, ordinal):
    """Deletes a pod with its volume. Seconds until it streams again, and how long each state on the way was told."""
    states, began = [], time.monotonic()
    if cluster.command("demo", "delete-pod", str(ordinal), "--wipe-volume", limit_seconds=120) is None:
        raise RuntimeError("podgres demo delete-pod refused")

    def streams_again():
        member = cluster.member(ordinal)
        state = member["state"] if member else "gone"
        if not states or states[-1][0] != state:
            states.append((state, time.monotonic() - began))
        return state == "streaming" and len(states) > 1

    wait_until(streams_again, 600, "a fresh clone", pause_seconds=0.05)
    ends = [at for _, at in states[1:]] + [states[-1][1]]
    told = {}
    for (state, at), end in zip(states, ends, strict=True):
        told[state] = told.get(state, 0) + end - at
    return states[-1][1], told


def binary_sizes(program):
    """Bytes of the binary and of the static one beside it, if it was built."""
    program = Path(program).resolve()
    static = program.parents[1] / f"{os.uname().machine}-unknown-linux-musl" / "release" / program.name
    return {
        name: path.stat().st_size
        for name, path in (("podgres", program), ("podgres, static", static))
        if path.exists()
    }


def spread(values, unit="", digits=2):
    """min / median / max."""
    points = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{point:.{digits}f}" for point in points) + unit
