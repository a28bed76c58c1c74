//! Do the probes let the pod start, and leave it alone while PostgreSQL is busy?

use serde_json::Value;

use super::Note;
use super::object::{Container, Part, Workload, list};

pub(super) fn check(workload: &Workload<'_>, note: &mut Note<'_>) {
    for container in workload.parts() {
        if let Some(asked) =
            asked(container, "livenessProbe").filter(|asked| asked != "/liveness" && asked != "/startup")
        {
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
    let startup = asked(sidecar, "startupProbe");
    if let Some(asked) =
        startup.filter(|asked| sidecar.native_sidecar && asked != "/startup" && asked != "/liveness")
    {
        note(
            format!(
                "the startup probe of the sidecar asks {asked}, which needs PostgreSQL, which starts after the sidecar"
            ),
            "Ask /startup: it says that the sidecar listens.",
        );
    }
    if asked(sidecar, "readinessProbe").is_none() {
        note(
            "the sidecar has no readiness probe, so the Services lead to members that cannot serve"
                .to_owned(),
            "Ask /readiness on port 8008.",
        );
    }
    if let Some(server) = workload.part(Part::Server)
        && asked(server, "startupProbe").is_some()
    {
        note(
            format!("container \"{}\" has a startup probe", server.name),
            "Remove it: a standby may replay for hours before it answers, and is restarted from the beginning then.",
        );
    }
}

/// What a probe asks: an HTTP path without its parameters, or `a TCP port`, or `a command`.
fn asked(container: &Container<'_>, probe: &str) -> Option<String> {
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
    probe["tcpSocket"].is_object().then(|| "a TCP port".to_owned())
}
