"""How long a lost primary takes to stream again when it has WAL that its successor has not, and what that copies."""

import contextlib
import re
import threading
import time

import psycopg
from machine import wait_until

# `main` of pg_rewind.c
COPIES = re.compile(rb"need to copy (\d+) MB \(total source directory size is (\d+) MB\)")
LIMIT_SECONDS = 90
# PostgreSQL's estimate of what a checkpoint needs falls by a tenth with each.
ROUNDS = 40


def rejoin(cluster):
    """One failover: the standbys are frozen while the primary flushes a commit that nobody else has, then it is killed."""
    wait_until(cluster.complete, LIMIT_SECONDS, "the members", 0.2)
    primary, standbys = cluster.primary(), [str(member["ordinal"]) for member in cluster.standbys()]
    ordinal = primary["ordinal"]
    said = len(copies(cluster, primary["name"]))
    for standby in standbys:
        cluster.command("demo", "freeze", standby)
    diverge(cluster.dsn("--member", str(ordinal)))
    began = time.monotonic()
    cluster.command("demo", "delete-pod", str(ordinal), "--force")
    for standby in standbys:
        cluster.command("demo", "thaw", standby)
    wait_until(lambda: streams(cluster, ordinal), LIMIT_SECONDS, "the lost primary")
    seconds = time.monotonic() - began
    found = copies(cluster, primary["name"])[said:]
    if not found:
        raise RuntimeError("the lost primary was not rewound: it had nothing of its own")
    copied, source = map(int, found[-1])
    return {"seconds": seconds, "copied_mb": copied, "source_mb": source}


def settle(cluster):
    """Checkpoint after checkpoint, until the WAL that a load has left is gone from all members; what is kept is what they always keep."""
    wait_until(cluster.complete, LIMIT_SECONDS, "the members", 0.2)
    dsns = [cluster.dsn("--member", str(member["ordinal"])) for member in cluster.view()]
    primary = cluster.dsn("--member", str(cluster.primary()["ordinal"]))
    for _ in range(ROUNDS):
        execute(primary, "SELECT pg_logical_emit_message(true, 'settle', 'x')")
        execute(primary, "SELECT pg_switch_wal()")
        for dsn in [primary, *dsns]:
            execute(dsn, "CHECKPOINT")
        sizes = [execute(dsn, "SELECT sum(size) FROM pg_ls_waldir()") for dsn in dsns]
    print("WAL of each member, MB:", ", ".join(str(int(size) >> 20) for size in sizes))


def execute(dsn, sql):
    """The first field of the answer, if there is one."""
    with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as session:
        answer = session.execute(sql)
        return answer.fetchone()[0] if answer.description else None


def diverge(dsn):
    """Leaves a commit that waits for standbys for ever: it is flushed here, and nowhere else."""
    session = psycopg.connect(dsn, autocommit=True)
    before = position(dsn)
    threading.Thread(target=write, args=(session,), daemon=True).start()
    wait_until(lambda: position(dsn) > before, 5, "WAL of its own")


def write(session):
    """Ends with the server."""
    with contextlib.suppress(psycopg.Error):
        session.execute("CREATE TABLE diverged_%s AS SELECT generate_series(1, 10000) AS number" % time.monotonic_ns())


def position(dsn):
    """How far the server has flushed."""
    with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as session:
        return session.execute("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn").fetchone()[0]


def streams(cluster, ordinal):
    """Whether a member is a standby that streams."""
    member = cluster.member(ordinal)
    return member is not None and (member["role"], member["state"]) == ("standby", "streaming")


def copies(cluster, name):
    """What each `pg_rewind` of a member so far has said, in the log of its sidecar or supervisor."""
    logs = sorted((cluster.volumes / "pods" / name).glob("*.log"))
    return [found for log in logs for found in COPIES.findall(log.read_bytes())]
