//! What in this pod's environment cannot work: its user, folders, settings, and its name in DNS.

use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::config::pod::Pod;
use crate::config::server::ServerArguments;
use crate::dns::Resolver;
use crate::postgres::error::JobError;
use crate::postgres::{ServerSettings, staging};

use super::super::wiring;
use super::Finding;

const DNS_LIMIT: Duration = Duration::from_secs(10);

/// All findings.
pub(super) async fn findings(pod: &Pod, server: &ServerArguments) -> Vec<Finding> {
    let mut findings = Vec::new();
    user(&mut findings);
    run_directory(pod, &mut findings);
    match wiring::server_settings(pod, server).await {
        Ok(settings) => data_directory(&settings, &mut findings),
        // The container beside this one has the programs, and looks after the directory.
        Err(_) if pod.supervisor_socket().exists() && wiring::programs(server).await.is_err() => {}
        Err(failure) => {
            let problem = match &failure.detail {
                Some(detail) => format!("{}: {detail}", failure.message),
                None => failure.message,
            };
            let hint = failure
                .hint
                .as_deref()
                .unwrap_or("the postgres container needs it");
            findings.push(Finding::new(problem, hint));
        }
    }
    names(pod, &mut findings).await;
    findings
}

fn user(findings: &mut Vec<Finding>) {
    if wiring::refuse_root().is_err() {
        findings.push(Finding::new(wiring::ROOT, wiring::ROOT_HINT));
    }
}

fn run_directory(pod: &Pod, findings: &mut Vec<Finding>) {
    let hint = "mount an emptyDir with medium: Memory there, in every container of the pod";
    if let Err(failure) = wiring::prepare_run_directory(pod) {
        findings.push(Finding::new(failure.message, hint));
    } else {
        writable(&pod.arguments.run_dir, hint, findings);
        supervisor_socket(&pod.supervisor_socket(), findings);
    }
}

/// Made by the container that runs PostgreSQL, maybe as another user.
fn supervisor_socket(socket: &Path, findings: &mut Vec<Finding>) {
    if let Err(rustix::io::Errno::ACCESS) = accessat(CWD, socket, Access::WRITE_OK, AtFlags::EACCESS) {
        let problem = format!("cannot write to socket \"{}\"", socket.display());
        findings.push(Finding::new(
            problem,
            "give all containers of the pod the same securityContext.runAsUser, or the pod an fsGroup",
        ));
    }
}

fn data_directory(settings: &ServerSettings, findings: &mut Vec<Finding>) {
    match staging::replaceable(settings) {
        // The pod's own server runs.
        Ok(()) | Err(JobError::InUse { .. }) => {}
        Err(error) => {
            let hint = "set PGDATA to a sub-directory of the volume";
            return findings.push(Finding::new(error.to_string(), hint));
        }
    }
    // PGDATA is made by a rename beside it.
    let mut parents = settings.data_directory.ancestors().skip(1);
    if let Some(volume) = parents.find(|parent| parent.exists()) {
        let hint =
            "is the volume mounted there, and securityContext.fsGroup the group of the container's user?";
        writable(volume, hint, findings);
    }
}

fn writable(directory: &Path, hint: &str, findings: &mut Vec<Finding>) {
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    if let Err(error) = accessat(CWD, directory, wanted, AtFlags::EACCESS) {
        let problem = format!("cannot write to folder \"{}\": {error}", directory.display());
        findings.push(Finding::new(problem, hint));
    }
}

async fn names(pod: &Pod, findings: &mut Vec<Finding>) {
    let topology = wiring::topology(pod);
    let host = topology.pod_host(pod.name.ordinal);
    let resolver = match Resolver::new(pod.arguments.network.dns_server) {
        Ok(resolver) => resolver,
        Err(error) => {
            let hint = "the pod needs a DNS server (dnsPolicy: ClusterFirst)";
            findings.push(Finding::new(error.to_string(), hint));
            return;
        }
    };
    let finding = match tokio::time::timeout(DNS_LIMIT, resolver.addresses(&host)).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) if error.absent() => Finding::new(
            format!("this pod has no name of its own: {error}"),
            "serviceName of the StatefulSet must name a headless Service (clusterIP: None) that selects its pods, \
             with publishNotReadyAddresses: true; names appear up to 30 s late where a cluster caches their absence",
        ),
        Ok(Err(error)) => Finding::new(
            error.to_string(),
            "DNS must answer for the pod's namespace and --cluster-domain",
        ),
        Err(_) => Finding::new(
            format!(
                "DNS did not answer for \"{host}\" within {} s",
                DNS_LIMIT.as_secs()
            ),
            "is port 53 allowed by the NetworkPolicy, over UDP and TCP?",
        ),
    };
    findings.push(finding);
}
