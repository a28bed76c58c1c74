"""Measures podgres beside Patroni and pg_basebackup on one machine and prints docs/benchmarks.md's tables.

Takes turns run by run, so that what the machine does meanwhile falls on all of them. Called by benches/run.
"""

import argparse
import concurrent.futures
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measures
from failover import failover
from follow import follow, rows as follow_rows
from faults import PatroniFaults, PodgresFaults
from measures import spread
from patroni_cluster import PatroniCluster
from podgres_cluster import PodgresCluster
from reaction import patroni_reactions, podgres_reactions
from reads import reads, rows as read_rows
from rejoin import rejoin, settle
from route import route, tables as route_tables

PARTS = ("start", "idle", "clone", "size", "reaction", "follow", "failover", "rejoin", "route", "reads")


def main():
    """Runs the chosen parts in order; results so far are kept in --json whatever happens later."""
    options = parse_arguments()
    chosen = options.only or PARTS
    results = {"machine": machine(options)}
    with tempfile.TemporaryDirectory(prefix="podgres-bench.") as folder:
        os.chmod(folder, 0o755)
        bench = Bench(options, Path(folder))
        for part in PARTS:
            if part in chosen:
                print(f"\n### {part}\n", flush=True)
                results[part] = getattr(bench, part)()
                sys.stdout.flush()
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1) + "\n")


def parse_arguments():
    """The command line; --without-podgres is for trying the peer's half alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--podgres", type=Path, help="the binary; without it only the peers are measured")
    parser.add_argument("--bindir", type=Path, required=True, help="folder of PostgreSQL's programs")
    parser.add_argument("--patroni", type=Path, required=True, help="Patroni's program")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part only (may be repeated)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each start (5)")
    parser.add_argument("--clone-runs", type=int, default=3, help="clones of each kind (3)")
    parser.add_argument("--gibibytes", type=float, default=2, help="size of the cloned database (2)")
    parser.add_argument("--idle-seconds", type=float, default=60, help="how long to watch idle clusters (60)")
    parser.add_argument("--fault", action="append", choices=PodgresFaults.faults, help="of failover: this one only (may be repeated)")
    parser.add_argument("--failover-runs", type=int, default=5, help="runs of each fault (5)")
    parser.add_argument("--writers", type=int, default=1, help="of failover: 1, every 20 ms; or several without a pause (1)")
    parser.add_argument("--durability", default="majority", help="of failover: podgres' own (majority)")
    parser.add_argument("--alone", action="store_true", help="of failover: without Patroni beside it")
    parser.add_argument("--api-seconds", type=float, default=60, help="how long the API server is down (60)")
    parser.add_argument("--rejoin-runs", type=int, default=5, help="failovers with a diverged primary (5)")
    parser.add_argument("--route-runs", type=int, default=5, help="turns of each load through the routes (5)")
    parser.add_argument("--route-seconds", type=int, default=8, help="of one pgbench (8)")
    parser.add_argument("--turns", type=int, default=10, help="of follow: moves and losses of each kind (10)")
    parser.add_argument("--tries", type=int, default=10_000, help="reads of own writes of each kind (10000)")
    parser.add_argument("--apply-delay", type=int, default=0, help="of reads: standbys apply commits so many ms later (0)")
    parser.add_argument("--json", type=Path, help="also write all numbers there")
    return parser.parse_args()


def machine(options):
    """What the numbers depend on."""
    version = subprocess.run([options.bindir / "postgres", "--version"], capture_output=True, text=True, check=True)
    patroni = subprocess.run([options.patroni, "--version"], capture_output=True, text=True, check=True)
    found = {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "postgresql": version.stdout.strip(),
        "patroni": patroni.stdout.strip(),
    }
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    return found


def table(header, rows):
    """A Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


class Bench:
    """One method per part; each prints its table and returns its numbers."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.count = 0

    def new_folder(self):
        """A name for the next cluster's folder."""
        self.count += 1
        return self.folder / f"{self.count}"

    def podgres(self, *more):
        """A new demo, not started."""
        return PodgresCluster(self.options.podgres, self.options.bindir, self.new_folder(), more=more)

    def patroni(self, loop_wait_seconds=10):
        """A new Patroni cluster with its etcd running, itself not started."""
        cluster = PatroniCluster(self.options.patroni, self.options.bindir, self.new_folder(), loop_wait_seconds)
        cluster.start_etcd()
        return cluster

    def contenders(self):
        """Makers of clusters, by the name in the tables."""
        makers = {"podgres": self.podgres} if self.options.podgres else {}
        return makers | {
            "Patroni, as it comes (loop_wait 10)": self.patroni,
            "Patroni, tuned (loop_wait 1)": lambda: self.patroni(1),
        }

    def start(self):
        """From nothing to three members, two of them streaming."""
        seconds = {name: [] for name in self.contenders()}
        for _ in range(self.options.runs):
            for name, make in self.contenders().items():
                cluster = make()
                seconds[name].append(measures.start_seconds(cluster))
                shutil.rmtree(cluster.folder)
        table(
            ["from start to primary + 2 streaming", "min / median / max, s", "runs"],
            [(name, spread(values), len(values)) for name, values in seconds.items()],
        )
        return seconds

    def idle(self):
        """Memory and processor time of the agents while nothing happens, all clusters at once."""
        contenders = {name: make() for name, make in self.contenders().items()}
        try:
            for cluster in contenders.values():
                cluster.start()
            for cluster in contenders.values():
                cluster.wait_complete()
            cost = measures.idle_cost(contenders, 15, self.options.idle_seconds)
        finally:
            for cluster in contenders.values():
                cluster.stop()
        mebibyte = 2**20
        table(
            ["agent of one member, idle", "PSS, MiB: min / median / max", "CPU, % of a core: min / median / max"],
            [
                (
                    name,
                    spread([value / mebibyte for value in of["pss_bytes"]], digits=1),
                    spread([100 * value for value in of["cpu_share"]]),
                )
                for name, of in cost.items()
            ],
        )
        return cost

    def clone(self):
        """A standby made anew, beside a plain pg_basebackup of the same data."""
        plain = measures.PlainServer(self.options.bindir, self.new_folder())
        cluster = self.podgres() if self.options.podgres else None
        found = {"pg_basebackup_seconds": [], "podgres_seconds": [], "podgres_states": []}
        try:
            plain.start()
            found["database_bytes"] = measures.fill(plain.dsn, self.options.gibibytes)
            if cluster:
                cluster.start()
                cluster.wait_complete()
                measures.fill(cluster.dsn("--member", str(cluster.primary()["ordinal"])), self.options.gibibytes)
                cluster.wait_complete()
            for _ in range(self.options.clone_runs):
                seconds, found["copy_bytes"] = plain.base_backup_seconds()
                found["pg_basebackup_seconds"].append(seconds)
                if cluster:
                    seconds, states = measures.clone_seconds(cluster, 2)
                    found["podgres_seconds"].append(seconds)
                    found["podgres_states"].append(states)
        finally:
            plain.stop()
            if cluster:
                cluster.stop()
        self.print_clone(found)
        return found

    def print_clone(self, found):
        """The clone's table."""
        rows = [("pg_basebackup -X stream -c fast", spread(found["pg_basebackup_seconds"]))]
        if found["podgres_seconds"]:
            cloning = [states.get("cloning", 0) for states in found["podgres_states"]]
            rows.append(("podgres, while the member says `cloning`", spread(cloning)))
            rows.append(("podgres, from delete-pod --wipe-volume to streaming", spread(found["podgres_seconds"])))
        size = found["database_bytes"] / 2**30
        table([f"clone of a database of {size:.2f} GiB", "min / median / max, s"], rows)

    def size(self):
        """Of the binary."""
        sizes = measures.binary_sizes(self.options.podgres) if self.options.podgres else {}
        table(["binary", "MiB"], [(name, f"{size / 2**20:.2f}") for name, size in sizes.items()])
        return sizes

    def reaction(self):
        """After SIGKILL to a postmaster."""
        found = {}
        for name, make in self.contenders().items():
            cluster = make()
            measure = podgres_reactions if name == "podgres" else patroni_reactions
            try:
                cluster.start()
                cluster.wait_complete()
                found[name] = [measure(cluster) for _ in range(self.options.clone_runs)]
            finally:
                cluster.stop()
        rows = []
        for name, runs in found.items():
            for event, probes in runs[0].items():
                rows += [(name, event, probe, *reaction_cells(runs, event, probe)) for probe in probes]
        table(["", "event", "asked", "bad after, ms", "good again after, ms", "bad answers", "longest wait, ms"], rows)
        return found

    def follow(self):
        """How soon the routes of the other members follow."""
        cluster = self.podgres()
        try:
            cluster.start()
            cluster.wait_complete()
            found = follow(cluster, self.options.turns)
        finally:
            cluster.stop()
        table(["event", "from there to", "median, ms", "worst, ms", "runs"], list(follow_rows(found)))
        return found

    def failover(self):
        """Write outages, all with default timings and at the same time, so that the machine's other work falls on all."""
        options = self.options
        podgres = self.podgres("--set", f"PODGRES_DURABILITY={options.durability}")
        contenders = {"podgres": PodgresFaults(podgres, options.api_seconds)}
        if not options.alone:
            contenders["Patroni"] = PatroniFaults(self.patroni())
        faults = options.fault or PodgresFaults.faults
        clusters = [contender.cluster for contender in contenders.values()]
        try:
            for cluster in clusters:
                cluster.start()
                cluster.wait_complete()
            with concurrent.futures.ThreadPoolExecutor() as threads:
                runs = {
                    name: threads.submit(failover, contender, name, faults, options.failover_runs, options.writers)
                    for name, contender in contenders.items()
                }
                found = {name: run.result() for name, run in runs.items()}
        finally:
            for cluster in clusters:
                cluster.stop()
        rows = [(name, *row) for name, faults in found.items() for row in outage_rows(faults)]
        table(["", "fault", "runs", "outage, s, median / worst", "all streaming again, s", "primary moved"], rows)
        for name, faults in found.items():
            print(f"{name}: {faults['lost']}")
        return found

    def rejoin(self):
        """A primary that was lost with WAL of its own comes back: seconds, and what `pg_rewind` copied of how much."""
        cluster = self.podgres()
        try:
            cluster.start()
            cluster.wait_complete()
            measures.fill(cluster.dsn("--member", str(cluster.primary()["ordinal"])), self.options.gibibytes)
            found = {"just loaded": [rejoin(cluster) for _ in range(self.options.rejoin_runs)]}
            settle(cluster)
            found["in steady use"] = [rejoin(cluster) for _ in range(self.options.rejoin_runs)]
        finally:
            cluster.stop()
        for state, runs in found.items():
            rows = [
                ("from SIGKILL to streaming, s", spread([run["seconds"] for run in runs])),
                ("copied by pg_rewind, MB", spread([run["copied_mb"] for run in runs], digits=0)),
                ("of the source, %", spread([100 * run["copied_mb"] / run["source_mb"] for run in runs], digits=1)),
            ]
            table([f"a diverged primary rejoins, {self.options.gibibytes} GiB, {state}", "min / median / max"], rows)
        return found

    def route(self):
        """What the routes cost, beside HAProxy."""
        folder = self.new_folder()
        settings = folder / "conf.d"
        settings.mkdir(parents=True)
        (settings / "bench.conf").write_text("max_connections = 700\nshared_buffers = 256MB\n")
        for path in (folder, settings):
            path.chmod(0o755)
        more = ["--leadership", "fixed", "--set", f"PODGRES_CONFIGURATION_DIR={settings}"]
        cluster = PodgresCluster(self.options.podgres, self.options.bindir, folder / "demo", size=1, more=more)
        try:
            cluster.start()
            cluster.wait_complete()
            found = route(cluster, self.options.bindir, folder, self.options.route_runs, self.options.route_seconds)
        finally:
            cluster.stop()
        for title, header, rows in route_tables(found):
            table([title, *header], list(rows))
            print()
        return found

    def reads(self):
        """Reads of own writes, with the token and without."""
        cluster = self.podgres()
        try:
            cluster.start()
            cluster.wait_complete()
            found = reads(cluster, self.options.tries, self.options.apply_delay)
        finally:
            cluster.stop()
        header = ["reads of own writes on a standby", "tries", "misses", "until the answer, ms: median / p99", "wait for the token, ms: median"]
        table(header, list(read_rows(found)))
        return found


def outage_rows(faults):
    """One contender's outages, fault by fault."""
    for fault, runs in faults.items():
        if fault == "lost" or not runs:
            continue
        outages = sorted(run["outage_seconds"] for run in runs)
        rejoined = statistics.median(run["rejoined_seconds"] for run in runs)
        moved = sum(run["moved"] for run in runs)
        yield fault, len(runs), f"{statistics.median(outages):.2f} / {outages[-1]:.2f}", f"{rejoined:.1f}", moved


def reaction_cells(runs, event, probe):
    """Medians over the runs; a dash where nothing turned bad."""
    reports = [run[event][probe] for run in runs]

    def middle(key):
        values = [report[key] for report in reports if report[key] is not None]
        return f"{statistics.median(values):.0f}" if values else "-"

    return [middle(key) for key in ("bad_after_ms", "good_after_ms", "bad_answers", "longest_wait_ms")]


if __name__ == "__main__":
    main()
