//! A cluster that is lost with all its volumes is made anew from its backups, by the commands of docs/backup.md as they stand there.

use tempfile::TempDir;

use crate::backup::{run_now, suspend};
use crate::cluster::Cluster;
use crate::kubectl;
use crate::overlay::{PODGRES_IMAGE, POSTGRES_IMAGE};
use crate::world::image;

/// The page's `bash` blocks.
pub(crate) struct Page {
    blocks: [String; 3],
}

impl Page {
    pub(crate) fn read() -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/backup.md");
        let text = std::fs::read_to_string(file).expect("the page");
        let blocks = text.split("```bash\n").skip(1);
        let block = |rest: &str| rest.split("```").next().unwrap_or_default().to_owned();
        let blocks: Vec<String> = blocks.map(block).collect();
        let blocks = blocks.try_into().expect("clearing away, the Job, the bucket");
        Self { blocks }
    }

    /// The servers go, with volumes and Lease.
    pub(crate) fn clear_away(&self, cluster: &Cluster) {
        run(cluster, &self.blocks[0]);
        assert!(cluster.pods().is_empty());
    }

    fn by_the_job(&self, cluster: &Cluster) {
        run(cluster, &self.blocks[1]);
    }

    pub(crate) fn by_the_members(&self, cluster: &Cluster, moment: &str) {
        let shown = "2026-11-21 17:15:30+00";
        assert_eq!(self.blocks[2].matches(shown).count(), 1);
        run(cluster, &self.blocks[2].replace(shown, moment));
    }
}

/// In the test's namespace, beside a restore.yaml with its images.
fn run(cluster: &Cluster, script: &str) {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("restore.yaml"), manifest(cluster)).expect("written");
    print!("{}", kubectl::script(&cluster.namespace, script, folder.path()));
}

fn manifest(cluster: &Cluster) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/components/backup/restore.yaml");
    let mut text = std::fs::read_to_string(file).expect("the manifest");
    for (shown, (variable, default)) in [("podgres", PODGRES_IMAGE), ("postgres", POSTGRES_IMAGE)] {
        let line = |image: &str| format!("image: {image}\n");
        text = text.replace(&line(shown), &line(&image(variable, default)));
    }
    if cluster.world.minor < 26 {
        let (before, policy) = text.split_once("  podFailurePolicy:\n").expect("the policy");
        let (_, after) = policy.split_once("  template:\n").expect("the pod");
        text = format!("{before}  template:\n{after}");
    }
    text
}

pub(crate) fn by_the_job(cluster: &Cluster) {
    let identifier = cluster.status()["system_identifier"].clone();
    suspend(cluster);
    cluster.sql(&cluster.primary(), "INSERT INTO kept VALUES (1001)");
    run_now(cluster, "backup");
    let page = Page::read();
    page.clear_away(cluster);
    page.by_the_job(cluster);
    cluster.settle();
    let log = cluster.kubectl(&["logs", "job/pg-restore", "-c", "restore"]);
    assert!(log.contains("ready to be started"), "{log}");
    assert_eq!(cluster.status()["system_identifier"], identifier);
    for pod in cluster.pods().keys() {
        assert_eq!(cluster.sql(pod, "SELECT count(*) FROM kept"), "1001", "{pod}");
    }
}
