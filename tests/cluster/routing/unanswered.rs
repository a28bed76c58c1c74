//! The read-only switch under a Lease, where one pod alone does not reach the API server.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podgres::demo::Target;
use rustix::process::Signal;

use super::clients::{config_of, on_standby};
use super::{ordinal_of, primary};
use crate::harness::{Demo, Start, member, members, wait_for};
use crate::kit::{open_folder, pid_in, signal};

/// Which API server the pods find: a sidecar reads it once, when it starts.
struct Way {
    link: PathBuf,
    open: PathBuf,
    folder: PathBuf,
}

impl Way {
    fn points_to(&self, target: &Path) {
        let staged = self.folder.join("staged");
        std::os::unix::fs::symlink(target, &staged).expect("a link");
        std::fs::rename(&staged, &self.link).expect("the link");
    }

    /// The pod's sidecar begins anew, and finds a server that takes connections and never answers.
    fn close_for(&self, demo: &Demo, pod: &str) -> TcpListener {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let text = std::fs::read_to_string(&self.open).expect("a kubeconfig");
        let mut file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let url = format!("http://{}", silent.local_addr().expect("an address"));
        file["clusters"][0]["cluster"]["server"] = url.into();
        let nowhere = self.folder.join("nowhere");
        std::fs::write(&nowhere, file.to_string()).expect("written");
        self.points_to(&nowhere);
        let before = pid_in(&demo.status().expect("a status"), pod, "sidecar");
        signal(before, Signal::KILL);
        demo.wait("the sidecar again, with what it remembers", |status| {
            let again = member(status, pod);
            let pid = again["pids"]["sidecar"].as_u64();
            again["state"] == "streaming" && pid.is_some_and(|pid| pid != u64::from(before))
        });
        let complained = || demo.log(pod, "sidecar").contains("none came within");
        assert!(
            wait_for(Duration::from_secs(20), complained),
            "it reaches the API"
        );
        self.points_to(&self.open);
        silent
    }
}

/// Its read-write route went on serving the primary, for as long as it did not reach the API.
#[test]
fn a_pod_cut_off_from_the_api_alone_followed_the_switch_only_when_it_was_back() {
    let folder = open_folder();
    let directory = folder.path().join("demo");
    let way = Way {
        link: folder.path().join("kubeconfig"),
        open: directory.join("kubeconfig"),
        folder: folder.path().to_owned(),
    };
    way.points_to(&way.open);
    let setting = format!("PODGRES_KUBECONFIG={}", way.link.display());
    let demo = Start::lease(16).with(&["--set", &setting]).run_in(&directory);
    let first = primary(&demo.wait_streaming(2));
    let last = if first == "demo-2" { "demo-1" } else { "demo-2" };
    let _silent = way.close_for(&demo, last);

    let config = config_of(
        &demo,
        ordinal_of(last).parse().expect("an ordinal"),
        Target::ReadWrite,
    );
    assert_eq!(on_standby(&config), Some(false), "writes at first");
    for (turn, standby) in [("on", true), ("off", false), ("on", true)] {
        let began = Instant::now();
        demo.done(&["read-only", turn, "--reason", "a migration"]);
        let follows = || on_standby(&config) == Some(standby);
        assert!(
            wait_for(Duration::from_secs(2), follows),
            "{turn}: the route of {last} does not follow"
        );
        println!("{turn}: the command and the route took {:?}", began.elapsed());
        let told = demo.wait("the switch in everybody's status", |status| {
            status["read_only"] == standby && members(status).len() == 3
        });
        let reason = &told["read_only_switch"]["reason"];
        assert_eq!(reason == "a migration", standby, "{reason}");
    }
    let log = demo.log(last, "sidecar");
    let began_anew = log.rfind("none came within").expect("cut off");
    assert!(!log[began_anew..].contains("the Kubernetes API answers again"));
}
