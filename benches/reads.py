"""Reads of own writes through the read-only route, with the token of the commit and without: misses, and what the token costs.

Each try writes a row through the read-write route and looks for it on a standby: at once in a session that is open already, over a new connection, and over
a new connection with the token of the commit. The three take turns in each of a few applications, so that what the machine does meanwhile falls on all.
"""

import statistics
import threading
import time

import psycopg

LANES = 4
OPEN, PLAIN, TOKEN = KINDS = ("in an open session", "over a new connection", "over a new connection with the token")
LOOK = "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM own_writes WHERE id = %s)"
STANDBY_ONLY = "-c podgres.fallback=none -c podgres.wait=10s"


class Lane(threading.Thread):
    """One application: its tries one after the other; an error ends it and is kept."""

    def __init__(self, number, tries, read_write, read_only):
        super().__init__(daemon=True)
        self.number, self.tries = number, tries
        self.read_write, self.read_only = read_write, read_only
        self.seconds = {kind: [] for kind in KINDS}
        self.misses = dict.fromkeys(KINDS, 0)
        self.error = None

    def run(self):
        """All its tries of each kind."""
        try:
            with (
                psycopg.connect(self.read_write, autocommit=True) as writer,
                psycopg.connect(self.read_only, autocommit=True, options=STANDBY_ONLY) as reader,
            ):
                for turn in range(self.tries):
                    for kind in KINDS[turn % 3 :] + KINDS[: turn % 3]:
                        self.one(writer, reader, kind)
        except psycopg.Error as error:
            self.error = error

    def one(self, writer, reader, kind):
        """Writes, connects where that is asked for, looks."""
        row = writer.execute("INSERT INTO own_writes (lane) VALUES (%s) RETURNING id", (self.number,)).fetchone()[0]
        options = STANDBY_ONLY
        if kind == TOKEN:
            token = writer.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]
            options = f"{options} -c podgres.min_lsn={token}"
        began = time.monotonic()
        if kind == OPEN:
            standby, found = reader.execute(LOOK, (row,)).fetchone()
        else:
            with psycopg.connect(self.read_only, autocommit=True, options=options) as session:
                standby, found = session.execute(LOOK, (row,)).fetchone()
        self.seconds[kind].append(time.monotonic() - began)
        if not standby:
            raise psycopg.OperationalError("the primary answered a read that was for standbys")
        self.misses[kind] += not found


def slow_down(cluster, milliseconds):
    """Standbys apply commits so much later."""
    for standby in cluster.standbys():
        with psycopg.connect(cluster.dsn("--member", str(standby["ordinal"])), autocommit=True) as session:
            session.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = {milliseconds:d}")
            session.execute("SELECT pg_reload_conf()")


def reads(cluster, tries, delay_ms=0):
    """That many tries of each kind on a demo that runs, its standbys slowed down if that is asked for."""
    read_write, read_only = cluster.dsn("--read-write"), cluster.dsn("--read-only")
    with psycopg.connect(read_write, autocommit=True) as session:
        session.execute("CREATE TABLE own_writes (id bigserial PRIMARY KEY, lane int)")
        token = session.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]
    psycopg.connect(read_only, options=f"{STANDBY_ONLY} -c podgres.min_lsn={token}").close()
    if delay_ms:
        slow_down(cluster, delay_ms)
    lanes = [Lane(number, -(-tries // LANES), read_write, read_only) for number in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    errors = [lane.error for lane in lanes if lane.error]
    if errors:
        raise errors[0]
    return {
        kind: {
            "misses": sum(lane.misses[kind] for lane in lanes),
            "seconds": sorted(second for lane in lanes for second in lane.seconds[kind]),
        }
        for kind in KINDS
    }


def rows(found):
    """For the table: tries, misses, milliseconds until the answer, and what the token adds to the median."""
    plain = statistics.median(found[PLAIN]["seconds"])
    for kind in KINDS:
        seconds = found[kind]["seconds"]
        middle, high = statistics.median(seconds), seconds[len(seconds) * 99 // 100]
        wait = f"{1000 * (middle - plain):.2f}" if kind == TOKEN else "-"
        yield kind, len(seconds), found[kind]["misses"], f"{1000 * middle:.2f} / {1000 * high:.2f}", wait
