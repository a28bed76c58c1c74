//! `components/backup` and `k8s/examples/backup`: CronJobs, their Jobs, and what they leave on the volume.

use std::path::Path;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::cluster::{Cluster, SELECTOR};
use crate::kubectl;
use crate::overlay::{Overlay, PODGRES_IMAGE};
use crate::restore;
use crate::runner::Group;
use crate::wait::{until, within};
use crate::world::image;

/// A run every minute instead of every other, on a volume that a small machine can make.
const EVERY_MINUTE: &str = "  - target: {kind: CronJob, name: pg-backup}
    patch: |-
      - {op: replace, path: /spec/schedule, value: \"*/1 * * * *\"}
  - target: {kind: PersistentVolumeClaim, name: pg-backup}
    patch: |-
      - {op: replace, path: /spec/resources/requests/storage, value: 1Gi}
";

/// No runs but those that a test begins.
pub(crate) const NEVER: &str = "  - target: {kind: CronJob}
    patch: |-
      - {op: replace, path: /spec/schedule, value: \"0 0 1 1 *\"}
  - target: {kind: PersistentVolumeClaim, name: pg-backup}
    patch: |-
      - {op: replace, path: /spec/resources/requests/storage, value: 1Gi}
";

pub(crate) const GROUP: Group = Group {
    name: "backup",
    alone: false,
    overlay: || {
        let mut overlay = Overlay::new("lease");
        overlay.base = Some("examples/backup");
        overlay.patches.push(EVERY_MINUTE.to_owned());
        overlay
    },
    begin: |cluster| {
        cluster.start();
        cluster.sql(
            &cluster.primary(),
            "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number",
        );
    },
    tests: &[
        ("row_50_the_servers_secret_and_settings_are_used", row_50),
        ("row_48_no_run_begins_while_another_is_at_work", row_48),
        ("row_47_and_54_each_run_leaves_one_backup_and_a_log", row_47),
        ("row_51_another_pod_lists_the_backups", row_51),
        ("row_55_a_failing_run_is_tried_again_up_to_the_limit", row_55),
        ("row_57_a_backup_is_proven_on_the_cluster", row_57),
        (
            "all_volumes_are_lost_and_the_first_is_filled_by_the_job",
            restore::by_the_job,
        ),
        ("row_52_a_suspended_cronjob_makes_no_job", row_52),
        ("row_53_jobs_belong_to_the_cronjob_and_go_with_it", row_53),
    ],
};

/// A run is begun within a minute, and takes as long as starting a pod.
const RUN_LIMIT: std::time::Duration = std::time::Duration::from_secs(150);

fn object(cluster: &Cluster, kind: &str, name: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", kind, name, "-o", "json"])).expect("JSON")
}

pub(crate) fn apply(cluster: &Cluster, manifest: &str) {
    let mut apply = kubectl::kubectl();
    apply.args(["-n", &cluster.namespace, "apply", "-f", "-"]);
    kubectl::text_with_input(&mut apply, manifest);
}

/// The Jobs that the CronJob has made, by their owner.
fn runs(cluster: &Cluster) -> Vec<Value> {
    let jobs: Value = serde_json::from_str(&cluster.kubectl(&["get", "jobs", "-o", "json"])).expect("JSON");
    let ours = |job: &&Value| {
        let owner = &job["metadata"]["ownerReferences"][0];
        owner["kind"] == "CronJob" && owner["name"] == "pg-backup"
    };
    jobs["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(ours)
        .cloned()
        .collect()
}

fn succeeded(jobs: &[Value]) -> Vec<String> {
    let done = |job: &&Value| job["status"]["succeeded"] == 1;
    let name = |job: &Value| job["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    jobs.iter().filter(done).map(name).collect()
}

fn row_50(cluster: &Cluster) {
    let secret = |volumes: &Value| -> Vec<Value> {
        let volumes = volumes.as_array().expect("volumes");
        volumes
            .iter()
            .map(|volume| &volume["secret"])
            // The certificates', which are not there.
            .filter(|secret| secret["secretName"].is_string() && secret["optional"] != true)
            .map(|secret| secret["secretName"].clone())
            .collect()
    };
    let servers = &object(cluster, "statefulset", "pg")["spec"]["template"]["spec"];
    let run = &object(cluster, "cronjob", "pg-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!(secret(&run["volumes"]), secret(&servers["volumes"]));
    assert_eq!(
        run["containers"][0]["envFrom"],
        servers["containers"][0]["envFrom"]
    );
}

/// A run that is longer than the time between two: the next one waits for its end.
fn row_48(cluster: &Cluster) {
    let command = |words: Value| {
        let path = "/spec/jobTemplate/spec/template/spec/containers/0/command";
        let patch = json!([{"op": "replace", "path": path, "value": words}]).to_string();
        cluster.kubectl(&["patch", "cronjob", "pg-backup", "--type=json", "-p", &patch]);
    };
    command(json!(["sh", "-c", "sleep 70 && exec /podgres/podgres backup"]));
    within(
        RUN_LIMIT + RUN_LIMIT,
        "a run begins after one that has taken more than a minute",
        || times(&runs(cluster)),
        |times| {
            let at_work = times.iter().filter(|(_, end)| end.is_none()).count();
            assert!(at_work <= 1, "{times:?}");
            times.windows(2).any(|pair| {
                let ((begin, end), (next, _)) = (pair[0], pair[1]);
                end.is_some_and(|end| {
                    assert!(next >= end, "{times:?}");
                    end.duration_since(begin) > SignedDuration::from_mins(1)
                })
            })
        },
    );
    command(json!(["/podgres/podgres", "backup"]));
}

/// When each run began and when it was done, in order.
fn times(jobs: &[Value]) -> Vec<(Timestamp, Option<Timestamp>)> {
    let time = |job: &Value, key: &str| -> Option<Timestamp> { job["status"][key].as_str()?.parse().ok() };
    let both = |job: &Value| Some((time(job, "startTime")?, time(job, "completionTime")));
    let mut times: Vec<_> = jobs.iter().filter_map(both).collect();
    times.sort_unstable();
    times
}

fn row_47(cluster: &Cluster) {
    let (_, jobs) = within(
        RUN_LIMIT + RUN_LIMIT,
        "two runs",
        || runs(cluster),
        |jobs| succeeded(jobs).len() >= 2,
    );
    let done = succeeded(&jobs);
    for name in &done {
        let shown = cluster.kubectl(&["get", "job", name, "--no-headers"]);
        assert!(shown.contains("1/1"), "{shown}");
        // Its first pod may have come when no member could be read.
        let pods = format!("job-name={name}");
        let log = cluster.kubectl(&["logs", "-l", &pods, "-c", "backup", "--tail=20"]);
        assert!(log.contains("-physical"), "{log}");
    }
}

/// As `podgres backups -o json` prints them, by the example's Job.
fn listed(cluster: &Cluster) -> Vec<Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/examples/backup/list.yaml");
    let manifest = std::fs::read_to_string(file).expect("the example");
    let wanted = format!("image: {}", image(PODGRES_IMAGE.0, PODGRES_IMAGE.1));
    let manifest = manifest
        .replace("image: podgres", &wanted)
        .replace("/backup/pg]", "/backup/pg, -o, json]");
    apply(cluster, &manifest);
    let wait = [
        "wait",
        "--for=condition=Complete",
        "--timeout=60s",
        "job/pg-backups",
    ];
    cluster.kubectl(&wait);
    let text = cluster.kubectl(&["logs", "job/pg-backups"]);
    cluster.kubectl(&["delete", "job", "pg-backups"]);
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    list["backups"].as_array().expect("a list").clone()
}

/// The backups' names by the commands of the example's page, word by word but for the image.
fn listed_as_the_page_says(cluster: &Cluster) -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/examples/backup");
    let page = std::fs::read_to_string(format!("{folder}/README.md")).expect("the page");
    let block = page
        .split("```console\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let commands = block
        .expect("a block")
        .lines()
        .filter_map(|line| line.strip_prefix("$ "));
    let commands: Vec<&str> = commands.collect();
    let shown = "registry.example/podgres:0.1.0";
    let script = commands
        .join("\n")
        .replace(shown, &image(PODGRES_IMAGE.0, PODGRES_IMAGE.1));
    let said = kubectl::script(&cluster.namespace, &script, Path::new(folder));
    let names = said.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| name.ends_with("-physical"))
        .map(str::to_owned)
        .collect()
}

fn row_51(cluster: &Cluster) {
    let before = succeeded(&runs(cluster)).len();
    let backups = listed_as_the_page_says(cluster).len();
    let after = runs(cluster).len();
    assert!(
        (before..=after).contains(&backups),
        "{before} to {after} runs, {backups} backups"
    );
}

/// What `kubectl create job --from` does, for CronJobs of older APIs too.
fn job_from(cluster: &Cluster, cron: &str, name: &str, change: impl Fn(&mut Value)) {
    let mut spec = object(cluster, "cronjob", cron)["spec"]["jobTemplate"]["spec"].clone();
    change(&mut spec);
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
    apply(cluster, &job.to_string());
}

fn row_55(cluster: &Cluster) {
    job_from(cluster, "pg-backup", "failing", |spec| {
        spec["backoffLimit"] = json!(1);
        let environment = &mut spec["template"]["spec"]["containers"][0]["env"];
        for variable in environment.as_array_mut().expect("settings") {
            if variable["name"] == "PODGRES_URL" {
                variable["value"] = json!("http://127.0.0.1:9");
            }
        }
    });
    let status = || object(cluster, "job", "failing")["status"].clone();
    let (_, status) = within(RUN_LIMIT, "it is given up", status, |status| {
        status["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["type"] == "Failed"))
    });
    assert_eq!(status["failed"], 2, "one run and one more: {status}");
    let log = cluster.kubectl(&["logs", "-l", "job-name=failing", "-c", "backup", "--tail=20"]);
    assert!(
        log.contains("127.0.0.1:9"),
        "it says what could not be reached: {log}"
    );
    cluster.kubectl(&["delete", "job", "failing"]);
}

/// `kubectl create job VERB-now --from=cronjob/pg-VERB`, to its end; what it said.
pub(crate) fn run_now(cluster: &Cluster, verb: &str) -> String {
    let name = format!("{verb}-now");
    job_from(cluster, &format!("pg-{verb}"), &name, |_| ());
    let done = || object(cluster, "job", &name)["status"]["succeeded"].clone();
    within(RUN_LIMIT, &format!("{name} is done"), done, |done| *done == 1);
    cluster.kubectl(&["logs", &format!("job/{name}"), "-c", verb])
}

fn row_57(cluster: &Cluster) {
    let log = run_now(cluster, "verify");
    assert!(log.contains("verified"), "{log}");
    let verified = |backup: &Value| backup["verified"] == true;
    let backups = listed(cluster);
    assert!(backups.iter().any(verified), "{backups:#?}");
}

/// No run begins any more, and none is at work.
pub(crate) fn suspend(cluster: &Cluster) {
    let on = r#"{"spec": {"suspend": true}}"#;
    cluster.kubectl(&["patch", "cronjob", "pg-backup", "-p", on]);
    let active = || object(cluster, "cronjob", "pg-backup")["status"]["active"].clone();
    until("none is at work", active, Value::is_null);
}

fn row_52(cluster: &Cluster) {
    suspend(cluster);
    let before = runs(cluster).len();
    // What must not happen cannot be awaited: more than the time between two runs passes.
    let begun = std::time::Instant::now();
    let longer = std::time::Duration::from_secs(75);
    within(
        RUN_LIMIT,
        "a schedule has passed",
        || begun.elapsed(),
        |passed| *passed > longer,
    );
    assert_eq!(runs(cluster).len(), before);
    let off = r#"{"spec": {"suspend": false}}"#;
    cluster.kubectl(&["patch", "cronjob", "pg-backup", "-p", off]);
    let last = || object(cluster, "cronjob", "pg-backup")["status"]["lastScheduleTime"].clone();
    let seen = last();
    within(RUN_LIMIT, "a new run", last, |time| *time != seen);
}

fn row_53(cluster: &Cluster) {
    assert!(!runs(cluster).is_empty());
    cluster.kubectl(&["delete", "cronjob", "pg-backup"]);
    until("its Jobs are gone", || runs(cluster).len(), |left| *left == 0);
    let selector = "app.kubernetes.io/name=podgres-backup";
    let pods = || cluster.kubectl(&["get", "pods", "-l", selector, "-o", "name"]);
    until("their pods are gone", pods, |pods| !pods.contains("pg-backup"));
    assert!(
        cluster.claims().contains(&"pg-backup".to_owned()),
        "the backups stay"
    );
    assert_eq!(
        cluster
            .kubectl(&["get", "pods", "-l", SELECTOR, "-o", "name"])
            .lines()
            .count(),
        3
    );
}
