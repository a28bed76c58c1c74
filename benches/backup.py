"""Backup and restore beside pgBackRest and pg_basebackup: the same server, the same run, one after the other.

    benches/backup.py --podgres BINARY --bindir DIR [--scale 135] [--rounds 2] [--segments 64]

Scale 135 of pgbench is 2 GB. WAL is what the load has written, and as many segments of more rows as are asked for. Prints one line a measure with the ratio to pgBackRest.
Memory of a backup and a restore is that of all their processes together at its highest, shared pages counted once, looked at fifty times a
second, without the PostgreSQL server that a restore starts; of WAL, whose archivers stay behind, that of the largest process.
"""

import argparse
import json
import os
import pathlib
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from machine import pss_bytes, tree

PROCESSES = 2
LOOK_SECONDS = 0.02
# What a row of the load for WAL is made of: numbers, texts that repeat and texts that do not.
FILLER = "SELECT i, i % 97 AS kind, md5(i::text) AS text, 'row of the load' AS comment FROM generate_series(1, 400000) i"
# What pgBackRest takes with `backup` alone.
BACKUP_ONLY = ("--no-archive-check", "--start-fast", "--compress")


def server_user():
    """Whom PostgreSQL runs as, if this is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise SystemExit("neither a user postgres nor nobody")


def demote():
    user = server_user()
    if user:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


class Memory(threading.Thread):
    """The most that a command's processes have at once, in bytes."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most_bytes, self.over = pid, 0, threading.Event()

    @staticmethod
    def of(pid):
        try:
            server = pathlib.Path(f"/proc/{pid}/comm").read_text().strip() in ("postgres", "postmaster")
            return 0 if server else pss_bytes(pid)
        except (OSError, RuntimeError):
            return 0

    def run(self):
        while not self.over.wait(LOOK_SECONDS):
            self.most_bytes = max(self.most_bytes, sum(map(self.of, tree(self.pid))))


def measured(command, environment, folder=None, together=False):
    """Seconds and megabytes of a command as PostgreSQL's user: of its largest process, or of all together."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command], env={**os.environ, **environment}, preexec_fn=demote, cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    memory = Memory(process.pid) if together else None
    if memory:
        memory.start()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    if status != 0:
        raise SystemExit(f"{command} failed:\n{output}")
    if not memory:
        return seconds, usage.ru_maxrss / 1024
    memory.over.set()
    memory.join()
    return seconds, memory.most_bytes / 2**20


class Lab:
    def __init__(self, arguments):
        self.podgres, self.bindir = arguments.podgres, pathlib.Path(arguments.bindir)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="podgres-bench-", dir=arguments.folder))
        self.folder.chmod(0o777)
        self.demo = self.folder / "demo"
        self.process = subprocess.Popen(
            [self.podgres, "demo", "--dir", self.demo, "--program-dir", self.bindir, "--leadership", "fixed",
             "--replicas", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.data = self.demo / "volumes/data-demo-0/pgdata"
        for _ in range(600):
            found = subprocess.run([self.podgres, "demo", "dsn", "--dir", self.demo], capture_output=True, text=True)
            self.dsn = found.stdout.strip()
            if found.returncode == 0 and subprocess.run(
                    [self.bindir / "psql", "-XAtqc", "SELECT 1", self.dsn], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        subprocess.run([self.bindir / "pgbench", "-i", "-q", "-s", str(arguments.scale), self.dsn], check=True,
                       stderr=subprocess.DEVNULL)
        self.keep_wal(arguments.segments)
        self.sql("CHECKPOINT")

    def sql(self, text):
        return subprocess.run(
            [self.bindir / "psql", "-XAtqc", text, self.dsn], check=True, capture_output=True, text=True).stdout.strip()

    def keep_wal(self, count):
        """The newest segments, as a data directory for the archivers."""
        self.sql("SELECT pg_create_physical_replication_slot('bench', true)")
        begun = self.sql("SELECT pg_current_wal_insert_lsn()")
        written = f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{begun}')::bigint >> 24"
        while int(self.sql(written)) < count:
            self.sql(f"CREATE TABLE filler AS {FILLER}; CREATE INDEX ON filler (text); DROP TABLE filler")
        self.wal = self.fresh("wal")
        for name in ("global", "pg_wal/archive_status"):
            self.wal.joinpath(name).mkdir(parents=True)
        shutil.copy(self.data / "global/pg_control", self.wal / "global/pg_control")
        shutil.copy(self.data / "PG_VERSION", self.wal / "PG_VERSION")
        done = self.sql("SELECT pg_walfile_name(pg_switch_wal())")
        names = sorted(path.name for path in (self.data / "pg_wal").iterdir() if len(path.name) == 24)
        self.segments = [name for name in names if name <= done][-count:]
        for name in self.segments:
            shutil.copy(self.data / "pg_wal" / name, self.wal / "pg_wal" / name)
        self.give(self.wal)
        self.sql("SELECT pg_drop_replication_slot('bench')")

    def waiting(self):
        """All of them wait to be archived, to an archive that was never used."""
        self.wal.joinpath("podgres.archives").unlink(missing_ok=True)
        marks = self.wal / "pg_wal/archive_status"
        for path in marks.iterdir():
            path.unlink()
        for name in self.segments:
            marks.joinpath(f"{name}.ready").touch()
        self.give(marks)

    @staticmethod
    def give(folder):
        user = server_user()
        for path in [folder, *folder.rglob("*")] if user else []:
            os.chown(path, user.pw_uid, user.pw_gid)

    def fresh(self, name):
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        user = server_user()
        if user:
            os.chown(path, user.pw_uid, user.pw_gid)
        return path

    def end(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def pgbackrest(lab, repository):
    """Its command line and environment, without a configuration file."""
    # postmaster.pid: process, data directory, start, port, socket folder.
    _, _, _, port, sockets, *_ = lab.data.joinpath("postmaster.pid").read_text().splitlines()
    password = lab.dsn.split("//")[1].split("@")[0].split(":")[1]
    options = [
        "--stanza=bench", f"--repo1-path={repository}", f"--pg1-path={lab.data}", f"--pg1-socket-path={sockets}",
        f"--pg1-port={port}", "--pg1-user=postgres", "--compress-type=zst", "--compress-level=3",
        f"--process-max={PROCESSES}", "--no-archive-check", "--start-fast", f"--log-path={repository}",
        f"--lock-path={repository}", "--log-level-console=warn"]
    return ["pgbackrest", *options], {"PGPASSWORD": password}


def archive_commands(lab, commands, environment):
    """As PostgreSQL's archiver: one file after the other, each by a process of its own. Seconds, largest process."""
    begun, most = time.monotonic(), 0
    for name in lab.segments:
        most = max(most, measured(commands(name), environment, lab.wal)[1])
        marks = lab.wal / "pg_wal/archive_status"
        marks.joinpath(f"{name}.ready").rename(marks / f"{name}.done")
    return time.monotonic() - begun, most


def restore_commands(lab, commands, environment):
    """As PostgreSQL's recovery; what came back must be what was sent."""
    into = lab.fresh("fetched")
    begun, most = time.monotonic(), 0
    for name in lab.segments:
        most = max(most, measured(commands(name, into / name), environment, lab.wal)[1])
    seconds = time.monotonic() - begun
    for name in lab.segments:
        if into.joinpath(name).read_bytes() != (lab.wal / "pg_wal" / name).read_bytes():
            raise SystemExit(f"{name} did not come back as it was")
    return seconds, most


def wal_of_podgres(lab):
    lab.waiting()
    run, archive = lab.fresh("run"), lab.fresh("our-wal")
    settings = run / "archive.json"
    settings.write_text(json.dumps({
        "destination": {"destination": str(archive)}, "key_file": None, "member": "bench", "marks": str(run / "marks")}))
    settings.chmod(0o644)
    push = archive_commands(
        lab, lambda name: [lab.podgres, "wal-push", "--settings", settings, f"pg_wal/{name}"], {})
    ahead = lab.fresh("ahead")
    fetch = restore_commands(
        lab, lambda name, path: [lab.podgres, "wal-fetch", "--from", archive, "--ahead-dir", ahead, name, path], {})
    return {"podgres wal-push": push, "podgres wal-fetch": fetch}


def wal_of_pgbackrest(lab, command, login):
    lab.waiting()
    spool = lab.fresh("spool")
    plain = [word for word in command if not word.startswith((*BACKUP_ONLY, "--pg1", "--spool"))]
    plain += [f"--pg1-path={lab.wal}", "--archive-async", f"--spool-path={spool}"]
    push = archive_commands(
        lab, lambda name: [*plain, "--compress-type=zst", "--compress-level=1", "archive-push", f"pg_wal/{name}"], login)
    fetch = restore_commands(lab, lambda name, path: [*plain, "archive-get", name, path], login)
    return {"pgBackRest wal-push": push, "pgBackRest wal-fetch": fetch}


def round_of(lab):
    found = {}
    ours, environment = lab.fresh("ours"), {"PG_BINDIR": str(lab.bindir)}
    found["podgres backup"] = measured(
        [lab.podgres, "backup", "--dir", lab.demo, "--to", ours, "--from", "primary", "--proof-size", "0B",
         "--threads", PROCESSES], environment, together=True)
    found |= wal_of_podgres(lab)
    target = lab.fresh("restored")
    found["podgres restore"] = measured(
        [lab.podgres, "restore", "--from", ours, "--to-backup", "--pgdata", target / "data"], environment,
        together=True)
    if shutil.which("pgbackrest"):
        repository = lab.fresh("theirs")
        command, login = pgbackrest(lab, repository)
        measured([*(word for word in command if not word.startswith((*BACKUP_ONLY, "--process-max"))), "stanza-create"], login)
        found["pgBackRest backup"] = measured([*command, "--type=full", "backup"], login, together=True)
        target = lab.fresh("restored")
        restore = [word for word in command if not word.startswith((*BACKUP_ONLY, "--pg1"))]
        found["pgBackRest restore"] = measured([*restore, f"--pg1-path={target}", "--type=immediate", "restore"],
                                               login, together=True)
        found |= wal_of_pgbackrest(lab, command, login)
    plain = lab.fresh("plain")
    member = subprocess.run(
        [lab.podgres, "demo", "dsn", "--dir", lab.demo, "--member", "0"], check=True, capture_output=True,
        text=True).stdout.strip()
    found["pg_basebackup"] = measured(
        [lab.bindir / "pg_basebackup", "-d", member.replace("//postgres:", "//podgres_replication:"),
         "-D", plain / "data", "-c", "fast"], {}, together=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--podgres", required=True)
    parser.add_argument("--bindir", required=True)
    parser.add_argument("--scale", type=int, default=135)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--folder", default="/var/tmp")
    arguments = parser.parse_args()
    lab = Lab(arguments)
    try:
        rounds = [round_of(lab) for _ in range(arguments.rounds)]
    finally:
        lab.end()
    middle = {name: tuple(statistics.median(found[name][at] for found in rounds) for at in (0, 1)) for name in rounds[0]}
    print(f"load {os.getloadavg()[0]:.1f}, {len(lab.segments)} segments, {arguments.rounds} rounds")
    print(f"{'':20} {'seconds':>8} {'MB':>6}  ratio to pgBackRest")
    for name, (seconds, megabytes) in middle.items():
        anchor = middle.get("pgBackRest " + name.split(" ")[-1])
        ratio = f"{anchor[0] / seconds:.2f}x" if anchor else ""
        print(f"{name:20} {seconds:8.2f} {megabytes:6.0f}  {ratio}")


if __name__ == "__main__":
    sys.exit(main())
