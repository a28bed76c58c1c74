//! The manifests in `k8s/` against the code and against Kubernetes' schema: ports, paths, keys, verbs, and no field that the API does not know.

use std::collections::BTreeSet;

use clap::CommandFactory as _;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use podgres::cmd::CommandLine;
use podgres::core::cluster::check::CHECK_PATHS;
use podgres::core::manifests::{
    DEFAULT_STOP_TIMEOUT_SECONDS, LEASE_GROUP, LEASE_VERBS, SLICE_GROUP, SLICE_VERBS, check,
};
use podgres::core::routing::slice::slice_name;
use podgres::kube::PREFIX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kustomize::{build, documents, top};
use crate::source::files_below;

/// All components, in an order that fits all, and what each needs: another one, or the Lease.
const COMPONENTS: [(&str, &str); 14] = [
    ("parallel", ""),
    ("tls", ""),
    ("role-label", LEASE),
    ("endpoint-slices", LEASE),
    ("events", LEASE),
    ("monitoring", ""),
    ("backup", ""),
    ("backup-s3", "backup"),
    ("alpine", ""),
    ("one-writer-volumes", ""),
    ("one-image", ""),
    ("classic-sidecar", ""),
    ("older-jobs", ""),
    ("older-apis", "classic-sidecar"),
];
const LEASE: &str = "overlays/lease";

/// Whose patches expect the sidecar at different places.
const EITHER: [&str; 2] = ["one-image", "classic-sidecar"];

/// Each overlay with each pair of components that fit, and with what these need.
fn combinations() -> BTreeSet<(&'static str, Vec<&'static str>)> {
    let mut combinations = BTreeSet::new();
    for overlay in [LEASE, "overlays/fixed"] {
        let fits = |(_, needs): &&(&str, &str)| *needs != LEASE || overlay == LEASE;
        for one in COMPONENTS.iter().filter(fits) {
            for other in COMPONENTS.iter().filter(fits) {
                let wanted = [one.0, one.1, other.0, other.1];
                let names = COMPONENTS.iter().map(|(name, _)| *name);
                let both = EITHER.iter().all(|name| wanted.contains(name));
                if !both {
                    combinations.insert((overlay, names.filter(|name| wanted.contains(name)).collect()));
                }
            }
        }
        combinations.insert((overlay, Vec::new()));
    }
    combinations
}

#[test]
fn every_component_is_among_the_combinations() {
    let folders = std::fs::read_dir(top().join("components")).expect("the components");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("a folder").file_name();
    let there: BTreeSet<String> = folders
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    assert_eq!(there, COMPONENTS.map(|(name, _)| name.to_owned()).into());
}

#[test]
fn no_object_has_a_field_that_the_api_does_not_know() {
    for (overlay, components) in combinations() {
        // The schema is that of today.
        if !components.contains(&"older-apis") {
            build(overlay, &components).iter().for_each(round_trip);
        }
    }
    for object in examples() {
        round_trip(&object);
    }
    for file in ["backup.yaml", "verify.yaml", "volume.yaml", "restore.yaml"] {
        for object in documents(&top().join("components/backup").join(file)) {
            round_trip(&object);
        }
    }
}

fn round_trip(object: &Value) {
    fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        let read: T =
            serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{object:#}: {error}"));
        serde_json::to_value(read).expect("JSON")
    }
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let read = match (text("apiVersion"), text("kind")) {
        ("v1", "Service") => typed::<Service>(object),
        ("discovery.k8s.io/v1", "EndpointSlice") => typed::<EndpointSlice>(object),
        ("v1", "PersistentVolumeClaim") => typed::<PersistentVolumeClaim>(object),
        ("batch/v1", "CronJob") => typed::<CronJob>(object),
        ("batch/v1", "Job") => typed::<Job>(object),
        ("v1", "ConfigMap") => typed::<ConfigMap>(object),
        ("v1", "ServiceAccount") => typed::<ServiceAccount>(object),
        ("apps/v1", "StatefulSet") => typed::<StatefulSet>(object),
        ("apps/v1", "Deployment") => typed::<Deployment>(object),
        ("policy/v1", "PodDisruptionBudget") => typed::<PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => typed::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => typed::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => typed::<RoleBinding>(object),
        // No Secret: no password is committed. Nothing beyond a namespace: nobody needs to be an administrator.
        other => panic!("{other:?} is not expected in k8s/"),
    };
    assert_kept(object, &read, text("kind"));
}

/// Whatever was written is still there after reading.
fn assert_kept(written: &Value, read: &Value, place: &str) {
    match (written, read) {
        (Value::Object(map), _) => {
            for (key, value) in map {
                assert_kept(value, &read[key.as_str()], &format!("{place}.{key}"));
            }
        }
        (Value::Array(list), _) => {
            for (index, value) in list.iter().enumerate() {
                assert_kept(value, &read[index], &format!("{place}[{index}]"));
            }
        }
        _ => assert_eq!(written, read, "the API does not know {place}"),
    }
}

#[test]
fn podgres_check_finds_nothing() {
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    for (overlay, components) in combinations() {
        let found = check(&build(overlay, &components), &settings);
        assert_eq!(found, [], "{overlay} {components:?}");
    }
}

/// Every variable that a flag of any verb has.
fn settings() -> Vec<String> {
    let command = CommandLine::command();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    arguments
        .filter_map(|argument| argument.get_env())
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// The default of a flag of `podgres sidecar`.
fn default_of(flag: &str) -> String {
    let command = CommandLine::command();
    let sidecar = command.find_subcommand("sidecar").expect("the verb");
    let argument = sidecar
        .get_arguments()
        .find(|a| a.get_long() == Some(flag))
        .expect(flag);
    argument.get_default_values()[0].to_string_lossy().into_owned()
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} \"{name}\""))
}

/// Init containers and containers of the StatefulSet.
fn containers(objects: &[Value]) -> Vec<&Value> {
    let spec = &one(objects, "StatefulSet", "pg")["spec"]["template"]["spec"];
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|key| spec[key].as_array().expect("a list"))
        .collect()
}

fn container<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    containers(objects)
        .into_iter()
        .find(|container| container["name"] == name)
        .expect(name)
}

#[test]
fn ports_are_the_defaults_of_the_flags() {
    let objects = build("overlays/lease", &["role-label", "monitoring"]);
    let mut known = BTreeSet::from([53, 443, 6443]);
    for (holder, name, flag) in [
        ("postgres", "postgresql", "postgres-port"),
        ("sidecar", "read-write", "read-write-port"),
        ("sidecar", "read-only", "read-only-port"),
        ("sidecar", "http", "http-port"),
    ] {
        let number: u16 = default_of(flag).parse().expect("a number");
        let ports = container(&objects, holder)["ports"].as_array().expect("ports");
        assert!(
            ports.contains(&json!({"name": name, "containerPort": number})),
            "{name}"
        );
        known.insert(number);
    }
    let policy = &one(&objects, "NetworkPolicy", "pg")["spec"];
    for rule in ["ingress", "egress"]
        .into_iter()
        .flat_map(|key| policy[key].as_array().expect("rules"))
    {
        for port in rule["ports"].as_array().expect("ports") {
            let number = port["port"]
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())
                .expect("a number");
            assert!(known.contains(&number), "{number} is no port of podgres");
        }
    }
    for (service, target) in [
        ("pg-rw", "read-write"),
        ("pg-ro", "read-only"),
        ("pg-primary", "postgresql"),
    ] {
        assert_eq!(
            one(&objects, "Service", service)["spec"]["ports"][0]["targetPort"],
            target
        );
    }
}

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

/// `podgres route` beside an application asks members for their state, and leads to PostgreSQL itself.
#[test]
fn a_route_beside_an_application_was_kept_from_the_members() {
    let objects = build("overlays/lease", &[]);
    let rules = one(&objects, "NetworkPolicy", "pg")["spec"]["ingress"]
        .as_array()
        .expect("rules");
    let pods = json!({"matchLabels": {format!("{PREFIX}route"): "pg"}});
    let rule = rules
        .iter()
        .find(|rule| rule["from"][0] == json!({"podSelector": pods}));
    let rule = rule.expect("a rule for routes");
    assert_eq!(rule["from"][1]["podSelector"], pods, "in other namespaces too");
    assert_eq!(
        rule["from"][1]["namespaceSelector"],
        rules[1]["from"][1]["namespaceSelector"]
    );
    let ports = ["postgres-port", "http-port"].map(|flag| {
        let port: u16 = default_of(flag).parse().expect("a number");
        json!({"protocol": "TCP", "port": port})
    });
    assert_eq!(rule["ports"], json!(ports));
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

#[test]
fn folders_are_where_the_code_looks() {
    let objects = build("overlays/lease", &["tls"]);
    for name in ["bootstrap", "sidecar", "postgres"] {
        let mounts = container(&objects, name)["volumeMounts"]
            .as_array()
            .expect("mounts");
        let paths: Vec<&str> = mounts
            .iter()
            .filter_map(|mount| mount["mountPath"].as_str())
            .collect();
        for flag in ["run-dir", "tls-dir"] {
            assert!(
                paths.contains(&default_of(flag).as_str()),
                "{name}: {flag} in {paths:?}"
            );
        }
        let configuration = paths.contains(&default_of("configuration-dir").as_str());
        assert_eq!(configuration, name != "sidecar", "{name}: {paths:?}");
    }
}

#[test]
fn probes_ask_paths_that_exist() {
    let objects = build("overlays/lease", &[]);
    for (probe, wanted) in [
        ("startupProbe", "/startup"),
        ("livenessProbe", "/liveness"),
        ("readinessProbe", "/readiness"),
    ] {
        assert_eq!(container(&objects, "sidecar")[probe]["httpGet"]["path"], wanted);
        assert!(CHECK_PATHS.iter().any(|(known, _)| *known == wanted), "{wanted}");
        assert_eq!(
            container(&objects, "postgres")[probe],
            Value::Null,
            "PostgreSQL may take its time"
        );
    }
}

/// By which `podgres check` judges the time that pods have to stop.
#[test]
fn the_stop_timeout_that_is_reckoned_with_is_the_flags_default() {
    assert_eq!(
        default_of("stop-timeout"),
        format!("{DEFAULT_STOP_TIMEOUT_SECONDS}s")
    );
}

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
fn the_role_grants_what_the_code_asks_for_and_nothing_else() {
    let objects = build("overlays/lease", &[]);
    let rules = one(&objects, "Role", "pg")["rules"]
        .as_array()
        .expect("rules")
        .clone();
    let mut granted = BTreeSet::new();
    for rule in &rules {
        assert_eq!(
            (&rule["apiGroups"], &rule["resources"]),
            (&json!([LEASE_GROUP]), &json!(["leases"]))
        );
        let verbs: Vec<&str> = rule["verbs"]
            .as_array()
            .expect("verbs")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        // RBAC cannot bind the creation of an object to its name.
        assert_eq!(
            rule["resourceNames"] == json!(["pg"]),
            verbs != ["create"],
            "{rule}"
        );
        granted.extend(verbs.into_iter().map(str::to_owned));
    }
    assert_eq!(granted, LEASE_VERBS.map(str::to_owned).into());
    assert_eq!(granted, verbs_in_the_code());
}

/// The verbs of the API by which the code asks for the Lease.
fn verbs_in_the_code() -> BTreeSet<String> {
    let all = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
    ];
    let files = files_below("src/kube");
    let text = &files
        .iter()
        .find(|file| file.path.ends_with("lease_api.rs"))
        .expect("the file")
        .text;
    let asked = |verb: &&str| {
        ["ask", "answer", "no_answer"].iter().any(|call| {
            text.contains(&format!("self.{call}(\"{verb}\""))
                || text.contains(&format!("self.{call}(\n                \"{verb}\""))
        })
    };
    let watched = text.contains("no_answer(\"watch\"").then_some("watch");
    all.iter()
        .filter(|verb| asked(verb))
        .copied()
        .chain(watched)
        .map(str::to_owned)
        .collect()
}

/// Each endpoint that every pod has, with its slice and its Service, and the rights on these and nothing more.
#[test]
fn the_slices_are_those_that_the_code_keeps() {
    let objects = build("overlays/lease", &["endpoint-slices"]);
    let names = ["read_write", "read_only"].map(|endpoint| slice_name("pg", endpoint));
    for name in &names {
        let slice = one(&objects, "EndpointSlice", name);
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], **name);
        assert!(
            slice["endpoints"].is_null(),
            "applied again they would be taken away"
        );
        let (service, number) = (one(&objects, "Service", name), &json!(5432));
        assert!(
            service["spec"]["selector"].is_null(),
            "nobody else is to write the slice"
        );
        let (of_slice, of_service) = (&slice["ports"][0], &service["spec"]["ports"][0]);
        assert_eq!(
            (&of_slice["name"], &of_slice["port"]),
            (&of_service["name"], number)
        );
        assert_eq!(default_of("postgres-port"), number.to_string());
    }
    let rules = one(&objects, "Role", "pg")["rules"].as_array().expect("rules");
    let mut of_slices = rules
        .iter()
        .filter(|rule| rule["apiGroups"] == json!([SLICE_GROUP]));
    let rule = of_slices.next().expect("a rule");
    assert_eq!(rule["resources"], json!(["endpointslices"]));
    assert_eq!(rule["resourceNames"], json!(names));
    assert_eq!(rule["verbs"], json!(SLICE_VERBS));
    assert!(of_slices.next().is_none());
    let files = files_below("src/kube");
    let adapter = files.iter().find(|file| file.path.ends_with("kube/slice.rs"));
    let text = &adapter.expect("the file").text;
    for verb in ["get", "list", "watch", "create", "update", "patch", "delete"] {
        let asked = text.contains(&format!("self.ask(\"{verb}\""));
        assert_eq!(asked, SLICE_VERBS.contains(&verb), "{verb}");
    }
}

/// A route in a pod of its own, as `k8s/examples/route` has it.
mod route_example {
    use super::*;

    /// Where its probes are, which `podgres route` serves nowhere unless it is told to.
    const PATHS: [(&str, &str); 2] = [("livenessProbe", "/liveness"), ("readinessProbe", "/readiness")];

    fn deployed() -> Vec<Value> {
        documents(&top().join("examples/route/route.yaml"))
    }

    /// The container of the page's section about a pod of an application.
    fn beside() -> Value {
        let text = std::fs::read_to_string(top().join("examples/route/README.md")).expect("the page");
        let block = text
            .split("```yaml\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next());
        let shown: Value = serde_saphyr::from_str(block.expect("a block")).expect("YAML");
        shown["initContainers"][0].clone()
    }

    fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
        let mut variables = container["env"].as_array().expect("variables").iter();
        let found = variables.find(|variable| variable["name"] == name)?;
        Some(found["value"].as_str().unwrap_or("from the pod"))
    }

    fn assert_runs(container: &Value) {
        assert_eq!(container["args"], json!(["route"]));
        assert_eq!(variable(container, "PODGRES_CLUSTER"), Some("pg"));
        let command = CommandLine::command();
        let route = command.find_subcommand("route").expect("the verb");
        let known: Vec<String> = route
            .get_arguments()
            .filter_map(clap::Arg::get_env)
            .map(|name| name.to_string_lossy().into_owned())
            .chain(["PODGRES_REPLICATION_PASSWORD_FILE".to_owned()])
            .collect();
        for variable in container["env"].as_array().expect("variables") {
            let name = variable["name"].as_str().expect("a name");
            assert!(
                known.iter().any(|known| known == name),
                "{name} is no variable of podgres route"
            );
        }
        let status = variable(container, "PODGRES_STATUS_ADDRESS").expect("an address");
        let ports = container["ports"].as_array().expect("ports");
        let status = status
            .rsplit(':')
            .next()
            .and_then(|port| port.parse::<u64>().ok());
        let probed = ports.iter().find(|port| port["containerPort"].as_u64() == status);
        let name = &probed.expect("the status port")["name"];
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            if let Some(probe) = container[probe].as_object() {
                assert_eq!(&probe["httpGet"]["port"], name);
                let served = PATHS.iter().any(|(_, path)| probe["httpGet"]["path"] == *path);
                assert!(served, "{probe:?}");
            }
        }
    }

    #[test]
    fn it_runs_as_the_verb_is_called_and_is_probed_where_it_answers() {
        let objects = deployed();
        let pod = &one(&objects, "Deployment", "pg-route")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_runs(container);
        for (probe, path) in PATHS {
            assert_eq!(container[probe]["httpGet"]["path"], path);
        }
        for (name, flag, service) in [
            ("read-write", "read-write-port", "pg-route-rw"),
            ("read-only", "read-only-port", "pg-route-ro"),
        ] {
            let number: u16 = default_of(flag).parse().expect("a number");
            let ports = container["ports"].as_array().expect("ports");
            assert!(
                ports.contains(&json!({"name": name, "containerPort": number})),
                "{name}"
            );
            let spec = &one(&objects, "Service", service)["spec"];
            assert_eq!(spec["ports"][0]["targetPort"], name);
        }
        // On every address of the pod, not the default of `podgres route`, which is for the pod alone.
        assert_eq!(
            variable(container, "PODGRES_LISTEN_ADDRESS"),
            Some("from the pod")
        );
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert!(!pod.to_string().contains("serviceAccountToken"), "{pod}");
        let beside = beside();
        assert_runs(&beside);
        assert_eq!(beside["restartPolicy"], "Always");
        assert_eq!(beside["startupProbe"]["httpGet"]["path"], "/readiness");
        round_trip(&json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "spec": {"selector": {}, "template": {"spec": {"containers": [], "initContainers": [beside]}}},
        }));
    }

    /// The members' policy lets its pods through by their label, to what they need, and takes none of them for a member.
    #[test]
    fn it_reaches_the_members_and_is_none() {
        let members = build("overlays/lease", &[]);
        let objects = deployed();
        let labels = &one(&objects, "Deployment", "pg-route")["spec"]["template"]["metadata"]["labels"];
        let policy = &one(&members, "NetworkPolicy", "pg")["spec"];
        let fits = |selector: &Value| {
            let wanted = selector["matchLabels"].as_object().expect("labels");
            wanted.iter().all(|(key, value)| labels[key] == *value)
        };
        let rules = policy["ingress"].as_array().expect("rules").iter();
        let ours = rules.filter(|rule| fits_any(rule, &fits));
        let ports: BTreeSet<u64> = ours
            .flat_map(|rule| rule["ports"].as_array().expect("ports"))
            .filter_map(|port| port["port"].as_u64())
            .collect();
        let needed = ["postgres-port", "http-port"].map(|flag| default_of(flag).parse().expect("a number"));
        assert!(needed.iter().all(|port| ports.contains(port)), "{ports:?}");
        assert!(!fits(&policy["podSelector"]), "the policy is the members'");
        for service in ["pg", "pg-rw", "pg-ro"] {
            let selector = &one(&members, "Service", service)["spec"]["selector"];
            assert!(!fits(&json!({"matchLabels": selector})), "{service} leads to it");
        }
        let of_own = &one(&objects, "PodDisruptionBudget", "pg-route")["spec"]["selector"];
        assert!(fits(of_own), "its own budget");
        let settings = settings();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let all: Vec<Value> = members.into_iter().chain(objects).collect();
        assert_eq!(check(&all, &settings), []);
    }

    /// A rule for pods of its own namespace that have some label, not for all.
    fn fits_any(rule: &Value, fits: &impl Fn(&Value) -> bool) -> bool {
        let from = rule["from"].as_array().expect("from");
        from.iter().any(|peer| {
            let selector = &peer["podSelector"];
            peer["namespaceSelector"].is_null() && !selector["matchLabels"].is_null() && fits(selector)
        })
    }
}

#[test]
fn what_the_slices_lack_is_named() {
    let whole = build("overlays/lease", &["endpoint-slices"]);
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let without = |kind: &str, place: &str, value: Value| {
        let mut objects = whole.clone();
        let named = |object: &&mut Value| object["kind"] == kind && object["metadata"]["name"] != "pg-ro";
        let mut found = objects.iter_mut().filter(named);
        let object = found.find(|object| !object.pointer(place).is_none_or(Value::is_null));
        *object.expect(kind).pointer_mut(place).expect(place) = value;
        let found = check(&objects, &settings)
            .into_iter()
            .map(|finding| finding.problem);
        found.collect::<Vec<_>>()
    };
    let denied = without("Role", "/rules/2/verbs", json!(["get"]));
    assert_eq!(
        denied,
        ["read-write", "read-only"].map(|name| format!(
            "service account \"pg\" may not patch the EndpointSlice \"pg-direct-{name}\""
        ))
    );
    let alone: Vec<Value> = whole
        .iter()
        .filter(|object| object["kind"] != "Service" || object["metadata"]["name"] != "pg-direct-read-only")
        .cloned()
        .collect();
    let found = check(&alone, &settings);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0]
            .problem
            .contains("there is no Service \"pg-direct-read-only\"")
    );
}

#[test]
fn with_fixed_leadership_there_is_no_right_and_no_token() {
    let objects = build("overlays/fixed", &[]);
    let kinds: BTreeSet<&str> = objects
        .iter()
        .filter_map(|object| object["kind"].as_str())
        .collect();
    let expected = [
        "ConfigMap",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "StatefulSet",
    ];
    assert_eq!(kinds, expected.into());
    let spec = &one(&objects, "StatefulSet", "pg")["spec"]["template"]["spec"];
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert!(!spec.to_string().contains("serviceAccount"), "{spec}");
}

#[test]
fn the_token_is_not_in_the_container_where_sql_runs() {
    let objects = build("overlays/lease", &[]);
    for (name, mounted) in [
        ("bootstrap", true),
        ("sidecar", true),
        ("postgres", false),
        ("install", false),
    ] {
        let mounts = container(&objects, name)["volumeMounts"].to_string();
        assert_eq!(mounts.contains("kubernetes.io/serviceaccount"), mounted, "{name}");
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

/// The kustomization.yaml that k8s/README.md shows names what is there; tests/kubernetes applies it.
#[test]
fn the_readmes_kustomization_names_what_there_is() {
    let text = std::fs::read_to_string(top().join("README.md")).expect("the page");
    let block = text
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let shown: Value = serde_saphyr::from_str(block.expect("a block")).expect("YAML");
    let folder = shown["resources"][0]
        .as_str()
        .and_then(|path| path.strip_prefix("../podgres/k8s/"));
    let objects = build(folder.expect("a folder of ours"), &[]);
    let used: BTreeSet<&str> = containers(&objects)
        .into_iter()
        .filter_map(|container| container["image"].as_str())
        .collect();
    let images = shown["images"].as_array().expect("images");
    let named: BTreeSet<&str> = images.iter().filter_map(|image| image["name"].as_str()).collect();
    assert_eq!(used, named);
    for path in text.split("../podgres/").skip(1) {
        let path = path.split([' ', ']', '`']).next().expect("a path");
        assert!(top().join("..").join(path).is_dir(), "{path}");
    }
}

#[test]
fn the_label_of_the_role_is_the_one_that_the_code_sets() {
    let objects = build("overlays/lease", &["role-label"]);
    let selector = &one(&objects, "Service", "pg-primary")["spec"]["selector"];
    assert_eq!(selector[format!("{PREFIX}role")], "primary");
    assert_eq!(
        one(&objects, "ConfigMap", "pg-settings")["data"]["PODGRES_LABEL_POD"],
        "true"
    );
}

/// The objects of the examples.
fn examples() -> Vec<Value> {
    let folders = std::fs::read_dir(top().join("examples")).expect("the examples");
    let mut objects = Vec::new();
    for folder in folders
        .map(|entry| entry.expect("a folder").path())
        .filter(|path| path.is_dir() && !path.ends_with("apps"))
    {
        let files = std::fs::read_dir(folder).expect("a folder");
        let files = files.map(|entry| entry.expect("a file").path());
        for file in files.filter(|path| {
            path.extension().is_some_and(|end| end == "yaml")
                && !path.ends_with("kustomization.yaml")
                && !path.ends_with("before.yaml")
        }) {
            objects.extend(documents(&file));
        }
    }
    assert!(objects.len() >= 6, "three examples with two objects each");
    objects
}
