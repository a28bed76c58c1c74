//! Objects that work, and one mistake after the other in them.

use serde_json::{Value, json};

use super::check;

pub(super) const SETTINGS: [&str; 7] = [
    "PODGRES_SERVICE",
    "PODGRES_LEADERSHIP",
    "PODGRES_FIRST_ORDINAL",
    "PODGRES_STOP_TIMEOUT",
    "PODGRES_LABEL_POD",
    "PODGRES_EMIT_EVENTS",
    "PODGRES_TLS_DIR",
];

fn container(name: &str, words: &[&str]) -> Value {
    json!({
        "name": name,
        "image": "postgres",
        "ports": [{"name": name, "containerPort": 5432}],
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

/// StatefulSet, Service, ConfigMap, Role, RoleBinding, PodDisruptionBudget: 0 to 5.
pub(super) fn working() -> Vec<Value> {
    vec![
        json!({"kind": "StatefulSet", "metadata": {"name": "pg"}, "spec": {
            "serviceName": "pg",
            "replicas": 3,
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
            "ports": [{"port": 5432, "targetPort": "postgres"}, {"port": 8008, "targetPort": 8008}],
        }}),
        json!({"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"PODGRES_LEADERSHIP": "lease"}}),
        json!({"kind": "Role", "metadata": {"name": "r"}, "rules": [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["pg"],
             "verbs": ["get", "list", "watch", "update"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        ]}),
        json!({"kind": "RoleBinding", "metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"},
               "subjects": [{"kind": "ServiceAccount", "name": "pg"}]}),
        json!({"kind": "PodDisruptionBudget", "metadata": {"name": "pg"}, "spec": {
            "maxUnavailable": 1, "selector": {"matchLabels": {"app": "pg"}},
        }}),
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
    let mistakes: [(usize, &str, Value, &str); 38] = [
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
            1,
            "/spec/ports/0/targetPort",
            json!("pg"),
            "leads to port \"pg\", and no container has a port of that name",
        ),
        (
            0,
            "/spec/persistentVolumeClaimRetentionPolicy",
            json!({"whenScaled": "Delete"}),
            "whenScaled is Delete",
        ),
        (
            0,
            "/spec/persistentVolumeClaimRetentionPolicy",
            json!({"whenDeleted": "Delete"}),
            "whenDeleted is Delete",
        ),
        (5, "/spec/maxUnavailable", json!(0), "lets no pod go"),
        (5, "/spec/maxUnavailable", json!("0%"), "lets no pod go"),
        (
            5,
            "/spec",
            json!({"minAvailable": 3, "selector": {"matchLabels": {"app": "pg"}}}),
            "lets no pod go",
        ),
        (
            0,
            "/initContainers/1/env/2/value",
            json!("/secrets/password"),
            "container \"sidecar\" is \"/secrets/password\", where nothing is mounted",
        ),
        (
            0,
            "/initContainers/1/env/3",
            json!({"name": "PODGRES_TLS_DIR", "value": "/tls"}),
            "PODGRES_TLS_DIR of container \"sidecar\" is \"/tls\"",
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

#[test]
fn a_single_member_waits_for_nobody_and_a_budget_that_lets_one_go_is_left_alone() {
    let mut objects = working();
    put(&mut objects[0], "/spec/podManagementPolicy", Value::Null);
    put(&mut objects[0], "/spec/replicas", json!(1));
    assert_eq!(check(&objects, &SETTINGS), []);
    for (replicas, budget) in [
        (3, json!({"minAvailable": 2})),
        (3, json!({"minAvailable": "50%"})),
        (0, json!({"minAvailable": 1})),
    ] {
        let mut objects = working();
        put(&mut objects[0], "/spec/replicas", json!(replicas));
        put(&mut objects[5], "/spec", budget);
        put(
            &mut objects[5],
            "/spec/selector",
            json!({"matchLabels": {"app": "pg"}}),
        );
        assert_eq!(check(&objects, &SETTINGS), []);
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
pub(super) fn put(object: &mut Value, pointer: &str, value: Value) {
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
