//! Further listeners in the operator's words: `6434,mode=read-only,max_staleness=1s,fallback=none`.

use super::{Affinity, OnPrimaryLoss, ReadOnlyFallback, RouteMode, RoutePolicy};
use crate::core::units;

/// One listener: a port, a name, and what it promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub port: u16,
    /// For metrics, and the first label of a host name that picks this policy on any listener.
    pub name: String,
    pub policy: RoutePolicy,
    /// Sessions at a time; `None`: as all listeners.
    pub max_connections: Option<usize>,
    /// Sessions of one client address at a time; `None`: as all listeners.
    pub max_connections_per_client: Option<usize>,
}

impl Listen {
    /// Reads the words; what is not given is as in `defaults`.
    ///
    /// # Errors
    /// What is wrong, as a sentence without its full stop.
    pub fn read(text: &str, defaults: &RoutePolicy) -> Result<Self, String> {
        let mut words = text.split(',');
        let port = words.next().unwrap_or_default().trim();
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("\"{port}\" is no port"))?;
        let mut listen = Self {
            port,
            name: format!("port_{port}"),
            policy: defaults.clone(),
            max_connections: None,
            max_connections_per_client: None,
        };
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("\"{word}\" is not KEY=VALUE"))?;
            listen.set(key.trim(), value.trim())?;
        }
        Ok(listen)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let policy = &mut self.policy;
        match key {
            "mode" => policy.mode = mode(value)?,
            "name" => self.name = name(value)?,
            "max_staleness" => policy.max_staleness_ms = milliseconds(value)?,
            "max_lag" => policy.max_lag_bytes = units::bytes(value)?,
            "fallback" => policy.fallback = fallback(value)?,
            "on_primary_loss" => policy.on_primary_loss = on_primary_loss(value)?,
            "degrade" => policy.degrade = degrade(value)?,
            "affinity" => policy.affinity = affinity(value)?,
            "monotonic" => policy.monotonic = on_or_off(value)?,
            "max_connections" => self.max_connections = Some(count(value)?),
            "max_connections_per_client" => self.max_connections_per_client = Some(count(value)?),
            _ => {
                return Err(format!(
                    "\"{key}\" is none of mode, name, max_staleness, max_lag, fallback, on_primary_loss, degrade, \
                     affinity, monotonic, max_connections, max_connections_per_client"
                ));
            }
        }
        Ok(())
    }
}

/// `serve`, `refuse`, or `serve-for` with a duration (`serve-for:5m`, `serve-for 5m`).
///
/// # Errors
/// What would be right.
pub fn on_primary_loss(value: &str) -> Result<OnPrimaryLoss, String> {
    match value {
        "serve" => Ok(OnPrimaryLoss::Serve),
        "refuse" => Ok(OnPrimaryLoss::Refuse),
        _ => {
            let limit = value
                .strip_prefix("serve-for")
                .map(|rest| rest.trim_start_matches([':', ' ']));
            let limit = limit.ok_or_else(|| format!("\"{value}\" is none of serve, serve-for:5m, refuse"))?;
            Ok(OnPrimaryLoss::ServeFor {
                ms: milliseconds(limit)?,
            })
        }
    }
}

fn mode(value: &str) -> Result<RouteMode, String> {
    match value {
        "read-only" => Ok(RouteMode::ReadOnly),
        "read-write" => Ok(RouteMode::ReadWrite),
        _ => Err(format!("\"{value}\" is neither read-only nor read-write")),
    }
}

/// A DNS label, since clients may pick a policy by host name.
fn name(value: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if (1..=63).contains(&value.len()) && value.bytes().all(plain) {
        Ok(value.to_owned())
    } else {
        Err(format!(
            "\"{value}\" is no name: write lower-case letters, digits and -"
        ))
    }
}

fn fallback(value: &str) -> Result<ReadOnlyFallback, String> {
    match value {
        "primary" => Ok(ReadOnlyFallback::Primary),
        "none" => Ok(ReadOnlyFallback::None),
        _ => Err(format!("\"{value}\" is neither primary nor none")),
    }
}

fn degrade(value: &str) -> Result<bool, String> {
    match value {
        "read-only" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("\"{value}\" is neither read-only nor off")),
    }
}

fn affinity(value: &str) -> Result<Affinity, String> {
    match value {
        "client" => Ok(Affinity::Client),
        "none" => Ok(Affinity::None),
        _ => Err(format!("\"{value}\" is neither client nor none")),
    }
}

fn on_or_off(value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("\"{value}\" is neither on nor off")),
    }
}

fn milliseconds(value: &str) -> Result<u64, String> {
    let duration = units::duration(value)?;
    u64::try_from(duration.as_millis()).map_err(|_| format!("\"{value}\" is too long"))
}

fn count(value: &str) -> Result<usize, String> {
    value
        .parse()
        .map_err(|_| format!("\"{value}\" is no number of connections"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Listen, String> {
        Listen::read(text, &RoutePolicy::new(RouteMode::ReadOnly))
    }

    #[test]
    fn every_key_is_read() {
        let text = "6434,name=ro-1s,mode=read-only,max_staleness=1s,max_lag=1MB,fallback=none,\
                    on_primary_loss=serve-for:5m,degrade=off,affinity=none,monotonic=on,max_connections=9,max_connections_per_client=3";
        let policy = RoutePolicy {
            mode: RouteMode::ReadOnly,
            max_staleness_ms: 1_000,
            max_lag_bytes: 1 << 20,
            fallback: ReadOnlyFallback::None,
            on_primary_loss: OnPrimaryLoss::ServeFor { ms: 300_000 },
            degrade: false,
            affinity: Affinity::None,
            monotonic: true,
            own_max_lag: false,
        };
        let expected = Listen {
            port: 6434,
            name: "ro-1s".to_owned(),
            policy,
            max_connections: Some(9),
            max_connections_per_client: Some(3),
        };
        assert_eq!(read(text), Ok(expected));
        let plain = read("7000").expect("a port alone");
        assert_eq!((plain.port, plain.name.as_str()), (7000, "port_7000"));
        assert_eq!(plain.policy, RoutePolicy::new(RouteMode::ReadOnly));
        let degrades = read("7000,degrade=read-only").expect("a known word");
        assert!(degrades.policy.degrade);
        assert_eq!(
            on_primary_loss("serve-for 5m"),
            Ok(OnPrimaryLoss::ServeFor { ms: 300_000 })
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "\"\" is no port"),
            ("0", "\"0\" is no port"),
            ("70000", "\"70000\" is no port"),
            ("7000,fast", "\"fast\" is not KEY=VALUE"),
            ("7000,mode=rw", "\"rw\" is neither read-only nor read-write"),
            (
                "7000,name=Ünfit",
                "\"Ünfit\" is no name: write lower-case letters, digits and -",
            ),
            ("7000,fallback=standby", "\"standby\" is neither primary nor none"),
            (
                "7000,on_primary_loss=pray",
                "\"pray\" is none of serve, serve-for:5m, refuse",
            ),
            ("7000,degrade=on", "\"on\" is neither read-only nor off"),
            ("7000,affinity=sticky", "\"sticky\" is neither client nor none"),
            ("7000,monotonic=yes", "\"yes\" is neither on nor off"),
            (
                "7000,max_connections=many",
                "\"many\" is no number of connections",
            ),
        ] {
            assert_eq!(read(text), Err(said.to_owned()), "{text}");
        }
        assert!(read("7000,colour=red").is_err_and(|said| said.starts_with("\"colour\" is none of mode")));
        assert!(read("7000,max_staleness=soon").is_err());
    }
}
