//! Settings of `leadership=lease`, and the relations between its times.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::pod::{DurabilityArgument, LeadershipArgument, Pod, PodArguments};
use super::tags::{Priorities, Tag};
use super::units::{duration_text as text, milliseconds};
use super::{InvalidSetting, units};
use crate::core::lease::{Durability, Identity};
use crate::core::member::MemberName;
use crate::core::policy::LeaseTimes;
use crate::kube::{LeaseSettings, Reach};

/// In the pod's shared folder.
const LEASE_FILE: &str = "lease.json";

/// Flags that mean something with `--leadership lease` only.
#[derive(Args, Clone, Debug)]
pub struct LeaseArguments {
    /// Others may take the Lease when it has not changed for this long
    #[arg(long, env = "PODGRES_LEASE_DURATION", value_parser = units::duration, default_value = "15s")]
    pub lease_duration: Duration,
    /// The primary's right ends this long after its last renewal was sent
    #[arg(long, env = "PODGRES_RENEW_DEADLINE", value_parser = units::duration, default_value = "10s")]
    pub renew_deadline: Duration,
    /// How often the primary renews
    #[arg(long, env = "PODGRES_RETRY_PERIOD", value_parser = units::duration, default_value = "2s")]
    pub retry_period: Duration,
    /// How long a crashed primary may recover before others are let in
    #[arg(long, env = "PODGRES_RECOVERY_TIMEOUT", value_parser = units::duration, default_value = "30s")]
    pub recovery_timeout: Duration,
    /// Commits wait for the sidecar's confirmation that the primary is in office
    #[arg(long, env = "PODGRES_GATE", value_enum, default_value_t = Switch::On)]
    pub gate: Switch,
    /// Among equals the member with the lower number takes over: a number, or POD=NUMBER,… and 100 for the others
    #[arg(long, env = "PODGRES_PRIORITY", default_value = "100")]
    pub priority: Priorities,
    /// These members never become primary, and no commit waits for them: pods separated by commas, or true for all
    #[arg(
        long,
        env = "PODGRES_NEVER_PRIMARY",
        default_value = "false",
        value_name = "PODS"
    )]
    pub never_primary: Tag,
    /// These members serve no reads on the read-only route while they are standbys: pods, or true for all
    #[arg(long, env = "PODGRES_NO_READS", default_value = "false", value_name = "PODS")]
    pub no_reads: Tag,
    /// The API server by a kubeconfig file [default: the pod's service account]
    #[arg(long, env = "PODGRES_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl LeaseArguments {
    /// Refuses tags of pods that are not of `own`'s cluster.
    pub(super) fn check_tags(&self, own: &MemberName) -> Result<(), InvalidSetting> {
        self.priority.check("PODGRES_PRIORITY", own)?;
        self.never_primary.check("PODGRES_NEVER_PRIMARY", own)?;
        self.no_reads.check("PODGRES_NO_READS", own)
    }

    pub(super) fn times(&self, peer_timeout: Duration, stop_timeout: Duration) -> LeaseTimes {
        LeaseTimes {
            lease_duration_ms: milliseconds(self.lease_duration),
            renew_deadline_ms: milliseconds(self.renew_deadline),
            retry_period_ms: milliseconds(self.retry_period),
            peer_timeout_ms: milliseconds(peer_timeout),
            stop_timeout_ms: milliseconds(stop_timeout),
            drain_timeout_ms: LeaseTimes::default().drain_timeout_ms,
            recovery_timeout_ms: milliseconds(self.recovery_timeout),
        }
    }
}

impl PodArguments {
    pub(super) fn durability(&self) -> Durability {
        match (self.durability, self.leadership) {
            (Some(DurabilityArgument::Async), _) | (None, LeadershipArgument::Fixed) => Durability::Async,
            (Some(DurabilityArgument::Preferred), _) => Durability::Preferred,
            (Some(DurabilityArgument::Majority), _) | (None, LeadershipArgument::Lease) => {
                Durability::Majority
            }
        }
    }

    /// What leadership, durability and times must have to do with each other.
    pub(super) fn check_leadership(&self) -> Result<(), InvalidSetting> {
        let durability = self
            .durability
            .filter(|given| *given != DurabilityArgument::Async);
        if let (LeadershipArgument::Fixed, Some(given)) = (self.leadership, durability) {
            let name = given
                .to_possible_value()
                .map_or_else(String::new, |value| value.get_name().to_owned());
            return Err(InvalidSetting::new(
                "PODGRES_DURABILITY",
                format!("\"{name}\" needs a Lease: with fixed leadership no commit waits for a standby"),
                "set PODGRES_LEADERSHIP=lease, or PODGRES_DURABILITY=async",
            ));
        }
        if self.leadership == LeadershipArgument::Lease && self.pod_uid.is_none() {
            return Err(InvalidSetting::new(
                "POD_UID",
                "not set: without it a pod cannot be told from an earlier one of the same name, which may still run",
                "give it by the downward API: fieldRef metadata.uid",
            ));
        }
        let lease = &self.lease;
        if lease.retry_period < Duration::from_millis(100) || lease.retry_period * 2 > lease.renew_deadline {
            return Err(InvalidSetting::new(
                "PODGRES_RETRY_PERIOD",
                format!(
                    "{} leaves no second try within the renew deadline of {}",
                    text(lease.retry_period),
                    text(lease.renew_deadline)
                ),
                "give at least 100ms and at most half of PODGRES_RENEW_DEADLINE",
            ));
        }
        if lease.renew_deadline + self.stop_timeout >= lease.lease_duration {
            return Err(InvalidSetting::new(
                "PODGRES_RENEW_DEADLINE",
                format!(
                    "{} and the stop timeout of {} do not fit into the Lease's {}",
                    text(lease.renew_deadline),
                    text(self.stop_timeout),
                    text(lease.lease_duration)
                ),
                "renew deadline plus stop timeout must be less than PODGRES_LEASE_DURATION",
            ));
        }
        Ok(())
    }
}

/// How the API server is reached.
pub(super) fn reach(arguments: &LeaseArguments) -> Reach {
    match &arguments.kubeconfig {
        Some(path) => Reach::Kubeconfig {
            path: path.clone(),
            context: None,
        },
        None => Reach::InCluster,
    }
}

impl Pod {
    /// This pod in `holderIdentity`.
    pub fn identity(&self) -> Identity {
        Identity {
            pod: self.name.to_string(),
            uid: self.uid.clone(),
        }
    }

    /// Where the Lease is; `None` with fixed leadership.
    pub fn lease(&self) -> Option<LeaseSettings> {
        let lease = &self.arguments.lease;
        (self.arguments.leadership == LeadershipArgument::Lease).then(|| LeaseSettings {
            reach: reach(lease),
            namespace: self.namespace.clone(),
            name: self.name.cluster.clone(),
            identity: self.identity(),
            retry_period: lease.retry_period,
            memory_file: Some(self.arguments.run_dir.join(LEASE_FILE)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        pod: PodArguments,
    }

    fn refused(words: &[&str]) -> Option<String> {
        let all = [&["podgres", "--pod-name", "pg-0"], words].concat();
        let words = Words::try_parse_from(all).expect("flags");
        words.pod.check_leadership().err().map(|error| error.to_string())
    }

    #[test]
    fn times_that_cannot_work_together_are_refused_with_what_would_be_right() {
        let lease = ["--leadership", "lease", "--pod-uid", "u"];
        let with = |more: &[&str]| refused(&[&lease[..], more].concat());
        assert_eq!(with(&[]), None);
        assert_eq!(
            with(&[
                "--lease-duration",
                "6s",
                "--renew-deadline",
                "2s",
                "--retry-period",
                "500ms"
            ]),
            None
        );
        for (words, key) in [
            (&["--renew-deadline", "13s"][..], "PODGRES_RENEW_DEADLINE"),
            (&["--retry-period", "6s"], "PODGRES_RETRY_PERIOD"),
            (&["--retry-period", "10ms"], "PODGRES_RETRY_PERIOD"),
            (&["--stop-timeout", "6s"], "PODGRES_RENEW_DEADLINE"),
        ] {
            let message = with(words).expect("a refusal");
            assert!(message.contains(key), "{message}");
        }
        let message = refused(&["--leadership", "lease"]).expect("a refusal");
        assert!(message.contains("POD_UID"), "{message}");
        let message = refused(&["--durability", "majority"]).expect("a refusal");
        assert!(message.contains("PODGRES_DURABILITY"), "{message}");
    }
}
