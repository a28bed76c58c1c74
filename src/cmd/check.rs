//! `podgres check`: names each thing in a pod's environment that cannot work, before anything depends on it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;

use crate::config::pod::{Pod, PodArguments};
use crate::config::server::ServerArguments;
use crate::dns::Resolver;
use crate::postgres::{ServerSettings, staging};

use super::{ExitStatus, Failure, wiring};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub pod: PodArguments,
    #[command(flatten)]
    pub server: ServerArguments,
}

/// One finding: what cannot work, and what to do.
struct Finding {
    problem: String,
    hint: &'static str,
}

const DNS_LIMIT: Duration = Duration::from_secs(10);

/// Prints one line a finding; exit code 64 if there is any.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let pod = arguments.pod.resolve()?;
    let mut findings = Vec::new();
    run_directory(&pod, &mut findings);
    match wiring::server_settings(&pod, &arguments.server).await {
        Ok(settings) => data_directory(&settings, &mut findings),
        Err(failure) => findings.push(Finding {
            problem: failure.message,
            hint: "see above",
        }),
    }
    names(&pod, &mut findings).await;
    let mut text = String::new();
    for finding in &findings {
        let Finding { problem, hint } = finding;
        writeln!(text, "{problem}\n    hint: {hint}")
            .map_err(|error| Failure::from_error(ExitStatus::Bug, &error))?;
    }
    if findings.is_empty() {
        text = format!("{}: nothing found that cannot work\n", pod.name);
    }
    std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::from_error(ExitStatus::Overdue, &error))?;
    if findings.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        ExitStatus::Settings,
        format!("{} things cannot work", findings.len()),
    ))
}

fn run_directory(pod: &Pod, findings: &mut Vec<Finding>) {
    if let Err(failure) = wiring::prepare_run_directory(pod) {
        findings.push(Finding {
            problem: failure.message,
            hint: "mount an emptyDir with medium: Memory there, in every container of the pod",
        });
    }
}

fn data_directory(settings: &ServerSettings, findings: &mut Vec<Finding>) {
    if let Err(error) = staging::replaceable(settings) {
        findings.push(Finding {
            problem: error.to_string(),
            hint: "set PGDATA to a sub-directory of the volume",
        });
    }
}

async fn names(pod: &Pod, findings: &mut Vec<Finding>) {
    let topology = wiring::topology(pod);
    let host = topology.pod_host(pod.name.ordinal);
    let resolver = match Resolver::new(pod.arguments.dns_server) {
        Ok(resolver) => resolver,
        Err(error) => {
            findings.push(Finding {
                problem: error.to_string(),
                hint: "the pod needs a DNS server (dnsPolicy: ClusterFirst)",
            });
            return;
        }
    };
    match tokio::time::timeout(DNS_LIMIT, resolver.addresses(&host)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.absent() => findings.push(Finding {
            problem: format!("this pod has no name of its own: {error}"),
            hint: "serviceName of the StatefulSet must name a headless Service (clusterIP: None) that selects its pods, \
                   with publishNotReadyAddresses: true; names appear up to 30 s late where a cluster caches their absence",
        }),
        Ok(Err(error)) => findings.push(Finding {
            problem: error.to_string(),
            hint: "DNS must answer for the pod's namespace and --cluster-domain",
        }),
        Err(_) => findings.push(Finding {
            problem: format!("DNS did not answer for \"{host}\" within {} s", DNS_LIMIT.as_secs()),
            hint: "is port 53 allowed by the NetworkPolicy, over UDP and TCP?",
        }),
    }
}
