"""What the routes cost: pgbench and COPY through podgres, HAProxy, poolers and straight, in turns on one machine."""

import os
import shutil
import socket
import statistics
import subprocess
import time

import psycopg

from machine import owned_folder, server_account, start, stop, wait_until

HAPROXY = """
global
    maxconn 4000
    {processor}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {splice}
listen postgresql
    bind {address}:{port}
    server primary {server}
"""
PGBOUNCER = """
[databases]
postgres = host={host} port={server_port}
[pgbouncer]
listen_addr = {address}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = session
max_client_conn = 4000
default_pool_size = 650
ignore_startup_parameters = extra_float_digits
"""
PGCAT = """
[general]
host = "{address}"
port = {port}
enable_prometheus_exporter = false
worker_threads = 2
admin_username = "nobody"
admin_password = "{password}"
[pools.postgres]
pool_mode = "transaction"
prepared_statements_cache_size = 500
[pools.postgres.users.0]
username = "{user}"
password = "{password}"
pool_size = 80
[pools.postgres.shards.0]
servers = [["{host}", {server_port}, "primary"]]
database = "postgres"
"""
PGDOG = """
[general]
host = "{address}"
port = {port}
workers = 2
default_pool_size = 80
[[databases]]
name = "postgres"
host = "{host}"
port = {server_port}
"""
PGDOG_USERS = """
[[users]]
name = "{user}"
database = "postgres"
password = "{password}"
"""
TICKS = os.sysconf("SC_CLK_TCK")
# name: pgbench's options
LOADS = {
    "simple, 64 clients": ["-S", "-c", "64", "-j", "2", "-M", "simple"],
    "prepared, 64 clients": ["-S", "-c", "64", "-j", "2", "-M", "prepared"],
    "connect per transaction, 16 clients": ["-S", "-C", "-c", "16", "-j", "2"],
}
ROWS = {"100-byte rows": 100, "8000-byte rows": 8000}


class Proxy:
    """One process in front of one server."""

    def __init__(self, folder, address, port):
        self.folder, self.address, self.port = owned_folder(folder), address, port
        self.process = None

    def run(self, command, drop_root):
        """Starts it in the foreground, and waits until it listens."""
        self.process = start(command, self.folder / "log", {}, drop_root=drop_root)
        wait_until(lambda: listens(self.address, self.port), 10, command[0])

    def write(self, name, text):
        """A file for the process alone."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        if account := server_account():
            os.chown(path, account.pw_uid, account.pw_gid)
        return path

    def stop(self):
        """Ends it."""
        if self.process:
            stop(self.process, 5)


class Haproxy(Proxy):
    """HAProxy, `mode tcp`."""

    def __init__(self, folder, address, port, server, splice):
        super().__init__(folder, address, port)
        self.text = HAPROXY.format(
            address=address, port=port, server=server, processor="",
            splice="option splice-auto" if splice else "",
        )

    def start(self):
        """As root, if we are."""
        self.run(["haproxy", "-db", "-f", self.write("haproxy.cfg", self.text)], drop_root=False)


class Pgbouncer(Proxy):
    """PgBouncer, a pool of sessions: it logs clients in itself, and uses its connections to the server again."""

    def __init__(self, folder, address, port, server, login):
        super().__init__(folder, address, port)
        (self.host, self.server_port), self.login = server, login

    def start(self):
        """It refuses to be root."""
        users = self.write("users", '"{}" "{}"\n'.format(*(word.replace('"', '""') for word in self.login)))
        text = PGBOUNCER.format(
            host=self.host, server_port=self.server_port, address=self.address, port=self.port, users=users
        )
        self.run(["pgbouncer", self.write("pgbouncer.ini", text)], drop_root=True)


class Pooler(Proxy):
    """One that pools transactions, as it comes: its program is on PATH, or it is not measured."""

    def __init__(self, folder, address, port, server, login):
        super().__init__(folder, address, port)
        (host, server_port), (user, password) = server, login
        self.words = {
            "address": address, "port": port, "host": host, "server_port": server_port,
            "user": user, "password": password,
        }


class Pgcat(Pooler):
    """PgCat."""

    def start(self):
        """One file."""
        self.run(["pgcat", self.write("pgcat.toml", PGCAT.format(**self.words))], drop_root=True)


class Pgdog(Pooler):
    """PgDog."""

    def start(self):
        """Two files."""
        main = self.write("pgdog.toml", PGDOG.format(**self.words))
        users = self.write("users.toml", PGDOG_USERS.format(**self.words))
        self.run(["pgdog", "--config", main, "--users", users, "run"], drop_root=True)


POOLERS = {"pgbouncer": (Pgbouncer, 7434), "pgcat": (Pgcat, 7435), "pgdog": (Pgdog, 7436)}


def listens(address, port):
    """Whether somebody takes connections there."""
    try:
        socket.create_connection((address, port), 1).close()
        return True
    except OSError:
        return False


def processor_seconds(pid):
    """What a process has used so far, in user and kernel mode."""
    fields = open(f"/proc/{pid}/stat", encoding="utf-8").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def private_bytes(pid):
    """Memory that only this process has."""
    lines = open(f"/proc/{pid}/smaps_rollup", encoding="utf-8").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def route(cluster, bindir, folder, runs, seconds):
    """All parts; `cluster` is a demo that runs, its configuration allows 600 connections."""
    member = cluster.primary()
    password = psycopg.conninfo.conninfo_to_dict(cluster.dsn("--member", str(member["ordinal"])))
    environment = os.environ | {"PGPASSWORD": password["password"], "PGUSER": password["user"], "PGDATABASE": "postgres"}
    host, ports = member["host"], {"direct": member["postgres_port"], "podgres": member["read_write_port"]}
    proxies = {
        name: Haproxy(folder / name, host, port, f"{host}:{member['postgres_port']}", splice)
        for name, port, splice in (("haproxy", 7432, False), ("haproxy, splice", 7433, True))
    }
    server, login = (host, member["postgres_port"]), (password["user"], password["password"])
    for name, (pooler, port) in POOLERS.items():
        if shutil.which(name):
            proxies[name] = pooler(folder / name, host, port, server, login)
    try:
        for name, proxy in proxies.items():
            proxy.start()
            ports[name] = proxy.port
        pids = {"podgres": member["pids"]["sidecar"]} | {name: proxy.process.pid for name, proxy in proxies.items()}
        bench = Route(bindir, host, ports, pids, environment)
        bench.prepare()
        return {
            "load": {load: bench.load(options, runs, seconds) for load, options in LOADS.items()},
            "copy": {rows: bench.copy(rows, runs) for rows in ROWS},
            "idle_bytes": bench.idle(),
        }
    finally:
        for proxy in proxies.values():
            proxy.stop()


class Route:
    """The targets, by name: ports, and the processes of those in between."""

    def __init__(self, bindir, host, ports, pids, environment):
        self.bindir, self.host, self.ports, self.pids, self.environment = bindir, host, ports, pids, environment

    def run(self, program, name, *options):
        """One of PostgreSQL's programs against one target."""
        where = ["-h", self.host, "-p", str(self.ports[name])]
        command = [str(self.bindir / program), *where, *options]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def prepare(self):
        """pgbench's tables, and rows to copy."""
        self.run("pgbench", "direct", "-i", "-q", "-s", "10")
        for rows, size in ROWS.items():
            table = table_of(rows)
            sql = (
                f"CREATE UNLOGGED TABLE {table} AS SELECT repeat('x', {size - 1}) AS t FROM generate_series(1, 1000);"
                f"ALTER TABLE {table} ALTER t SET STORAGE PLAIN;"
            )
            self.run("psql", "direct", "-Xqc", sql)

    def measured(self, name, work):
        """Seconds of the wall and of the proxy's processor."""
        pid = self.pids.get(name)
        before, began = processor_seconds(pid) if pid else 0, time.monotonic()
        answer = work()
        spent = processor_seconds(pid) - before if pid else 0
        return answer, time.monotonic() - began, spent

    def load(self, options, runs, seconds):
        """Transactions a second, and microseconds of the proxy's processor for each."""
        found = {name: [] for name in self.ports}
        for _ in range(runs):
            for name in self.ports:
                text, _, spent = self.measured(name, lambda: self.run("pgbench", name, "-n", "-T", str(seconds), *options))
                done = number(text, "number of transactions actually processed: ")
                found[name].append({"tps": number(text, "tps = "), "us": 1e6 * spent / done})
        return found

    def copy(self, rows, runs):
        """Megabytes a second, and seconds of the proxy's processor for a gigabyte."""
        total = 10**9
        times = total // (ROWS[rows] * 1000)
        sql = f"COPY (SELECT t FROM {table_of(rows)}, generate_series(1, {times})) TO STDOUT"
        found = {name: [] for name in self.ports}
        for _ in range(runs):
            for name in self.ports:
                _, wall, spent = self.measured(
                    name, lambda: self.run("psql", name, "-XAtq", "-o", "/dev/null", "-c", sql)
                )
                found[name].append({"mb": total / 1e6 / wall, "cpu_seconds": spent})
        return found

    def idle(self, number_of_sessions=400):
        """Private memory of one idle session."""
        found = {}
        for name, pid in self.pids.items():
            where = {"host": self.host, "port": self.ports[name], "user": self.environment["PGUSER"]}
            secret = {"password": self.environment["PGPASSWORD"], "dbname": "postgres", "sslmode": "disable"}
            warm = [psycopg.connect(**where, **secret) for _ in range(20)]
            before = private_bytes(pid)
            sessions = [psycopg.connect(**where, **secret) for _ in range(number_of_sessions)]
            time.sleep(1)
            found[name] = (private_bytes(pid) - before) / number_of_sessions
            for session in warm + sessions:
                session.close()
            time.sleep(1)
        return found


def table_of(rows):
    """A table's name for rows of a size."""
    return f"rows_{ROWS[rows]}"


def number(text, before):
    """The number that follows a text."""
    return float(text.split(before, 1)[1].split()[0].split("/")[0])


def tables(found):
    """Rows for the report: by part, target, medians, and ratios to the others."""
    for load, targets in found["load"].items():
        yield load, header("tps", "us/tx"), rate_rows(targets, "tps", "us", 1)
    for rows, targets in found["copy"].items():
        yield f"COPY TO STDOUT, 1 GB, {rows}", header("MB/s", "s/GB"), rate_rows(targets, "mb", "cpu_seconds", 2)
    rows = [(name, f"{size / 1024:.1f}") for name, size in found["idle_bytes"].items()]
    yield "idle sessions", ["KiB each"], rows


def header(rate, cost):
    """Of `rate_rows`."""
    return [rate, "of direct", "of haproxy", f"proxy CPU, {cost}", "CPU: of haproxy's", "of haproxy's with splice"]


def rate_rows(targets, rate, cost, digits):
    """Medians; ratios are medians of the ratios within one turn, with the least and the greatest."""
    for name, runs in targets.items():
        middle, spent = (statistics.median(run[key] for run in runs) for key in (rate, cost))
        rates = [of_turns(runs, targets[other], rate) for other in ("direct", "haproxy")]
        costs = [of_turns(runs, targets[other], cost) for other in ("haproxy", "haproxy, splice")]
        yield name, f"{middle:.0f}", *rates, f"{spent:.{digits}f}" if spent else "-", *costs


def of_turns(runs, others, key):
    """How one target stands to another, turn by turn: 0.93 (0.90-0.97)."""
    ratios = [mine[key] / theirs[key] for mine, theirs in zip(runs, others, strict=True) if theirs[key] and mine[key]]
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
