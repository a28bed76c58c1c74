//! What pods are allowed, and where they run.

use super::*;

/// What no fault would show at once where it were missing.
#[test]
fn pods_are_spread_and_volumes_kept_and_files_not_changed_at_each_start() {
    let objects = build("overlays/lease", &["tls", "backup"]);
    let set = &one(&objects, "StatefulSet", "pg")["spec"];
    let kept = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
    assert_eq!(set["persistentVolumeClaimRetentionPolicy"], kept);
    let pod = &set["template"]["spec"];
    let spread = pod["topologySpreadConstraints"].as_array().expect("constraints");
    let keys: Vec<&Value> = spread.iter().map(|rule| &rule["topologyKey"]).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    for rule in spread {
        assert_eq!(rule["labelSelector"], set["selector"]);
        assert_eq!(rule["whenUnsatisfiable"], "ScheduleAnyway", "one node is enough");
    }
    let volumes = pod["volumes"].as_array().expect("volumes");
    let volume = |name: &str| {
        volumes
            .iter()
            .find(|volume| volume["name"] == name)
            .expect("a volume")
    };
    for name in ["shm", "run", "sockets"] {
        assert_eq!(volume(name)["emptyDir"]["medium"], "Memory", "{name}");
    }
    for job in ["pg-backup", "pg-verify"] {
        let of_job = &one(&objects, "CronJob", job)["spec"]["jobTemplate"]["spec"]["template"]["spec"];
        assert_eq!(of_job["securityContext"], pod["securityContext"], "{job}");
    }
    assert_eq!(pod["securityContext"]["fsGroupChangePolicy"], "OnRootMismatch");
    let ports = &one(&objects, "Service", "pg")["spec"]["ports"];
    for (index, (name, flag)) in [("postgresql", "postgres-port"), ("http", "http-port")]
        .iter()
        .enumerate()
    {
        let port: u16 = default_of(flag).parse().expect("a number");
        assert_eq!(
            ports[index],
            json!({"name": name, "port": port, "targetPort": name})
        );
    }
}

#[test]
fn pods_are_restricted() {
    let names = COMPONENTS.iter().map(|(name, _)| *name);
    let every: Vec<&str> = names.filter(|name| *name != EITHER[0]).collect();
    let restore = documents(&top().join("components/backup/restore.yaml"));
    let mut seen = BTreeSet::new();
    for object in build(LEASE, &every)
        .into_iter()
        .chain(build("overlays/fixed", &[]))
        .chain(examples())
        .chain(restore)
    {
        let kind = object["kind"].as_str().expect("a kind");
        let pod = match kind {
            "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
            _ => &object["spec"]["template"]["spec"],
        };
        if pod.is_null() {
            continue;
        }
        seen.insert(kind.to_owned());
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{object}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in ["initContainers", "containers"]
            .into_iter()
            .flat_map(|key| pod[key].as_array().into_iter().flatten())
        {
            let restricted = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
            assert_eq!(
                container["securityContext"], restricted,
                "{kind} {}",
                container["name"]
            );
            // What runs for ever is bounded.
            let limited = !container["resources"]["limits"]["memory"].is_null();
            assert!(
                limited || !["StatefulSet", "Deployment"].contains(&kind),
                "{kind} {}",
                container["name"]
            );
        }
    }
    let kinds = ["CronJob", "Deployment", "Job", "StatefulSet"];
    assert_eq!(seen, kinds.map(str::to_owned).into());
}

/// From Kubernetes 1.23 on such a namespace makes no pod of theirs otherwise; a root file system that may be written to is let through.
#[test]
fn what_a_move_begins_with_was_refused_where_pods_must_be_restricted() {
    for example in ["from-one-server", "from-scripts"] {
        let objects = documents(&top().join("examples").join(example).join("before.yaml"));
        let pod = &one(&objects, "StatefulSet", "pg")["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        for container in ["initContainers", "containers"]
            .iter()
            .flat_map(|key| pod[*key].as_array().into_iter().flatten())
        {
            assert_eq!(
                container["securityContext"], restricted,
                "{example} {}",
                container["name"]
            );
        }
    }
}
