//! The Helm chart, rendered by Helm itself, against the objects of kustomize's overlays and components: the same, in every combination here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use podgres::core::manifests::check;
use serde_json::{Value, json};

use crate::kubectl::{Objects, assert_same};
use crate::kustomize::{build, settings, top};

/// An overlay with components, and the chart's values that say the same. "kube" is the version that Helm finds.
const SAME: [(&str, &[&str], &[&str]); 24] = [
    ("overlays/lease", &[], &[]),
    ("overlays/fixed", &[], &["leadership=fixed"]),
    (
        "overlays/fixed",
        &["parallel"],
        &["leadership=fixed", "parallel=true"],
    ),
    ("overlays/lease", &["parallel"], &["parallel=true"]),
    ("overlays/lease", &["tls"], &["tls.enabled=true"]),
    ("overlays/lease", &["role-label"], &["roleLabel.enabled=true"]),
    ("overlays/lease", &["endpoint-slices"], &["endpointSlices=true"]),
    ("overlays/lease", &["events"], &["events=true"]),
    ("overlays/lease", &["monitoring"], &["monitoring=true"]),
    ("overlays/lease", &["backup"], &["backup.enabled=true"]),
    (
        "overlays/fixed",
        &["tls", "backup"],
        &["leadership=fixed", "tls.enabled=true", "backup.enabled=true"],
    ),
    (
        "overlays/lease",
        &["backup", "backup-s3"],
        &["backup.enabled=true", BUCKET, REGION],
    ),
    (
        "overlays/fixed",
        &["backup", "backup-s3"],
        &["leadership=fixed", "backup.enabled=true", BUCKET, REGION],
    ),
    ("overlays/lease", &["alpine"], &["alpine=true"]),
    (
        "overlays/lease",
        &["backup", "alpine"],
        &["backup.enabled=true", "alpine=true"],
    ),
    (
        "overlays/lease",
        &["one-writer-volumes"],
        &["storage.oneWriter=true"],
    ),
    ("overlays/lease", &["one-image"], &["oneImage=true"]),
    (
        "overlays/fixed",
        &["tls", "one-image"],
        &["leadership=fixed", "tls.enabled=true", "oneImage=true"],
    ),
    ("overlays/lease", &["classic-sidecar"], &["kube=1.28.0"]),
    (
        "overlays/fixed",
        &["tls", "classic-sidecar"],
        &["leadership=fixed", "tls.enabled=true", "kube=1.28.0"],
    ),
    (
        "overlays/lease",
        &["backup", "classic-sidecar", "older-jobs"],
        &["backup.enabled=true", "kube=1.25.0"],
    ),
    (
        "overlays/lease",
        &["backup", "classic-sidecar", "older-jobs", "older-apis"],
        &["backup.enabled=true", "kube=1.20.0"],
    ),
    (
        "overlays/lease",
        &["backup", "backup-s3", "one-image"],
        &["backup.enabled=true", BUCKET, REGION, "oneImage=true"],
    ),
    (
        "overlays/lease",
        &[
            "parallel",
            "tls",
            "role-label",
            "events",
            "monitoring",
            "backup",
            "backup-s3",
            "one-writer-volumes",
        ],
        &[
            "parallel=true",
            "tls.enabled=true",
            "roleLabel.enabled=true",
            "events=true",
            "monitoring=true",
            "backup.enabled=true",
            BUCKET,
            REGION,
            "storage.oneWriter=true",
        ],
    ),
];

const BUCKET: &str = "backup.s3.destination=s3://my-bucket/pg";
const REGION: &str = "backup.s3.region=eu-central-1";
/// A Secret of the user's, as kustomize expects it.
const SECRET: &str = "existingSecret=pg";

/// Runs Helm on the chart; "kube" among the values is Kubernetes' version.
fn helm(verb: &[&str], values: &[&str]) -> Output {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target");
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/helm");
        let found = Command::new(tool)
            .arg(folder.join("helm"))
            .output()
            .expect("tests/tools/helm");
        let error = String::from_utf8_lossy(&found.stderr);
        assert!(found.status.success(), "Helm cannot be had: {error}");
        String::from_utf8(found.stdout)
            .expect("a path")
            .trim_end()
            .to_owned()
    });
    let home = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program);
    // No kubeconfig, no repositories, no plugins of whoever runs the tests.
    command.env_clear().env("HOME", home.path());
    command
        .args(verb)
        .arg(top().join("helm/podgres"))
        .args(["--namespace", "shop"]);
    for value in values {
        match value.strip_prefix("kube=") {
            Some(version) => command.args(["--kube-version", version]),
            None => command.args(["--set", value]),
        };
    }
    command.output().expect("Helm runs")
}

/// What the release "pg" would be.
fn rendered(values: &[&str]) -> Vec<Value> {
    released("pg", values)
}

fn released(name: &str, values: &[&str]) -> Vec<Value> {
    let output = helm(&["template", name], values);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{values:?}: {error}");
    let text = String::from_utf8(output.stdout).expect("text");
    serde_saphyr::from_multiple(&text).expect("YAML")
}

/// By kind and name, without what the chart alone has: a mark that a change of settings restarts members, and one on what outlives a release.
fn by_name(objects: Vec<Value>) -> Objects {
    let mut named = BTreeMap::new();
    for mut object in objects {
        if let Some(template) = object.pointer_mut("/spec/template/metadata/annotations") {
            template
                .as_object_mut()
                .expect("a map")
                .remove("checksum/settings");
        }
        if object["metadata"]["annotations"] == json!({"helm.sh/resource-policy": "keep"}) {
            object["metadata"]
                .as_object_mut()
                .expect("a map")
                .remove("annotations");
        }
        let text = |value: &Value| value.as_str().expect("a name").to_owned();
        let name = (text(&object["kind"]), text(&object["metadata"]["name"]));
        assert!(
            named.insert(name.clone(), object).is_none(),
            "{name:?} is there twice"
        );
    }
    named
}

/// As `images:` of a kustomization.yaml does it.
fn with_images(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str() {
                    Some("podgres") if key == "image" => *value = json!("podgres:0.1.0"),
                    Some("postgres") if key == "image" => *value = json!("postgres:17-bookworm"),
                    _ => with_images(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(with_images),
        _ => {}
    }
}

#[test]
fn the_chart_makes_the_objects_of_the_overlays_and_components() {
    for (overlay, components, values) in SAME {
        let mut expected = build(overlay, components);
        expected.iter_mut().for_each(with_images);
        let expected = by_name(expected);
        let found = by_name(rendered(&[values, &[SECRET]].concat()));
        assert_same(&format!("{overlay} {components:?}"), &found, &expected);
    }
}

/// Every key and text of an object.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| std::iter::once(key.as_str()).chain(texts(value)))
            .collect(),
        _ => Vec::new(),
    }
}

/// The overlays are of a cluster "pg", and the release may be called anything: with dashes, and a number that is no ordinal. No constant is called as it is.
#[test]
fn a_release_of_another_name_has_nothing_of_pg() {
    const RELEASE: &str = "a-1-orders";
    let settings = settings();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    for (overlay, components, values) in SAME {
        let values: Vec<&str> = values
            .iter()
            // The user's own text.
            .map(|value| match *value {
                BUCKET => "backup.s3.destination=s3://my-bucket/orders",
                other => other,
            })
            .collect();
        let objects = released(RELEASE, &values);
        assert_eq!(check(&objects, &settings), [], "{overlay} {components:?}");
        for object in &objects {
            let name = object["metadata"]["name"].as_str().expect("a name");
            assert!(name.starts_with(RELEASE), "{overlay} {components:?}: {name}");
            for text in texts(object) {
                // In URLs and paths, too.
                let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                let mut words = text.split(|c| !part(c));
                assert!(
                    words.all(|word| word != "pg" && !word.starts_with("pg-")),
                    "{overlay} {components:?}: {} \"{name}\" says \"{text}\"",
                    object["kind"]
                );
            }
        }
    }
}

#[test]
fn every_component_has_a_value() {
    let compared: BTreeSet<String> = SAME
        .iter()
        .flat_map(|(_, components, _)| *components)
        .map(|name| (*name).to_owned())
        .collect();
    let folders = std::fs::read_dir(top().join("components")).expect("the components");
    let there: BTreeSet<String> = folders
        .map(|entry| {
            entry
                .expect("a folder")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(compared, there);
}

#[test]
fn no_password_is_in_the_chart() {
    let password = || {
        let objects = by_name(rendered(&[]));
        let secret = objects
            .get(&("Secret".to_owned(), "pg".to_owned()))
            .expect("the Secret")
            .clone();
        secret["data"]["password"]
            .as_str()
            .expect("a password")
            .to_owned()
    };
    let (one, other) = (password(), password());
    // 32 letters in base64.
    assert_eq!(one.len(), 44, "{one}");
    assert_ne!(one, other);
    let kinds = |values: &[&str]| {
        by_name(rendered(values))
            .into_keys()
            .map(|(kind, _)| kind)
            .collect::<BTreeSet<_>>()
    };
    assert!(
        !kinds(&[SECRET]).contains("Secret"),
        "one of the user's own is enough"
    );
}

#[test]
fn nonsense_is_refused_and_named() {
    for (value, told) in [
        ("leadership=both", "leadership"),
        ("replicas=0", "replicas"),
        ("replica=3", "replica"),
        ("leadership=fixed,events=true", "events"),
        ("leadership=fixed,endpointSlices=true", "endpointSlices"),
        ("leadership=fixed,roleLabel.enabled=true", "roleLabel"),
        (
            "terminationGracePeriodSeconds=10",
            "terminationGracePeriodSeconds",
        ),
        ("settings.PGDATA=/x", "PGDATA"),
        ("settings.PODGRES_LEADERSHIP=fixed", "PODGRES_LEADERSHIP"),
        ("settings.PODGRES_TLS_DIR=/x", "PODGRES_TLS_DIR"),
        ("configuration.server=x", "configuration"),
        ("backup.s3.destination=my-bucket", "destination"),
    ] {
        let output = helm(&["template", "pg"], &[value]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains(told),
            "{value}: {error}"
        );
    }
    for release in ["pg.one", &"p".repeat(46)] {
        let output = helm(&["template", release], &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains("release name"),
            "{release}: {error}"
        );
    }
}

#[test]
fn helm_has_nothing_to_complain_about() {
    let output = helm(&["lint", "--strict"], &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// Where a value that kustomize has no component for goes.
#[test]
fn values_arrive_where_they_are_meant() {
    let objects = by_name(rendered(&[
        "settings.PODGRES_MAX_LAG=1MB",
        "storage.storageClassName=fast",
        "storage.size=1Ti",
        "imagePullSecrets[0].name=registry",
        "nodeSelector.disk=ssd",
        "tolerations[0].key=databases",
        "affinity.nodeAffinity.x=y",
        "podAnnotations.a=b",
        "podLabels.team=orders",
        "priorityClassName=databases",
        "terminationGracePeriodSeconds=600",
        "serviceAccountAnnotations.role=backups",
        "replicas=5",
        "roleLabel.enabled=true",
        "roleLabel.members=7",
        "backup.enabled=true",
        BUCKET,
        "backup.s3.endpoint=http://minio:9000",
    ]));
    let object = |kind: &str, name: &str| &objects[&(kind.to_owned(), name.to_owned())];
    let pod = "/spec/template/spec";
    for (kind, name, path, wanted) in [
        (
            "ConfigMap",
            "pg-settings",
            "/data/PODGRES_MAX_LAG".to_owned(),
            json!("1MB"),
        ),
        ("StatefulSet", "pg", "/spec/replicas".to_owned(), json!(5)),
        (
            "StatefulSet",
            "pg",
            "/spec/volumeClaimTemplates/0/spec/storageClassName".to_owned(),
            json!("fast"),
        ),
        (
            "StatefulSet",
            "pg",
            "/spec/volumeClaimTemplates/0/spec/resources/requests/storage".to_owned(),
            json!("1Ti"),
        ),
        (
            "StatefulSet",
            "pg",
            format!("{pod}/imagePullSecrets/0/name"),
            json!("registry"),
        ),
        (
            "StatefulSet",
            "pg",
            format!("{pod}/nodeSelector/disk"),
            json!("ssd"),
        ),
        (
            "StatefulSet",
            "pg",
            format!("{pod}/tolerations/0/key"),
            json!("databases"),
        ),
        (
            "StatefulSet",
            "pg",
            format!("{pod}/affinity/nodeAffinity/x"),
            json!("y"),
        ),
        (
            "StatefulSet",
            "pg",
            "/spec/template/metadata/annotations/a".to_owned(),
            json!("b"),
        ),
        (
            "StatefulSet",
            "pg",
            "/spec/template/metadata/labels/team".to_owned(),
            json!("orders"),
        ),
        (
            "StatefulSet",
            "pg",
            format!("{pod}/priorityClassName"),
            json!("databases"),
        ),
        (
            "StatefulSet",
            "pg",
            format!("{pod}/terminationGracePeriodSeconds"),
            json!(600),
        ),
        (
            "ServiceAccount",
            "pg",
            "/metadata/annotations/role".to_owned(),
            json!("backups"),
        ),
        ("Role", "pg", "/rules/2/resourceNames/6".to_owned(), json!("pg-6")),
        (
            "ConfigMap",
            "pg-settings",
            "/data/AWS_ENDPOINT_URL".to_owned(),
            json!("http://minio:9000"),
        ),
        (
            "NetworkPolicy",
            "pg",
            "/spec/egress/3/ports/0/port".to_owned(),
            json!(9000),
        ),
    ] {
        assert_eq!(
            object(kind, name).pointer(&path),
            Some(&wanted),
            "{kind} {name} {path}"
        );
    }
}

#[test]
fn changed_settings_start_the_members_anew() {
    let mark = |values: &[&str]| {
        let objects = rendered(values);
        let set = objects
            .iter()
            .find(|object| object["kind"] == "StatefulSet")
            .expect("the StatefulSet");
        set["spec"]["template"]["metadata"]["annotations"]["checksum/settings"].clone()
    };
    assert_ne!(mark(&[]), Value::Null);
    assert_eq!(mark(&[]), mark(&["replicas=5"]));
    assert_ne!(mark(&[]), mark(&["settings.PODGRES_MAX_LAG=1MB"]));
}
