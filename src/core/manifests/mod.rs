//! What in the objects of a cluster cannot work: read as JSON, from manifest files or from the API alike.
//!
//! Says only what is certainly wrong for a StatefulSet that runs podgres; what else people put into their manifests is theirs.

#[cfg(test)]
mod fixtures;
mod image;
mod names;
mod object;
mod pod;
mod probes;
mod rights;
mod upkeep;
mod volumes;

use serde_json::Value;

use object::{Object, Workload};

pub use object::config_maps;
pub use pod::{DEFAULT_STOP_TIMEOUT_SECONDS, HAND_OVER_SECONDS, STOP_SECONDS};
pub use rights::{EVENT_GROUP, LEASE_GROUP, LEASE_VERBS, SLICE_GROUP, SLICE_VERBS, cluster_roles};

/// One thing that cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `StatefulSet "pg"`
    pub object: String,
    pub problem: String,
    pub hint: String,
    /// Objects of this kind could show that it is none, where they are not among those that were given.
    pub unless: Option<&'static str>,
}

/// What an API server shows to few: objects that may grant rights in every namespace.
pub const CLUSTER_WIDE: &str = "ClusterRoleBinding";

/// All findings, object by object. `settings` are the variables that podgres knows.
#[must_use]
pub fn check(objects: &[Value], settings: &[&str]) -> Vec<Finding> {
    let objects: Vec<Object> = objects.iter().filter_map(Object::read).collect();
    let workloads: Vec<Workload> = objects
        .iter()
        .filter(|object| object.kind == "StatefulSet")
        .map(|object| Workload::read(object, &objects, settings))
        .filter(Workload::runs_podgres)
        .collect();
    if workloads.is_empty() {
        return vec![Finding {
            object: "manifests".to_owned(),
            problem: "no StatefulSet runs podgres".to_owned(),
            hint: "One container must run `podgres postgres`, another one `podgres sidecar`.".to_owned(),
            unless: None,
        }];
    }
    let mut findings = Vec::new();
    for workload in &workloads {
        let mut add = |problem: String, hint: &str, unless| {
            findings.push(Finding {
                object: format!("StatefulSet \"{}\"", workload.object.name),
                problem,
                hint: hint.to_owned(),
                unless,
            });
        };
        let mut note = |problem: String, hint: &str| add(problem, hint, None);
        names::check(workload, &objects, &mut note);
        pod::check(workload, settings, &mut note);
        probes::check(workload, &mut note);
        volumes::check(workload, &mut note);
        upkeep::check(workload, &objects, &mut note);
        rights::check(workload, &objects, &mut note);
        rights::check_granted(workload, &objects, &mut |problem, hint| {
            add(problem, hint, Some(CLUSTER_WIDE));
        });
    }
    findings
}

/// Where the checks put what they find: a problem and what to do about it.
type Note<'a> = dyn FnMut(String, &str) + 'a;
