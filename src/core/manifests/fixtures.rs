//! Objects that work, and one mistake after the other in them.

use serde_json::{Value, json};

use super::{Finding, check};

const SETTINGS: [&str; 6] = [
    "PODGRES_SERVICE",
    "PODGRES_LEADERSHIP",
    "PODGRES_FIRST_ORDINAL",
    "PODGRES_STOP_TIMEOUT",
    "PODGRES_LABEL_POD",
    "PODGRES_EMIT_EVENTS",
];

fn container(name: &str, words: &[&str]) -> Value {
    json!({
        "name": name,
        "image": "postgres",
        "command": ([&["/podgres/podgres"], words].concat()),
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "env": [
            {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "PGDATA", "value": "/data/pgdata"},
            {"name": "POSTGRES_PASSWORD_FILE", "value": "/secret/password"},
        ],
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "run", "mountPath": "/run/podgres"},
            {"name": "secret", "mountPath": "/secret"},
        ],
    })
}

fn sidecar() -> Value {
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8008}});
    let mut sidecar = container("sidecar", &["sidecar"]);
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] = probe("/startup");
    sidecar["livenessProbe"] = probe("/liveness");
    sidecar["readinessProbe"] = probe("/readiness?lag=16MB");
    sidecar
}

/// StatefulSet, Service, ConfigMap, Role, RoleBinding: 0 to 4.
fn working() -> Vec<Value> {
    vec![
        json!({"kind": "StatefulSet", "metadata": {"name": "pg"}, "spec": {
            "serviceName": "pg",
            "podManagementPolicy": "Parallel",
            "template": {"metadata": {"labels": {"app": "pg", "more": "x"}}, "spec": {
                "terminationGracePeriodSeconds": 60,
                "serviceAccountName": "pg",
                "securityContext": {"runAsUser": 999, "fsGroup": 999},
                "initContainers": [container("bootstrap", &["init"]), sidecar()],
                "containers": [container("postgres", &["postgres"])],
                "volumes": [{"name": "run", "emptyDir": {}}, {"name": "secret", "secret": {"secretName": "pg"}}],
            }},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
        }}),
        json!({"kind": "Service", "metadata": {"name": "pg"}, "spec": {
            "clusterIP": "None", "publishNotReadyAddresses": true, "selector": {"app": "pg"},
        }}),
        json!({"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"PODGRES_LEADERSHIP": "lease"}}),
        json!({"kind": "Role", "metadata": {"name": "r"}, "rules": [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["pg"],
             "verbs": ["get", "list", "watch", "update"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        ]}),
        json!({"kind": "RoleBinding", "metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"},
               "subjects": [{"kind": "ServiceAccount", "name": "pg"}]}),
    ]
}

#[test]
fn objects_that_work_are_left_alone() {
    assert_eq!(check(&working(), &SETTINGS), []);
    let mut classic = working();
    let spec = &mut classic[0]["spec"]["template"]["spec"];
    let mut sidecar = spec["initContainers"]
        .as_array_mut()
        .and_then(Vec::pop)
        .expect("the sidecar");
    sidecar["restartPolicy"].take();
    spec["containers"].as_array_mut().expect("a list").push(sidecar);
    assert_eq!(check(&classic, &SETTINGS), []);
}

#[test]
fn each_mistake_is_named_and_nothing_else() {
    const POD: &str = "/spec/template/spec";
    let data = json!({"name": "data", "persistentVolumeClaim": {"claimName": "shared"}});
    let passfile = json!({"name": "PGPASSFILE", "value": "/secret/passfile"});
    let mistakes: [(usize, &str, Value, &str); 30] = [
        (0, "/spec/serviceName", Value::Null, "serviceName is not set"),
        (
            0,
            "/spec/serviceName",
            json!("other"),
            "\"other\" names no Service",
        ),
        (
            1,
            "/spec/clusterIP",
            Value::Null,
            "Service \"pg\" is not headless",
        ),
        (1, "/spec/selector/app", json!("web"), "does not select the pods"),
        (
            1,
            "/spec/publishNotReadyAddresses",
            Value::Null,
            "does not have publishNotReadyAddresses",
        ),
        (
            2,
            "/data/PODGRES_SERVICE",
            json!("members"),
            "looks for the members in Service \"members\"",
        ),
        (
            0,
            "/spec/ordinals",
            json!({"start": 1}),
            "spec.ordinals.start is 1, and PODGRES_FIRST_ORDINAL is 0",
        ),
        (
            2,
            "/data/PODGRES_LEADRESHIP",
            json!("x"),
            "\"PODGRES_LEADRESHIP\" is no setting",
        ),
        (
            0,
            "/terminationGracePeriodSeconds",
            json!(10),
            "terminationGracePeriodSeconds is 10",
        ),
        (
            0,
            "/terminationGracePeriodSeconds",
            json!(30),
            "may take 48 s to stop and to hand over",
        ),
        (
            2,
            "/data/PODGRES_STOP_TIMEOUT",
            json!("20s"),
            "may take 65 s to stop and to hand over",
        ),
        (
            0,
            "/securityContext/fsGroup",
            Value::Null,
            "the pod has no fsGroup",
        ),
        (
            2,
            "/data/PODGRES_LABEL_POD",
            json!("true"),
            "may not patch the pod \"pg-0\"",
        ),
        (
            2,
            "/data/PODGRES_EMIT_EVENTS",
            json!("true"),
            "may not create Events",
        ),
        (
            0,
            "/spec/podManagementPolicy",
            Value::Null,
            "podManagementPolicy is OrderedReady",
        ),
        (0, "/securityContext/runAsUser", json!(0), "runs as root"),
        (
            0,
            "/initContainers/1/restartPolicy",
            Value::Null,
            "without restartPolicy: Always",
        ),
        (
            0,
            "/initContainers/1/livenessProbe/httpGet/path",
            json!("/readiness"),
            "liveness probe of container \"sidecar\" asks /readiness",
        ),
        (
            0,
            "/containers/0/livenessProbe",
            json!({"exec": {"command": ["pg_isready"]}}),
            "asks \"pg_isready\"",
        ),
        (
            0,
            "/initContainers/1/startupProbe/httpGet/path",
            json!("/health"),
            "startup probe of the sidecar asks /health",
        ),
        (
            0,
            "/initContainers/1/readinessProbe",
            Value::Null,
            "no readiness probe",
        ),
        (
            0,
            "/containers/0/startupProbe",
            json!({"tcpSocket": {"port": 5432}}),
            "has a startup probe",
        ),
        (
            0,
            "/containers/0/command/1",
            json!("something"),
            "no container runs `podgres postgres`",
        ),
        (
            0,
            "/initContainers/1/volumeMounts/1",
            json!({}),
            "container \"sidecar\" does not mount \"/run/podgres\"",
        ),
        (0, "/automountServiceAccountToken", json!(false), "has no token"),
        (
            3,
            "/rules/0/verbs/2",
            json!("patch"),
            "may not watch the Lease \"pg\"",
        ),
        (
            3,
            "/rules/0/resourceNames/0",
            json!("other"),
            "may not get the Lease \"pg\"",
        ),
        (
            4,
            "/subjects/0/name",
            json!("default"),
            "may not create the Lease \"pg\"",
        ),
        (
            0,
            "/volumes/2",
            data,
            "all pods share one claim for their data, \"shared\"",
        ),
        (
            0,
            "/containers/0/env/3",
            passfile,
            "PGPASSFILE of container \"postgres\" is in a Secret",
        ),
    ];
    for (index, path, value, expected) in mistakes {
        let mut objects = working();
        let path = if index == 0 && !path.starts_with("/spec") {
            format!("{POD}{path}")
        } else {
            path.to_owned()
        };
        if path.ends_with("/volumes/2") {
            objects[0]["spec"]["volumeClaimTemplates"].take();
        }
        put(&mut objects[index], &path, value);
        let found = check(&objects, &SETTINGS);
        assert!(
            found.iter().any(|finding| finding.problem.contains(expected)),
            "{path}: {found:#?}"
        );
        let about: Vec<_> = found.iter().map(|finding| &finding.hint).collect();
        assert!(
            about.windows(2).all(|pair| pair[0] == pair[1]),
            "{path}: one mistake, {found:#?}"
        );
    }
}

#[test]
fn data_that_go_with_the_pod_are_named() {
    let mut objects = working();
    objects[0]["spec"]["volumeClaimTemplates"].take();
    put(
        &mut objects[0],
        "/spec/template/spec/volumes/2",
        json!({"name": "data", "emptyDir": {}}),
    );
    let found = check(&objects, &SETTINGS);
    assert!(
        found.iter().all(|finding| finding.problem.contains("emptyDir")) && !found.is_empty(),
        "{found:#?}"
    );
    let mut objects = working();
    for list in ["initContainers", "containers"] {
        put(
            &mut objects[0],
            &format!("/spec/template/spec/{list}/0/env/1/value"),
            json!("/data"),
        );
    }
    let found = check(&objects, &SETTINGS);
    assert!(
        found[0].problem.contains("is where the volume is mounted"),
        "{found:#?}"
    );
}

/// Objects without PGDATA, whose image and mount path are these.
fn as_the_image_has_it(image: &str, path: &str) -> Vec<Value> {
    let mut objects = working();
    for list in ["initContainers", "containers"] {
        let container = &mut objects[0]["spec"]["template"]["spec"][list][0];
        container["image"] = json!(image);
        container["env"][1] = json!({"name": "OTHER"});
        container["volumeMounts"][0]["mountPath"] = json!(path);
    }
    objects
}

#[test]
fn data_are_where_the_official_image_has_them() {
    let nothing = "";
    for (image, path, expected) in [
        ("postgres:18", "/var/lib/postgresql", nothing),
        (
            "mirror.example/library/postgres:18.1-alpine@sha256:00",
            "/var/lib/postgresql",
            nothing,
        ),
        ("postgres:18", "/var/lib/postgresql/data", "no volume is mounted"),
        (
            "postgres:18",
            "/var/lib/postgresql/18/docker",
            "is where the volume is mounted",
        ),
        (
            "postgres:17",
            "/var/lib/postgresql/data",
            "is where the volume is mounted",
        ),
        (
            "postgres:17",
            "/var/lib/postgresql",
            "is on the image's own volume",
        ),
        ("postgres:17", "/data", "no volume is mounted"),
        // The tag does not tell: wrong is what is wrong for either.
        ("postgres:latest", "/var/lib/postgresql", nothing),
        ("postgres", "/data", "no volume is mounted"),
        ("registry.example/ours:17", "/data", nothing),
    ] {
        let found = check(&as_the_image_has_it(image, path), &SETTINGS);
        let as_expected = |finding: &Finding| !expected.is_empty() && finding.problem.contains(expected);
        assert!(
            found.iter().all(as_expected) && found.is_empty() == expected.is_empty(),
            "{image} {path}: {found:#?}"
        );
    }
    let mut objects = as_the_image_has_it("postgres:18", "/var/lib/postgresql");
    objects[0]["spec"]["volumeClaimTemplates"].take();
    for (source, expected) in [
        (json!({"emptyDir": {}}), "emptyDir"),
        (
            json!({"persistentVolumeClaim": {"claimName": "one"}}),
            "all pods share one claim",
        ),
    ] {
        let mut source = source;
        source["name"] = json!("data");
        put(&mut objects[0], "/spec/template/spec/volumes/2", source);
        let found = check(&objects, &SETTINGS);
        assert!(
            !found.is_empty() && found.iter().all(|finding| finding.problem.contains(expected)),
            "{found:#?}"
        );
    }
}

#[test]
fn a_flag_counts_as_its_variable() {
    for arguments in [json!(["--leadership=lease"]), json!(["--leadership", "lease"])] {
        let mut objects = working();
        objects[2]["data"].take();
        objects.truncate(3);
        assert_eq!(check(&objects, &SETTINGS), [], "fixed by default");
        put(
            &mut objects[0],
            "/spec/template/spec/initContainers/1/args",
            arguments,
        );
        let found = check(&objects, &SETTINGS);
        assert!(
            found.len() == 5 && found[0].problem.contains("may not get the Lease"),
            "{found:#?}"
        );
    }
}

#[test]
fn probes_that_the_sidecar_alone_answers_are_left_alone() {
    const LIVENESS: &str = "/spec/template/spec/initContainers/1/livenessProbe";
    for probe in [
        json!({"tcpSocket": {"port": 8008}}),
        json!({"tcpSocket": {"port": "http"}}),
        json!({"httpGet": {"path": "/metrics", "port": "http"}}),
    ] {
        let mut objects = working();
        put(
            &mut objects[0],
            "/spec/template/spec/initContainers/1/ports",
            json!([{"name": "http", "containerPort": 8008}]),
        );
        put(&mut objects[0], LIVENESS, probe);
        assert_eq!(check(&objects, &SETTINGS), []);
    }
    let mut objects = working();
    put(&mut objects[0], LIVENESS, json!({"tcpSocket": {"port": 5432}}));
    assert_eq!(check(&objects, &SETTINGS).len(), 1);
}

#[test]
fn what_is_granted_in_all_namespaces_counts() {
    let everything = json!({"kind": "ClusterRole", "metadata": {"name": "all"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    let group = |kind: &str, name: &str| {
        json!({"kind": kind, "metadata": {"name": "b", "namespace": "shop"}, "roleRef": {"kind": "ClusterRole", "name": "all"},
               "subjects": [{"kind": "Group", "name": name}]})
    };
    for (binding, enough) in [
        (group("RoleBinding", "system:serviceaccounts:shop"), true),
        (group("ClusterRoleBinding", "system:serviceaccounts"), true),
        (group("ClusterRoleBinding", "system:serviceaccounts:other"), false),
    ] {
        let mut objects = working();
        objects.truncate(3);
        for object in &mut objects {
            object["metadata"]["namespace"] = json!("shop");
        }
        objects.push(binding);
        let wanted = super::cluster_roles(&objects);
        assert_eq!(wanted.contains("all"), enough);
        // A role that was not given may grant anything.
        assert_eq!(check(&objects, &SETTINGS).is_empty(), enough);
        objects.push(everything.clone());
        let found = check(&objects, &SETTINGS);
        assert_eq!(found.is_empty(), enough, "{found:#?}");
        assert!(
            found
                .iter()
                .all(|finding| finding.unless == Some("ClusterRoleBinding"))
        );
    }
}

#[test]
fn objects_of_others_are_not_judged() {
    let found = check(
        &[json!({"kind": "StatefulSet", "metadata": {"name": "web"}, "spec": {}})],
        &SETTINGS,
    );
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].problem, "no StatefulSet runs podgres");
}

/// Sets a value at a JSON pointer; its last part may be new.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    match object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("nothing at {parent}"))
    {
        Value::Array(list) => {
            let index: usize = key.parse().expect("an index");
            list.resize(list.len().max(index + 1), Value::Null);
            list[index] = value;
        }
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        other => panic!("{parent} is {other}"),
    }
}
