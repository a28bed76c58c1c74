//! A pod that alone does not reach the API server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
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

    /// All sidecars begin anew, and reach the API server through one who counts.
    pub(crate) fn counted(&self, demo: &Demo, pods: &[&str]) -> Counted {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let text = std::fs::read_to_string(&self.open).expect("a kubeconfig");
        let mut file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let server = &mut file["clusters"][0]["cluster"]["server"];
        let to = server
            .as_str()
            .and_then(|url| url.strip_prefix("http://"))
            .expect("a URL")
            .to_owned();
        *server = format!("http://{}", listener.local_addr().expect("an address")).into();
        let counted = Counted::default();
        let requests = Arc::clone(&counted.requests);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (
                    client.expect("a client"),
                    TcpStream::connect(&to).expect("the server"),
                );
                pass_on(client, server, &requests);
            }
        });
        let through = self.folder.path().join("through");
        std::fs::write(&through, file.to_string()).expect("written");
        self.points_to(&through);
        // Asked before the first ends: one that has just begun anew does not know the others yet.
        let status = demo.status().expect("a status");
        let sidecars: Vec<u32> = pods.iter().map(|pod| pid_in(&status, pod, "sidecar")).collect();
        for sidecar in sidecars {
            signal(sidecar, Signal::KILL);
        }
        counted
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

/// The first line of each request so far.
#[derive(Default)]
pub(crate) struct Counted {
    requests: Arc<Mutex<Vec<String>>>,
}

impl Counted {
    /// Those since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().expect("lock"))
    }
}

/// Both ways until one of them ends. A client sends a request in pieces of its own: each begins one or goes on with it.
fn pass_on(client: TcpStream, server: TcpStream, requests: &Arc<Mutex<Vec<String>>>) {
    let (mut from, mut to) = (
        client.try_clone().expect("a copy"),
        server.try_clone().expect("a copy"),
    );
    let requests = Arc::clone(requests);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            let line = text.lines().next().unwrap_or_default();
            if line.ends_with(" HTTP/1.1") {
                requests.lock().expect("lock").push(line.to_owned());
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        drop(to.shutdown(std::net::Shutdown::Both));
    });
    let (mut from, mut to) = (server, client);
    std::thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(std::net::Shutdown::Both));
    });
}
