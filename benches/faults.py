"""The faults of the failover measurements, done to podgres and to Patroni: the same ones, each by its own means.

`inject` does one to the primary and returns what undoes it. A killed or deleted pod of podgres' demo comes back at once, as a
StatefulSet's does; Patroni's is started again when writes flow, since its own lock would otherwise hand the lead back to it.
"""

import json
import os
import signal
import threading
import time
import urllib.request

from machine import alive, start, tree, wait_until


class PodgresFaults:
    """A demo of podgres, asked and hurt by its own commands."""

    faults = ("postmaster", "pod", "freeze", "deleted", "switchover", "sidecar_frozen", "api_down")

    def __init__(self, cluster, api_seconds):
        self.cluster, self.api_seconds = cluster, api_seconds
        self.complete = cluster.complete

    def dsns(self):
        """A connection string for each member, past the routes."""
        members = [str(member["ordinal"]) for member in self.cluster.view()]
        return {f"pg-{member}": self.cluster.dsn("--member", member) for member in members}

    def primary(self):
        """The primary's name."""
        return self.cluster.primary()["name"]

    def inject(self, fault):
        """Does it, and returns what undoes it."""
        primary = self.cluster.primary()
        ordinal, pids = str(primary["ordinal"]), primary["pids"]
        if fault == "postmaster":
            os.kill(pids["postgres"], signal.SIGKILL)
        elif fault == "pod":
            self.background("demo", "delete-pod", ordinal, "--force")
        elif fault == "deleted":
            self.background("demo", "delete-pod", ordinal)
        elif fault == "freeze":
            self.cluster.command("demo", "freeze", ordinal)
            return lambda: self.cluster.command("demo", "thaw", ordinal)
        elif fault == "switchover":
            self.background("switchover")
        elif fault == "sidecar_frozen":
            os.kill(pids["sidecar"], signal.SIGSTOP)
            return lambda: os.kill(pids["sidecar"], signal.SIGCONT)
        elif fault == "api_down":
            return self.without_api()
        return lambda: None

    def without_api(self):
        """Takes the API server away, and a standby meanwhile."""
        self.cluster.command("demo", "api", "down")
        time.sleep(self.api_seconds / 3)
        self.background("demo", "delete-pod", str(self.cluster.standbys()[0]["ordinal"]), "--force")
        time.sleep(self.api_seconds * 2 / 3)
        return lambda: self.cluster.command("demo", "api", "up")

    def background(self, *words):
        """One of podgres' commands that the writers do not wait for."""
        thread = threading.Thread(target=self.cluster.command, args=words, kwargs={"limit_seconds": 120}, daemon=True)
        thread.start()


class PatroniFaults:
    """Members of Patroni, hurt by signals and its HTTP."""

    faults = ("postmaster", "pod", "freeze", "deleted", "switchover")

    def __init__(self, cluster):
        self.cluster = cluster
        self.complete = cluster.complete

    def dsns(self):
        """A connection string for each member."""
        return {f"member{number}": self.cluster.dsn(host) for number, host in enumerate(self.cluster.hosts)}

    def primary(self):
        """The leader's name."""
        return f"member{self.cluster.hosts.index(self.cluster.primary_host())}"

    def inject(self, fault):
        """Does it, and returns what undoes it."""
        host = self.cluster.primary_host()
        number = self.cluster.hosts.index(host)
        agent = self.cluster.members[number]
        # The server may outlive an earlier Patroni, and is then not below the one that runs now.
        everything = set(tree(agent.pid)) | set(tree(self.cluster.postmaster_pid(host)))
        if fault == "postmaster":
            os.kill(self.cluster.postmaster_pid(host), signal.SIGKILL)
        elif fault == "pod":
            signal_all(everything, signal.SIGKILL)
            agent.wait(10)
            return lambda: self.start_again(number)
        elif fault == "deleted":
            agent.terminate()
            return lambda: (agent.wait(60), self.start_again(number))
        elif fault == "freeze":
            signal_all(everything, signal.SIGSTOP)
            return lambda: signal_all(everything, signal.SIGCONT)
        elif fault == "switchover":
            threading.Thread(target=self.switchover, args=(host,), daemon=True).start()
        return lambda: None

    def switchover(self, host):
        """As `patronictl switchover` asks for it."""
        body = json.dumps({"leader": self.primary()}).encode()
        request = urllib.request.Request(f"http://{host}:8008/switchover", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).read()

    def start_again(self, number):
        """As whoever runs Patroni does."""
        folder = self.cluster.folder
        self.cluster.members[number] = start(
            [self.cluster.program, folder / f"member{number}.yml"], folder / f"member{number}.log", {"HOME": str(folder)}
        )


def signal_all(pids, how):
    """Sends a signal to processes of ours; those that are gone need none."""
    for pid in pids:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            continue
    if how == signal.SIGKILL:
        wait_until(lambda: not any(alive(pid) for pid in pids), 10, "killed processes")
