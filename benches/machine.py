"""What the measurements need of the machine: processes that end for certain, waiting with a limit, /proc, HTTP.

Every process is started here and stopped by its own id; nothing is found by name.
"""

import contextlib
import http.client
import os
import pwd
import random
import signal
import subprocess
import time
from pathlib import Path


class TimedOut(Exception):
    """A condition that did not come true in its time."""


def server_account():
    """The account for PostgreSQL: root's servers run as postgres or nobody, others' as themselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("neither the user postgres nor nobody exists")


def owned_folder(path):
    """A new folder that PostgreSQL's user owns."""
    path = Path(path)
    path.mkdir(mode=0o755)
    if account := server_account():
        os.chown(path, account.pw_uid, account.pw_gid)
    return path


def loopback_addresses(count):
    """Addresses of this machine alone, drawn so that two runs do not meet."""
    network = f"127.{random.randint(64, 250)}.{random.randint(1, 250)}"
    first = random.randint(1, 240)
    return [f"{network}.{first + offset}" for offset in range(count)]


def start(arguments, log, environment=None, drop_root=True):
    """Starts a process in a session of its own, its output in a log file."""
    account = server_account() if drop_root else None
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(environment or {})},
            start_new_session=True,
            **identity,
        )


def stop(process, limit_seconds=30, how=signal.SIGTERM):
    """Ends a process, at first kindly."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def alive(pid):
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid):
    """A process' arguments and environment as one text: whether it is still the one that was meant."""
    text = ""
    for file in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{pid}/{file}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return text


def tail(path, lines=15):
    """The end of a log, for a message."""
    with contextlib.suppress(OSError):
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-lines:])
    return ""


def wait_until(condition, limit_seconds, what, pause_seconds=0.02):
    """Waits for a condition; returns what it gave."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(pause_seconds)
    raise TimedOut(f"waited {limit_seconds} s for {what}")


def http_get(host, port, path, timeout_seconds=2):
    """Status code and body of a GET; (None, b"") where nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def pss_bytes(pid):
    """A process' memory, shared pages divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss in smaps_rollup of process {pid}")


def cpu_seconds(pid):
    """User and system time of a process so far, without its children's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid):
    """The ids of a process' direct children."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def tree(pid):
    """A process and all below it; [] once it is gone."""
    try:
        return [pid] + [below for child in children(pid) for below in tree(child)]
    except OSError:
        return []


def folder_bytes(path):
    """What the files below a folder hold."""
    return sum(entry.lstat().st_size for entry in Path(path).rglob("*") if entry.is_file())
