//! Ports, paths, settings and labels are those of the code.

use super::*;

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
fn the_label_of_the_role_is_the_one_that_the_code_sets() {
    let objects = build("overlays/lease", &["role-label"]);
    let selector = &one(&objects, "Service", "pg-primary")["spec"]["selector"];
    assert_eq!(selector[format!("{PREFIX}role")], "primary");
    assert_eq!(
        one(&objects, "ConfigMap", "pg-settings")["data"]["PODGRES_LABEL_POD"],
        "true"
    );
}
