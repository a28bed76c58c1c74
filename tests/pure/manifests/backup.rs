//! Backups: the policy lets them through, and their Jobs have what they need.

use std::process::ExitCode;

use podgres::cmd::ExitStatus;

use super::*;

/// A policy that is enforced must not keep backups from their members, nor members from the bucket.
#[test]
fn backups_pass_the_network_policy() {
    let objects = build("overlays/fixed", &["backup", "backup-s3"]);
    let backup = one(&objects, "CronJob", "pg-backup");
    let labels = &backup["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"];
    let policy = &one(&objects, "NetworkPolicy", "pg")["spec"];
    let rules = |direction: &str| policy[direction].as_array().expect("rules").clone();
    let ports = |rule: &Value| -> Vec<Option<u64>> {
        let ports = rule["ports"].as_array().expect("ports");
        ports.iter().map(|port| port["port"].as_u64()).collect()
    };
    let in_by = rules("ingress");
    let in_by = in_by
        .iter()
        .find(|rule| rule["from"][0]["podSelector"]["matchLabels"] == *labels);
    assert_eq!(
        ports(in_by.expect("a rule for backups")),
        [Some(5432), Some(8008)]
    );
    assert!(rules("egress").iter().any(|rule| ports(rule) == [Some(443)]));
}

/// kubectl refuses the whole CronJob for a field that the cluster does not know.
#[test]
fn a_cronjob_had_a_field_that_clusters_before_1_26_do_not_know() {
    for (components, there) in [
        (&["backup", "classic-sidecar"][..], true),
        (&["backup", "classic-sidecar", "older-jobs"], false),
        (&["backup", "classic-sidecar", "older-jobs", "older-apis"], false),
    ] {
        for object in build("overlays/fixed", components) {
            let policy = &object["spec"]["jobTemplate"]["spec"]["podFailurePolicy"];
            assert_eq!(
                !policy.is_null(),
                there && object["kind"] == "CronJob",
                "{components:?}"
            );
        }
    }
}

/// A run that would fail in the same way again ends its Job; one that a deadline or a lost connection ended is tried again.
#[test]
fn exit_codes_that_end_a_job_are_those_of_the_code() {
    let code = |status: ExitStatus| {
        let found = (0..=u8::MAX).find(|code| ExitCode::from(*code) == ExitCode::from(status));
        found.expect("a code")
    };
    let given_up = [ExitStatus::Settings, ExitStatus::Refused, ExitStatus::Permission].map(code);
    let objects = build("overlays/fixed", &["backup"]);
    let restore = documents(&top().join("components/backup/restore.yaml"));
    let mut seen = 0;
    for object in objects.iter().chain(&restore) {
        let job = match object["kind"].as_str() {
            Some("CronJob") => &object["spec"]["jobTemplate"]["spec"],
            Some("Job") => &object["spec"],
            _ => continue,
        };
        seen += 1;
        let containers = job["template"]["spec"]["containers"].as_array();
        let [container] = &containers.expect("containers")[..] else {
            panic!("one container: {object:#}");
        };
        let failed = json!({"containerName": container["name"], "operator": "In", "values": given_up});
        let rules = json!([
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": failed},
        ]);
        assert_eq!(
            job["podFailurePolicy"]["rules"], rules,
            "{}",
            object["metadata"]["name"]
        );
    }
    assert_eq!(seen, 3, "backup, verify and restore");
}

/// Who has one image with both has none that is called "podgres".
#[test]
fn with_one_image_jobs_still_wanted_the_other() {
    let objects = build("overlays/lease", &["tls", "backup", "one-image"]);
    for object in objects.iter().filter(|object| object["kind"] != "ConfigMap") {
        let text = object.to_string();
        assert!(!text.contains("\"image\":\"podgres\""), "{object:#}");
        assert!(
            !text.contains("/podgres/podgres") && !text.contains("\"/podgres\""),
            "{object:#}"
        );
    }
}

/// A run without what the servers log in by and are encrypted with was refused by them.
#[test]
fn backup_jobs_lacked_the_servers_settings_and_certificates() {
    // Whichever of the two is listed first.
    for components in [["tls", "backup"], ["backup", "tls"]] {
        let objects = build("overlays/lease", &components);
        let server = container(&objects, "postgres");
        let folder = &one(&objects, "ConfigMap", "pg-settings")["data"]["PODGRES_TLS_DIR"];
        assert_eq!(*folder, *default_of("tls-dir"));
        for verb in ["backup", "verify"] {
            let job = one(&objects, "CronJob", &format!("pg-{verb}"));
            let run = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0];
            assert_eq!(run["envFrom"], server["envFrom"], "{verb}");
            let mounts = |container: &Value| -> Vec<Value> {
                let mounts = container["volumeMounts"].as_array().expect("mounts");
                let shared = |mount: &&Value| mount["name"] == "secret" || mount["name"] == "tls";
                mounts.iter().filter(shared).cloned().collect()
            };
            let shared = mounts(server);
            let reads_servers = verb == "backup";
            assert_eq!(mounts(run), shared[..if reads_servers { 2 } else { 1 }], "{verb}");
            let names = ["POD_NAMESPACE", "POSTGRES_PASSWORD_FILE"];
            for name in names.iter().filter(|_| reads_servers) {
                let of = |container: &Value| {
                    let variables = container["env"].as_array().expect("variables");
                    variables
                        .iter()
                        .find(|variable| variable["name"] == **name)
                        .cloned()
                };
                assert_eq!(of(run), of(server), "{name}");
                assert!(of(run).is_some(), "{name}");
            }
        }
    }
}
