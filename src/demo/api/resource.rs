//! The kinds of object that the demo's API server knows, and what it would refuse in one of them.

use serde_json::Value;

/// One kind of object in one API group's `v1`.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    /// Why the API would refuse an object, as far as podgres could get it wrong.
    pub(super) invalid: fn(&Value) -> Option<&'static str>,
}

pub(super) static LEASES: Resource = Resource {
    group: "coordination.k8s.io",
    plural: "leases",
    kind: "Lease",
    invalid: invalid_lease,
};

pub(super) static ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    plural: "endpointslices",
    kind: "EndpointSlice",
    invalid: invalid_slice,
};

pub(super) static EVENTS: Resource = Resource {
    group: "events.k8s.io",
    plural: "events",
    kind: "Event",
    invalid: invalid_event,
};

impl Resource {
    pub(super) fn api_version(&self) -> String {
        format!("{}/v1", self.group)
    }

    /// As refusals name it: `leases.coordination.k8s.io`.
    pub(super) fn full_name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// Where the objects of a namespace are listed.
    pub(super) fn path(&self) -> String {
        format!(
            "/apis/{}/namespaces/{{namespace}}/{}",
            self.api_version(),
            self.plural
        )
    }
}

/// Source: the API's `ValidateLease`.
fn invalid_lease(lease: &Value) -> Option<&'static str> {
    let number = |field: &str, least: i64| {
        let value = &lease["spec"][field];
        value.is_null()
            || value
                .as_i64()
                .is_some_and(|number| number >= least && i32::try_from(number).is_ok())
    };
    if !number("leaseDurationSeconds", 1) {
        return Some("spec.leaseDurationSeconds: must be greater than 0");
    }
    if !number("leaseTransitions", 0) {
        return Some("spec.leaseTransitions: must be greater than or equal to 0");
    }
    None
}

/// Source: the API's `ValidateEventCreate`.
fn invalid_event(event: &Value) -> Option<&'static str> {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let fits = |field: &str| (1..=128).contains(&text(field).len());
    if event["eventTime"].is_null() {
        return Some("eventTime: required value");
    }
    if !["reportingController", "reportingInstance", "reason", "action"]
        .into_iter()
        .all(fits)
    {
        return Some(
            "reportingController, reportingInstance, reason, action: required, at most 128 characters",
        );
    }
    if text("note").len() > 1_024 {
        return Some("note: can have at most 1024 characters");
    }
    if !matches!(text("type"), "Normal" | "Warning") {
        return Some("type: supported values: \"Normal\", \"Warning\"");
    }
    let regarded = &event["regarding"]["namespace"];
    (*regarded != event["metadata"]["namespace"])
        .then_some("regarding.namespace: does not match event.namespace")
}

/// Source: the API's `ValidateEndpointSlice`.
fn invalid_slice(slice: &Value) -> Option<&'static str> {
    let ipv6 = match slice["addressType"].as_str() {
        Some("IPv4") => false,
        Some("IPv6") => true,
        _ => return Some("addressType: supported values: \"IPv4\", \"IPv6\""),
    };
    let fits = |address: &Value| {
        let address: Option<std::net::IpAddr> = address.as_str().and_then(|text| text.parse().ok());
        address.is_some_and(|address| address.is_ipv6() == ipv6)
    };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    for endpoint in endpoints {
        let addresses = endpoint["addresses"].as_array();
        if !addresses.is_some_and(|addresses| !addresses.is_empty() && addresses.iter().all(fits)) {
            return Some("endpoints.addresses: must be addresses of the slice's type");
        }
    }
    None
}
