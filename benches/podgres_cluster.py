"""A demo of podgres, started, asked and ended by its own commands."""

import json
import os
import signal
import subprocess
from pathlib import Path

from machine import alive, command_line, owned_folder, start, stop, tail, wait_until


class PodgresCluster:
    """One demo in one folder; `start` returns at once, `stop` leaves no process."""

    def __init__(self, program, bindir, folder, size=3, more=()):
        self.program, self.bindir, self.size = Path(program).resolve(), bindir, size
        self.folder, self.more = owned_folder(folder), more
        self.volumes = self.folder / "demo"
        self.log = self.folder / "demo.log"
        self.process = None
        self.known_pids = set()

    def start(self):
        """Starts the demo; as root it drops root by itself."""
        self.process = start(
            [self.program, "demo", "--replicas", self.size, "--dir", self.volumes, *self.more],
            self.log,
            {"PG_BINDIR": str(self.bindir), "HOME": os.environ.get("HOME", "/")},
            drop_root=False,
        )

    def command(self, *arguments, limit_seconds=60):
        """Runs one of podgres' commands on this demo; returns its output, or None where it refused."""
        done = subprocess.run(
            [str(self.program), *arguments, "--dir", str(self.volumes)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
        )
        return done.stdout if done.returncode == 0 else None

    def view(self):
        """The members as `podgres status -o json` tells them; [] while there is no answer."""
        try:
            text = self.command("status", "-o", "json", limit_seconds=10)
            members = json.loads(text)["members"] if text else []
        except (json.JSONDecodeError, KeyError, subprocess.TimeoutExpired):
            return []
        for member in members:
            self.known_pids.update(pid for pid in (member.get("pids") or {}).values() if pid)
        return members

    def complete(self):
        """A running primary and all others streaming."""
        if self.process.poll() is not None:
            raise RuntimeError(f"podgres demo ended with {self.process.returncode}")
        states = [(member["role"], member["state"]) for member in self.view()]
        return (
            states.count(("primary", "running")) == 1
            and states.count(("standby", "streaming")) == self.size - 1
        )

    def wait_complete(self, limit_seconds=180):
        """Waits for `complete`, or shows the demo's last lines."""
        try:
            wait_until(self.complete, limit_seconds, "the demo's members")
        except Exception:
            print(f"--- {self.log.name}\n{tail(self.log)}")
            raise

    def primary(self):
        """The primary's row."""
        return next(member for member in self.view() if member["role"] == "primary")

    def standbys(self):
        """The standbys' rows."""
        return [member for member in self.view() if member["role"] == "standby"]

    def member(self, ordinal):
        """One member's row, if it is told."""
        return next((member for member in self.view() if member["ordinal"] == ordinal), None)

    def dsn(self, *choice):
        """A connection string: `--read-write`, `--read-only` or `--member`, N."""
        text = self.command("demo", "dsn", *choice)
        if not text:
            raise RuntimeError(f"podgres demo dsn {' '.join(choice)} gave nothing")
        return text.strip()

    def agent_pids(self):
        """By member: supervisor and sidecar."""
        return [
            [member["pids"]["supervisor"], member["pids"]["sidecar"]] for member in self.view()
        ]

    def stop(self):
        """As Ctrl-C does; a process that is left over is told, and killed."""
        if not self.process:
            return
        stop(self.process, 60, signal.SIGINT)
        for pid in self.known_pids:
            if alive(pid) and str(self.volumes) in command_line(pid):
                print(f"left over by podgres demo: process {pid}")
                os.kill(pid, signal.SIGKILL)
