//! Do the probes let the pod start, and leave it alone while PostgreSQL is busy?

use serde_json::Value;

use super::Note;
use super::object::{Container, Part, Workload, list};

/// What the sidecar answers whatever PostgreSQL does.
const ALWAYS_ANSWERED: [&str; 8] = [
    "/liveness",
    "/startup",
    "/metrics",
    "/cluster",
    "/patroni",
    "/config",
    "/history",
    SIDECARS_PORT,
];
const SIDECARS_PORT: &str = "the sidecar's TCP port";

pub(super) fn check(workload: &Workload<'_>, note: &mut Note<'_>) {
    let needs_postgresql = |asked: &String| !ALWAYS_ANSWERED.contains(&asked.as_str());
    for container in workload.parts() {
        if let Some(asked) = asked(workload, container, "livenessProbe").filter(needs_postgresql) {
            note(
                format!(
                    "the liveness probe of container \"{}\" asks {asked}, which needs PostgreSQL",
                    container.name
                ),
                "Ask the sidecar's /liveness: a server that recovers, or is cut off, must not be restarted for that.",
            );
        }
    }
    let Some(sidecar) = workload.part(Part::Sidecar) else {
        return;
    };
    let startup = asked(workload, sidecar, "startupProbe");
    if let Some(asked) = startup.filter(|asked| sidecar.native_sidecar && needs_postgresql(asked)) {
        note(
            format!(
                "the startup probe of the sidecar asks {asked}, which needs PostgreSQL, which starts after the sidecar"
            ),
            "Ask /startup: it says that the sidecar listens.",
        );
    }
    if asked(workload, sidecar, "readinessProbe").is_none() {
        note(
            "the sidecar has no readiness probe, so the Services lead to members that cannot serve"
                .to_owned(),
            "Ask /readiness on port 8008.",
        );
    }
    if let Some(server) = workload.part(Part::Server)
        && asked(workload, server, "startupProbe").is_some()
    {
        note(
            format!("container \"{}\" has a startup probe", server.name),
            "Remove it: a standby may replay for hours before it answers, and is restarted from the beginning then.",
        );
    }
}

/// What a probe asks: an HTTP path without its parameters, a TCP port, or a command.
fn asked(workload: &Workload<'_>, container: &Container<'_>, probe: &str) -> Option<String> {
    let probe = &container.value[probe];
    if let Some(path) = probe["httpGet"]["path"].as_str() {
        let path = path.split('?').next().unwrap_or(path);
        return Some(path.to_owned());
    }
    if probe["exec"].is_object() {
        let words: Vec<&str> = list(&probe["exec"], "command")
            .filter_map(Value::as_str)
            .collect();
        return Some(format!("\"{}\"", words.join(" ")));
    }
    let socket = probe["tcpSocket"].as_object()?;
    let number = port(container, &socket["port"]);
    let http = workload.variable("PODGRES_HTTP_PORT").unwrap_or("8008");
    let sidecars = number.is_some_and(|number| number.to_string() == http);
    Some(if sidecars { SIDECARS_PORT } else { "a TCP port" }.to_owned())
}

/// A port by its number, or by the name that the container gives it.
fn port(container: &Container<'_>, port: &Value) -> Option<u64> {
    let named = || list(container.value, "ports").find(|known| known["name"] == *port);
    port.as_u64().or_else(|| named()?["containerPort"].as_u64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;
    use super::super::fixtures::{SETTINGS, put, working};

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
}
