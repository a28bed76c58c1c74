//! What the API server is asked for, and who holds the token.

use super::*;

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
