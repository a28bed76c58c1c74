//! From settings to the rooms below: what `init`, `postgres` and `sidecar` build alike.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::agent;
use crate::config::pod::Pod;
use crate::config::server::{self, ServerArguments, ServerInputs};
use crate::config::{Environment, ProcessEnvironment};
use crate::core::member::{Ordinal, Topology};
use crate::core::supervision::FailureKind;
use crate::postgres::{ReadLogins, ServerSettings, find};
use crate::supervisor::{SupervisorError, SupervisorOptions};

use super::{ExitStatus, Failure, restore, wal_push};

pub(super) const ROOT: &str = "this container runs as root, which PostgreSQL refuses";
pub(super) const ROOT_HINT: &str =
    "set securityContext.runAsUser and fsGroup: 999 in Debian images, 70 in Alpine ones";

/// The server's settings, with the programs that were found.
pub(super) async fn server_settings(
    pod: &Pod,
    arguments: &ServerArguments,
) -> Result<ServerSettings, Failure> {
    let environment = ProcessEnvironment;
    let programs = programs(arguments).await?;
    let major_version = find::major_version(&programs)
        .await
        .map_err(|error| Failure::from_error(ExitStatus::Settings, &error))?;
    let inputs = ServerInputs {
        pod,
        arguments,
        program_directory: programs,
        major_version,
    };
    let settings = server::resolve(inputs, &environment)?;
    let archive_command = wal_push::prepare(arguments, &settings)?;
    let restore_program = restore::prepare(arguments, &settings)?;
    Ok(ServerSettings {
        archive_command,
        restore_program,
        ..settings
    })
}

/// Where PostgreSQL's programs are: in the sidecar's own container nowhere.
pub(super) async fn programs(arguments: &ServerArguments) -> Result<PathBuf, Failure> {
    let path = ProcessEnvironment.get("PATH").map(OsString::from);
    find::find_program_directory(arguments.program_dir.as_deref(), None, path.as_deref())
        .await
        .map_err(|error| Failure::from_error(ExitStatus::Settings, &error))
}

/// The agent's settings.
pub(super) fn agent_settings(pod: &Pod, tls: Option<PathBuf>) -> agent::Settings {
    let arguments = &pod.arguments;
    agent::Settings {
        policy: pod.policy(),
        topology: topology(pod),
        member: pod.name.clone(),
        uid: pod.uid.clone(),
        supervisor_socket: pod.supervisor_socket(),
        run_directory: arguments.run_dir.clone(),
        server_address: SocketAddr::new(pod.local_address, arguments.postgres_port),
        host: pod.host,
        postgres_port: arguments.postgres_port,
        http_port: arguments.network.http_port,
        read_write_port: arguments.network.read_write_port,
        read_only_port: arguments.network.read_only_port,
        logins: read_logins(),
        tls,
        dns_server: arguments.network.dns_server,
        peer_timeout: arguments.network.peer_timeout,
        report_pids: arguments.report_pids,
        no_reads: arguments.lease.no_reads.is_of(&pod.name),
        lease: pod.lease(),
        gate: false,
    }
}

/// Reads the logins from the environment and the mounted secrets, again with each call.
pub(super) fn read_logins() -> ReadLogins {
    Arc::new(|| server::logins(&ProcessEnvironment).map_err(|error| error.to_string()))
}

/// The supervisor's options: it reads the secrets again before it uses them.
pub(super) fn supervisor_options() -> SupervisorOptions {
    SupervisorOptions {
        logins: Some(read_logins()),
        ..SupervisorOptions::default()
    }
}

/// Why the supervisor did not begin, with the exit code that says what helps.
pub(super) fn supervisor_failure(error: &SupervisorError) -> Failure {
    let status = match error.kind() {
        FailureKind::Passing => ExitStatus::Overdue,
        FailureKind::Settings => ExitStatus::Settings,
        FailureKind::Permission => ExitStatus::Permission,
        FailureKind::Data => ExitStatus::Refused,
    };
    Failure::from_error(status, error)
}

pub(super) fn topology(pod: &Pod) -> Topology {
    Topology {
        cluster: pod.name.cluster.clone(),
        service: pod.service.clone(),
        namespace: pod.namespace.clone(),
        cluster_domain: pod.arguments.cluster_domain.clone(),
        first_ordinal: Ordinal(pod.arguments.first_ordinal),
    }
}

/// PostgreSQL does not run as root, and neither do its tools.
pub(super) fn refuse_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Err(Failure::new(ExitStatus::Settings, ROOT).hint(ROOT_HINT));
    }
    Ok(())
}

/// Makes the pod's shared folder if it is not there, closed to others.
pub(super) fn prepare_run_directory(pod: &Pod) -> Result<(), Failure> {
    let directory = &pod.arguments.run_dir;
    std::fs::create_dir_all(directory).map_err(|error| {
        Failure::new(
            super::status_of(&error),
            format!("could not make folder \"{}\": {error}", directory.display()),
        )
        .hint("Mount an emptyDir there, with medium: Memory, in every container of the pod.")
    })
}
