//! Routes of their own, beside an application or as a Deployment.

use super::*;

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
