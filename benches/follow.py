"""How soon the routes of other members follow: a new primary, and a standby that is gone.

Clients come one after the other, each with a new session. A route has followed when the new primary's server has begun its first session for it: both
that (`backend_start`) and the answers of the members are on the clock of this one machine.
"""

import contextlib
import random
import statistics
import threading
import time

import psycopg
from machine import alive, http_get, wait_until

ASK = "SELECT host(inet_server_addr()), pg_is_in_recovery(), extract(epoch FROM backend_start) FROM pg_stat_activity WHERE pid = pg_backend_pid()"
FAILED_CONNECTS = 'podgres_route_connect_failures_total{route="read_only"} '
SETTLE_SECONDS = 3


class Sessions(threading.Thread):
    """New sessions through one route, one after the other: when each began and ended, and what it was told; None where it failed."""

    def __init__(self, dsn, member, port):
        super().__init__(daemon=True)
        self.dsn = psycopg.conninfo.make_conninfo(dsn, host=member["host"], hostaddr=member["host"], port=member[port])
        self.records = []
        self.ended = threading.Event()
        self.start()

    def run(self):
        while not self.ended.is_set():
            began, told = time.time(), None
            with contextlib.suppress(psycopg.Error):
                with psycopg.connect(self.dsn, autocommit=True, connect_timeout=20) as session:
                    told = session.execute(ASK).fetchone()
            self.records.append((began, time.time(), told))

    def end(self):
        """Waits for the one under way."""
        self.ended.set()
        self.join(30)

    def first_on(self, host):
        """When the first session on that server, as a primary, began there."""
        starts = (float(told[2]) for _, _, told in self.records if told and told[0] == host and not told[1])
        return next(starts, None)


class Watch(threading.Thread):
    """Calls `ask` until it is true, and keeps when that was."""

    def __init__(self, ask):
        super().__init__(daemon=True)
        self.ask, self.true_at = ask, None
        self.ended = threading.Event()
        self.start()

    def run(self):
        while self.true_at is None and not self.ended.wait(0.002):
            if self.ask():
                self.true_at = time.time()


def primary_moves(cluster, how):
    """Milliseconds from the first 200 of the new primary's `/primary` to the first session through the third member's route."""
    cluster.wait_complete()
    before, others = cluster.primary(), cluster.standbys()
    routes = [Sessions(cluster.dsn("--read-write"), member, "read_write_port") for member in others]
    offices = [Watch(lambda member=member: http_get(member["host"], member["http_port"], "/primary")[0] == 200) for member in others]
    try:
        time.sleep(random.uniform(0.5, 1.5))
        how(cluster, before)
        wait_until(lambda: any(office.true_at for office in offices), 60, "a new primary")
        new = 0 if offices[0].true_at else 1
        third, host = routes[1 - new], others[new]["host"]
        wait_until(lambda: third.first_on(host), 60, "a session through the third member")
        return 1000 * (third.first_on(host) - offices[new].true_at)
    finally:
        for thread in routes + offices:
            thread.ended.set()
        for route in routes:
            route.end()


def failed_connects(member):
    """What the member's read-only route has tried in vain."""
    lines = http_get(member["host"], member["http_port"], "/metrics")[1].decode().splitlines()
    return sum(float(line.removeprefix(FAILED_CONNECTS)) for line in lines if line.startswith(FAILED_CONNECTS))


def standby_is_lost(cluster):
    """Milliseconds from the kill of a standby's pod to the last session that the others' read-only routes tried to open there; what clients noticed."""
    cluster.wait_complete()
    lost, *rest = cluster.standbys()
    rest.append(cluster.primary())
    routes = [Sessions(cluster.dsn("--read-only"), member, "read_only_port") for member in rest for _ in range(2)]
    try:
        time.sleep(random.uniform(0.5, 1.5))
        count = sum(map(failed_connects, rest))
        dead, last = Watch(lambda: not alive(lost["pids"]["postgres"])), None
        killer = threading.Thread(target=kill_pod, args=(cluster, lost))
        killer.start()
        wait_until(lambda: dead.true_at, 30, "the standby's end")
        began = dead.true_at
        while time.time() - began < SETTLE_SECONDS:
            now = sum(map(failed_connects, rest))
            if now > count:
                count, last = now, time.time()
        killer.join(60)
    finally:
        for route in routes:
            route.end()
    after = [record for route in routes for record in route.records if record[1] > began]
    return {
        "last_attempt_ms": 1000 * max((last or began) - began, 0),
        "broken": sum(told is None for _, _, told in after),
        "longest_ms": 1000 * max(end - start for start, end, _ in after),
    }


def switchover(cluster, _primary):
    """As an operator orders it."""
    if cluster.command("switchover") is None:
        raise RuntimeError("podgres switchover was refused")


def kill_pod(cluster, primary):
    """Every process of it at once."""
    cluster.command("demo", "delete-pod", str(primary["ordinal"]), "--force")


def follow(cluster, runs):
    """That many of each, in turns."""
    found = {"switchover": [], "primary's pod killed": [], "standby's pod killed": []}
    for _ in range(runs):
        found["switchover"].append(primary_moves(cluster, switchover))
        found["primary's pod killed"].append(primary_moves(cluster, kill_pod))
        found["standby's pod killed"].append(standby_is_lost(cluster))
    cluster.wait_complete()
    return found


def rows(found):
    """For the table: medians and the worst."""
    for event in ("switchover", "primary's pod killed"):
        yield event, "its `/primary` is 200, then the first session through the third member's route", *middle(found[event])
    lost = found["standby's pod killed"]
    yield "standby's pod killed", "the last attempt to open a session there", *middle([run["last_attempt_ms"] for run in lost])
    yield "standby's pod killed", "the longest session of a client", *middle([run["longest_ms"] for run in lost])
    yield "standby's pod killed", "sessions that were beginning there and broke", *middle([run["broken"] for run in lost])


def middle(values):
    """Median, worst, number."""
    return f"{statistics.median(values):.0f}", f"{max(values):.0f}", len(values)
