//! Settings for unit tests.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Login, Secret, ServerSettings};

/// Of a member whose files are all in `folder`.
pub(crate) fn settings(folder: &Path) -> ServerSettings {
    let login = |user: &str, password: &str| Login {
        user: user.to_owned(),
        password: Secret::new(password.to_owned()),
    };
    ServerSettings {
        member: "pg-0".to_owned(),
        data_directory: folder.join("data"),
        program_directory: PathBuf::new(),
        run_directory: folder.join("run"),
        socket_directories: Vec::new(),
        listen_addresses: String::new(),
        local_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 5432,
        superuser: login("postgres", "a"),
        replication: login("podgres_replication", "a"),
        database: String::new(),
        initdb_arguments: Vec::new(),
        host_auth_method: String::new(),
        initdb_scripts: PathBuf::new(),
        user_configuration: Some(folder.join("conf.d")),
        tls: Some(folder.join("tls")),
        stop_timeout: Duration::from_secs(3),
        gated: false,
        archive_command: None,
        restore_program: None,
    }
}
