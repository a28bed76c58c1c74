"""Three members of Patroni with one etcd, on loopback addresses of their own, as PostgreSQL's user.

As its manual has it, but for `loop_wait` where a run says so; etcd runs before the clock starts, since a user of
Patroni has one.
"""

import contextlib
import json
import os
import signal
from pathlib import Path

from machine import (
    children,
    http_get,
    loopback_addresses,
    owned_folder,
    server_account,
    start,
    stop,
    tail,
    wait_until,
)

PASSWORD = "bench"


class PatroniCluster:
    """One cluster in one folder; `start` returns at once, `stop` leaves no process."""

    def __init__(self, program, bindir, folder, loop_wait_seconds, size=3):
        self.program, self.bindir = program, Path(bindir)
        self.loop_wait_seconds = loop_wait_seconds
        self.folder = owned_folder(folder)
        self.etcd_address, *self.hosts = loopback_addresses(size + 1)
        self.etcd = None
        self.members = []

    def start_etcd(self):
        """Starts etcd and waits until it takes writes."""
        client, peer = f"http://{self.etcd_address}:2379", f"http://{self.etcd_address}:2380"
        self.etcd = start(
            ["etcd", "--name", "etcd", "--data-dir", self.folder / "etcd"]
            + ["--listen-client-urls", client, "--advertise-client-urls", client]
            + ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            + ["--initial-cluster", f"etcd={peer}", "--log-level", "error"],
            self.folder / "etcd.log",
        )
        wait_until(
            lambda: http_get(self.etcd_address, 2379, "/health")[1].find(b"true") > 0, 30, "etcd"
        )

    def start(self):
        """Starts all members at once."""
        for number, host in enumerate(self.hosts):
            name = f"member{number}"
            owned_folder(self.folder / f"{name}.socket")
            configuration = self.folder / f"{name}.yml"
            configuration.write_text(json.dumps(self.configuration(name, host)))
            configuration.chmod(0o600)
            if account := server_account():
                os.chown(configuration, account.pw_uid, account.pw_gid)
            log = self.folder / f"{name}.log"
            self.members.append(start([self.program, configuration], log, {"HOME": str(self.folder)}))

    def configuration(self, name, host):
        """One member's configuration; JSON is YAML."""
        login = {"password": PASSWORD}
        return {
            "scope": "bench",
            "name": name,
            "restapi": {"listen": f"{host}:8008", "connect_address": f"{host}:8008"},
            "etcd3": {"host": f"{self.etcd_address}:2379"},
            "bootstrap": {
                "dcs": {
                    "ttl": max(20, 3 * self.loop_wait_seconds),
                    "loop_wait": self.loop_wait_seconds,
                    "retry_timeout": min(10, max(3, self.loop_wait_seconds)),
                    "postgresql": {"use_pg_rewind": True, "use_slots": True},
                },
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"{host}:5432",
                "connect_address": f"{host}:5432",
                "data_dir": str(self.folder / name),
                "bin_dir": str(self.bindir),
                "pgpass": str(self.folder / f"{name}.pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", **login},
                    "replication": {"username": "replicator", **login},
                },
                "parameters": {"unix_socket_directories": str(self.folder / f"{name}.socket")},
                "pg_hba": [
                    "local all all trust",
                    "host replication replicator 127.0.0.0/8 scram-sha-256",
                    "host all all 127.0.0.0/8 scram-sha-256",
                ],
            },
        }

    def view(self):
        """The members as any member tells them; [] while none answers."""
        for host in self.hosts:
            status, body = http_get(host, 8008, "/cluster")
            if status == 200:
                return json.loads(body)["members"]
        return []

    def complete(self):
        """A leader and all others streaming."""
        states = [(member.get("role"), member.get("state")) for member in self.view()]
        return (
            states.count(("leader", "running")) == 1
            and states.count(("replica", "streaming")) == len(self.hosts) - 1
        )

    def wait_complete(self, limit_seconds=180):
        """Waits for `complete`, or tells what the members say."""
        try:
            wait_until(self.complete, limit_seconds, "Patroni's members")
        except Exception:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{tail(log)}")
            raise

    def primary_host(self):
        """The address of the leader."""
        return next(member["host"] for member in self.view() if member["role"] == "leader")

    def postmaster_pid(self, host):
        """The process id of a member's server."""
        name = f"member{self.hosts.index(host)}"
        return int((self.folder / name / "postmaster.pid").read_text().split()[0])

    def dsn(self, host):
        """A connection string for one member's server."""
        return f"host={host} port=5432 user=postgres password={PASSWORD} dbname=postgres"

    def agent_pids(self):
        """By member: Patroni's own processes, PostgreSQL's not among them."""
        found = []
        for process in self.members:
            pids = [process.pid]
            for child in children(process.pid):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text().strip() != "postgres":
                        pids.append(child)
            found.append(pids)
        return found

    def stop(self):
        """Standbys first, as Patroni likes it, then the rest; servers that outlive their Patroni are killed."""
        for process in reversed(self.members):
            stop(process, 30)
        for number in range(len(self.members)):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid_file = self.folder / f"member{number}" / "postmaster.pid"
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        if self.etcd:
            stop(self.etcd, 10)
