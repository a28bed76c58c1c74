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

/// What labels and Events add: each the one rule that the code needs, and none for what is not asked for.
#[test]
fn labels_and_events_add_what_the_code_asks_for_and_nothing_else() {
    let rules = |components: &[&str]| {
        let objects = build("overlays/lease", components);
        let rules = one(&objects, "Role", "pg")["rules"].as_array();
        rules.expect("rules").clone()
    };
    let lease = rules(&[]);
    let added = |components: &[&str]| {
        let all = rules(components);
        assert_eq!(all[..lease.len()], lease, "{components:?}");
        all[lease.len()..].to_vec()
    };
    let asked = asked_about_pods();
    let rule = |group: &str| {
        let (resource, verbs) = &asked[group];
        json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
    };
    let (mut pods, events) = (rule(""), rule(EVENT_GROUP));
    // Members by their names, as many as one may scale to; RBAC cannot bind the creation of an object to its name.
    pods["resourceNames"] = (0..5).map(|ordinal| format!("pg-{ordinal}")).collect();
    assert_eq!(added(&["role-label"]), std::slice::from_ref(&pods));
    assert_eq!(added(&["events"]), std::slice::from_ref(&events));
    assert_eq!(added(&["role-label", "events"]), [pods, events]);
    assert_eq!(asked.len(), 2, "the code asks for more: {asked:?}");
}

/// API group, resource and verbs of what src/kube/pod.rs sends: of the path, and of the word that it shows to whoever lacks the right, held against
/// the method that is sent.
fn asked_about_pods() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let files = files_below("src/kube");
    let file = files.iter().find(|file| file.path.ends_with("kube/pod.rs"));
    let text = &file.expect("the file").text;
    let quoted = |text: &str| text.split('"').nth(1).expect("a literal").to_owned();
    let mut asked: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    let requests: Vec<&str> = text.split("let path = ").skip(1).collect();
    for request in &requests {
        let path = quoted(request);
        let mut parts = path.split('/').skip(1);
        let group = match parts.next() {
            Some("api") => "",
            _ => parts.next().expect("a group"),
        };
        let after = path.split("/namespaces/{}/").nth(1).expect("in a namespace");
        let resource = after.split('/').next().expect("a resource");
        let verb = quoted(request.split("verb: ").nth(1).expect("a verb"));
        let method = quoted(request.split(".send(&asked, ").nth(1).expect("a request"));
        let of_method = match method.as_str() {
            "PATCH" => "patch",
            "POST" => "create",
            other => panic!("{other} is not expected"),
        };
        assert_eq!(verb, of_method, "{path}");
        let (known, verbs) = asked.entry(group.to_owned()).or_default();
        assert!(
            known.is_empty() || known == resource,
            "{group}: {known}, {resource}"
        );
        resource.clone_into(known);
        verbs.insert(verb);
    }
    let sent = text.matches(".send(&asked").count();
    assert_eq!(sent, requests.len(), "each request has its path before it");
    asked
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
