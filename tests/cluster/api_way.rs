//! A pod that alone does not reach the API server.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{Demo, Start, member, wait_for};
use crate::kit::{open_folder, pid_in, signal};

/// Which API server the pods of a demo find: a sidecar reads it once, when it starts.
pub(crate) struct ApiWay {
    link: PathBuf,
    open: PathBuf,
    folder: TempDir,
}

impl ApiWay {
    pub(crate) fn open() -> Self {
        let folder = open_folder();
        let way = Self {
            link: folder.path().join("kubeconfig"),
            open: folder.path().join("demo/kubeconfig"),
            folder,
        };
        way.points_to(&way.open);
        way
    }

    /// The demo whose pods go this way.
    pub(crate) fn run(&self, start: Start) -> Demo {
        let setting = format!("PODGRES_KUBECONFIG={}", self.link.display());
        let directory = self.folder.path().join("demo");
        start.with(&["--set", &setting]).run_in(&directory)
    }

    fn points_to(&self, target: &Path) {
        let staged = self.folder.path().join("staged");
        std::os::unix::fs::symlink(target, &staged).expect("a link");
        std::fs::rename(&staged, &self.link).expect("the link");
    }

    /// The pod's sidecar begins anew, and finds a server that takes connections and never answers.
    pub(crate) fn close_for(&self, demo: &Demo, pod: &str) -> TcpListener {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let text = std::fs::read_to_string(&self.open).expect("a kubeconfig");
        let mut file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let url = format!("http://{}", silent.local_addr().expect("an address"));
        file["clusters"][0]["cluster"]["server"] = url.into();
        let nowhere = self.folder.path().join("nowhere");
        std::fs::write(&nowhere, file.to_string()).expect("written");
        self.points_to(&nowhere);
        let before = pid_in(&demo.status().expect("a status"), pod, "sidecar");
        signal(before, Signal::KILL);
        demo.wait("the sidecar again, with what it remembers", |status| {
            let again = member(status, pod);
            let pid = again["pids"]["sidecar"].as_u64();
            let up = ["streaming", "running"].map(Into::into).contains(&again["state"]);
            up && pid.is_some_and(|pid| pid != u64::from(before))
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
