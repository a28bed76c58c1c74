//! Which member a backup is read from, by what `/cluster` says.

use std::net::IpAddr;
use std::str::FromStr;

use serde_json::Value;

/// What the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The freshest standby; the primary if there is none.
    Any,
    Primary,
    Standby,
    Member(String),
}

impl FromStr for From {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            name => Self::Member(name.to_owned()),
        })
    }
}

/// A member that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    /// `primary` or `standby`.
    pub role: String,
    pub address: IpAddr,
    pub port: u16,
    pub lag_bytes: Option<u64>,
}

/// Why nobody can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("the cluster has no member \"{name}\"")]
    Unknown { name: String },
    #[error("member \"{name}\" is {state}")]
    NotFit { name: String, state: String },
    #[error("no {role} of the cluster can be read now")]
    Nobody { role: &'static str },
}

/// Everybody who fits, best first: standbys that stream by their lag, then the primary.
///
/// # Errors
/// Nobody does.
pub fn sources(cluster: &Value, from: &From) -> Result<Vec<Candidate>, SourceError> {
    let members = cluster["members"].as_array().map_or(&[][..], Vec::as_slice);
    if let From::Member(name) = from {
        let known = members.iter().find(|member| member["name"] == name.as_str());
        let member = known.ok_or_else(|| SourceError::Unknown { name: name.clone() })?;
        let state = member["state"].as_str().unwrap_or("unknown").to_owned();
        let candidate = candidate(member).ok_or_else(|| SourceError::NotFit {
            name: name.clone(),
            state,
        });
        return candidate.map(|candidate| vec![candidate]);
    }
    let mut fit: Vec<Candidate> = members.iter().filter_map(candidate).collect();
    fit.sort_by_key(|member| {
        (
            member.role != "standby",
            member.lag_bytes.unwrap_or(u64::MAX),
            member.name.clone(),
        )
    });
    let role = match from {
        From::Primary => Some("primary"),
        From::Standby => Some("standby"),
        From::Any | From::Member(_) => None,
    };
    fit.retain(|member| role.is_none_or(|role| member.role == role));
    if fit.is_empty() {
        return Err(SourceError::Nobody {
            role: role.unwrap_or("member"),
        });
    }
    Ok(fit)
}

/// The primary, if it runs.
#[must_use]
pub fn primary(cluster: &Value) -> Option<Candidate> {
    sources(cluster, &From::Primary).ok()?.into_iter().next()
}

fn candidate(member: &Value) -> Option<Candidate> {
    let role = member["role"].as_str()?;
    let fit = matches!(
        (role, member["state"].as_str()?),
        ("primary", "running") | ("standby", "streaming")
    );
    fit.then_some(())?;
    Some(Candidate {
        name: member["name"].as_str()?.to_owned(),
        role: role.to_owned(),
        address: member["host"].as_str()?.parse().ok()?,
        port: u16::try_from(member["postgres_port"].as_u64()?).ok()?,
        lag_bytes: member["lag_bytes"].as_u64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster() -> Value {
        let member = |name: &str, role: &str, state: &str, lag: Value| json!({"name": name, "role": role, "state": state, "host": "127.0.0.1", "postgres_port": 5432, "lag_bytes": lag});
        json!({"members": [
            member("pg-0", "primary", "running", json!(0)),
            member("pg-1", "standby", "streaming", json!(900)),
            member("pg-2", "standby", "streaming", json!(10)),
            member("pg-3", "standby", "starting", json!(0)),
            member("pg-4", "standby", "streaming", Value::Null),
        ]})
    }

    fn names(from: &From) -> Result<Vec<String>, SourceError> {
        sources(&cluster(), from).map(|found| found.into_iter().map(|member| member.name).collect())
    }

    #[test]
    fn the_freshest_standby_first() {
        assert_eq!(names(&From::Any).expect("fit"), ["pg-2", "pg-1", "pg-4", "pg-0"]);
        assert_eq!(names(&From::Standby).expect("fit"), ["pg-2", "pg-1", "pg-4"]);
        assert_eq!(names(&From::Primary).expect("fit"), ["pg-0"]);
        assert_eq!(names(&From::Member("pg-1".to_owned())).expect("fit"), ["pg-1"]);
        assert_eq!(
            primary(&cluster()).map(|member| member.name).as_deref(),
            Some("pg-0")
        );
    }

    #[test]
    fn who_cannot_be_read_is_named() {
        let error = names(&From::Member("pg-3".to_owned())).expect_err("not streaming");
        assert_eq!(error.to_string(), "member \"pg-3\" is starting");
        let error = names(&From::Member("pg-9".to_owned())).expect_err("unknown");
        assert_eq!(error.to_string(), "the cluster has no member \"pg-9\"");
        let nobody = sources(&json!({"members": []}), &From::Any).expect_err("nobody");
        assert_eq!(nobody.to_string(), "no member of the cluster can be read now");
    }
}
