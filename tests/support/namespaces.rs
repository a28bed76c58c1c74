//! A network and mount namespace of a test's own: partitions between the pods of a demo, peers that vanish, disks that nobody else sees.
//!
//! All pods of a demo have addresses of one loopback device: where `Preloaded` of the cluster tests makes each speak from its own, packets
//! can be dropped by who sends and who gets them. The test's own clients come from 127.0.0.1 and reach everybody.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// Set for the run inside.
const INSIDE: &str = "PODGRES_TEST_INSIDE";

/// Whether this process is in namespaces of the test's own.
pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// As root, and not inside yet: runs `test`, the caller itself, in namespaces of its own, and fails if it fails there. Whether that has been done,
/// so that nothing is left to do. Who is not root cannot have them, and goes on outside.
pub(crate) fn has_run_inside(test: &str) -> bool {
    if inside() || !rustix::process::geteuid().is_root() {
        return false;
    }
    for (program, package) in [("unshare", "util-linux"), ("ip", "iproute2"), ("nft", "nftables")] {
        let found = Command::new(program).arg("-V").output();
        assert!(
            found.is_ok(),
            "program \"{program}\" is missing\nhint: Install {package} (Debian, Ubuntu)."
        );
    }
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--kill-child", "--", "sh", "-c"])
        .args(["ip link set lo up && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    // Without the lines that say of a test how it went: there is one such test, outside.
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("test ")).collect();
    assert!(
        output.status.success() && said.contains("test result: ok. 1 passed"),
        "{test} inside: {}\n{}",
        output.status,
        lines.join("\n")
    );
    true
}

/// Packets that are dropped until this is.
pub(crate) struct Cut {
    table: String,
}

impl Cut {
    /// Drops what any of these matches of nft takes, e.g. `ip saddr 127.0.0.2 tcp dport 5432`.
    pub(crate) fn new(matches: &[String]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(inside(), "in the machine's own network");
        let table = format!("cut_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let rules: Vec<String> = matches
            .iter()
            .map(|rule| format!("{rule} counter drop;"))
            .collect();
        // On arrival: whoever sends must not notice.
        let chain = format!(
            "chain input {{ type filter hook input priority 0; {} }};",
            rules.concat()
        );
        nft(&format!("table ip {table} {{ {chain} }};"));
        Self { table }
    }

    /// Between two addresses, both ways.
    pub(crate) fn between(one: IpAddr, other: IpAddr) -> Self {
        Self::new(&[
            format!("ip saddr {one} ip daddr {other}"),
            format!("ip saddr {other} ip daddr {one}"),
        ])
    }

    /// How many packets have been dropped.
    pub(crate) fn packets(&self) -> u64 {
        let output = Command::new("nft")
            .args(["-j", "list", "table", "ip", &self.table])
            .output()
            .expect("nft");
        let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON of nft");
        let objects = listed["nftables"].as_array().into_iter().flatten();
        let parts = objects
            .filter_map(|object| object["rule"]["expr"].as_array())
            .flatten();
        parts.filter_map(|part| part["counter"]["packets"].as_u64()).sum()
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        nft(&format!("delete table ip {}", self.table));
    }
}

fn nft(commands: &str) {
    let output = Command::new("nft").arg(commands).output().expect("nft");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands}: {errors}");
}
