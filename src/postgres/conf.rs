//! Generates the server's configuration in the run directory: `postgresql.conf`, `pg_hba.conf`, the
//! passfile and copies of the TLS files.
//!
//! Order, the later wins: podgres' defaults, PGDATA's own `postgresql.conf`, the user's mounted files,
//! podgres' own lines. Never touches PGDATA but for [`auto_conf`]. The user's files are read from a copy. PostgreSQL
//! itself checks the result before it takes the old one's place.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::conninfo::receiver_conninfo;
use super::error::{ConfigurationError, ProgramError};
use super::process::{Locale, command};
use super::{ServerSettings, accepted, auto_conf, hba, passfile, program, staging, tls_files, user_copy};
use crate::core::supervision::{GATE_NAME, ServerRole};
use crate::core::synchronous_names;
use crate::files::{
    FileContext as _, FileError, create_private_directory, with_suffix, write_generated, write_private,
};

const MIB: u64 = 1 << 20;
/// A slot may hold back a quarter of the volume, within these bounds.
const SLOT_WAL_BOUNDS_BYTES: (u64, u64) = (256 * MIB, 64 << 30);
/// What helps a standby that comes back without its slot, within a quarter of what slots may hold.
const KEPT_WAL_BOUNDS_BYTES: (u64, u64) = (64 * MIB, 128 * MIB);
/// Between checkpoints an eighth of the volume, and PostgreSQL's own default where there is room.
const MAX_WAL_BOUNDS_BYTES: (u64, u64) = (64 * MIB, 1 << 30);
/// `postgres -C` reads files only.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// What works for a replicated server and may be overruled by the user.
///
/// `wal_receiver_timeout`: a frozen upstream is noticed within 5 s (the receiver asks it for a sign of
/// life half way), so that "streaming" is never claimed for longer than that.
const DEFAULTS: &[(&str, &str)] = &[
    ("wal_level", "replica"),
    ("max_wal_senders", "16"),
    ("max_replication_slots", "16"),
    ("wal_log_hints", "on"),
    ("wal_compression", "on"),
    ("password_encryption", "scram-sha-256"),
    ("wal_receiver_timeout", "5s"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_sender_timeout", "10s"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
];

/// With an archive: how much at most is lost with the volume of a quiet server. May be overruled by the user.
const ARCHIVE_TIMEOUT: (&str, &str) = ("archive_timeout", "60s");

/// How soon a standby tries again: under a Lease a new primary is worth being found at once.
const RETRY_INTERVAL: &str = "1s";
const GATED_RETRY_INTERVAL: &str = "200ms";

/// Where the generated file is: `<run directory>/postgresql.conf`.
#[must_use]
pub fn path(settings: &ServerSettings) -> PathBuf {
    settings.run_directory.join("postgresql.conf")
}

/// Whether settings that endanger the cluster are refused, or only warned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Danger {
    Refused,
    WarnedOf,
}

/// Writes everything that a server in `role` reads, before a start or a reload.
///
/// # Errors
/// Files cannot be read or written, PostgreSQL does not accept the result, or the user's settings
/// endanger the cluster. The previous `postgresql.conf` is then still in place. PostgreSQL is not asked again if
/// nothing but the role differs from what it accepted last, since a failover waits for this.
pub async fn write(settings: &ServerSettings, role: &ServerRole) -> Result<(), ConfigurationError> {
    create_private_directory(&settings.run_directory)?;
    let staged = user_copy::stage(settings)?;
    let candidate = prepare(&staged, role, Danger::Refused)
        .await
        .map_err(|error| as_mounted(error, settings, &staged))?;
    user_copy::keep(settings, &staged)?;
    Ok(fs::rename(&candidate, path(settings)).file("rename file", &candidate)?)
}

/// The same from what was accepted last, as [`user_copy::last_accepted`] gives it. What endangers the cluster beside it, since
/// `ALTER SYSTEM` or PGDATA's own file says so, endangers it less than a server that cannot change its role.
///
/// # Errors
/// As [`write`], but for that.
pub(super) async fn write_accepted(
    accepted: &ServerSettings,
    role: &ServerRole,
) -> Result<(), ConfigurationError> {
    let candidate = prepare(accepted, role, Danger::WarnedOf).await?;
    Ok(fs::rename(&candidate, path(accepted)).file("rename file", &candidate)?)
}

/// Everything but the last step, by which the returned file gets its name.
async fn prepare(
    settings: &ServerSettings,
    role: &ServerRole,
    danger: Danger,
) -> Result<PathBuf, ConfigurationError> {
    passfile::write(settings)?;
    auto_conf::strip(settings, &settings.data_directory)?;
    if read_only(role) {
        auto_conf::strip_read_only_off(&settings.data_directory)?;
    }
    let candidate = with_suffix(&path(settings), ".candidate");
    write_generated(&candidate, text(settings, role)?.as_bytes())?;
    let neutral = text(settings, &ServerRole::Standby { upstream: None })?;
    let inputs = accepted::digest(settings, &neutral)?;
    if !accepted::is_known(inputs) {
        match check(settings, &candidate).await {
            Err(error @ ConfigurationError::Setting { .. }) if danger == Danger::WarnedOf => {
                tracing::warn!("{error}");
            }
            checked => {
                checked?;
                accepted::remember(inputs);
            }
        }
    }
    if let Some(folder) = &settings.tls {
        tls_files::copy(settings, folder)?;
    }
    hba::write(settings)?;
    Ok(candidate)
}

/// PostgreSQL has read a copy; who is to change a file knows it by where it is mounted.
fn as_mounted(
    error: ConfigurationError,
    settings: &ServerSettings,
    staged: &ServerSettings,
) -> ConfigurationError {
    match (error, &settings.user_configuration, &staged.user_configuration) {
        (ConfigurationError::Rejected { output }, Some(mounted), Some(copy)) => {
            let [mounted, copy] = [mounted, copy].map(|folder| folder.to_string_lossy());
            ConfigurationError::Rejected {
                output: output.replace(&*copy, &mounted),
            }
        }
        (error, ..) => error,
    }
}

fn text(settings: &ServerSettings, role: &ServerRole) -> Result<String, ConfigurationError> {
    let mut text = String::from("# Written by podgres at every start and reload: changes here are lost.\n");
    text.push_str("\n# Defaults, which the files below may overrule.\n");
    for (name, value) in DEFAULTS {
        text.push_str(&line(name, value)?);
    }
    if staging::syncfs_reports_errors() {
        text.push_str(&line("recovery_init_sync_method", "syncfs")?);
    }
    let retry_interval = if settings.gated {
        GATED_RETRY_INTERVAL
    } else {
        RETRY_INTERVAL
    };
    text.push_str(&line("wal_retrieve_retry_interval", retry_interval)?);
    if settings.archive_command.is_some() {
        text.push_str(&line(ARCHIVE_TIMEOUT.0, ARCHIVE_TIMEOUT.1)?);
    }
    let volume = staging::total_bytes(&settings.data_directory)?;
    for (name, megabytes) in volume_defaults(volume) {
        text.push_str(&line(name, &format!("{megabytes}MB"))?);
    }
    text.push_str("\n# The data directory's own file, then the user's.\n");
    text.push_str(&include(&settings.data_directory.join("postgresql.conf"), true)?);
    text.push_str(&user_includes(settings)?);
    text.push_str("\n# What the cluster depends on.\n");
    for (name, value) in owned(settings, role) {
        text.push_str(&line(name, &value)?);
    }
    if let Some(slots) = synchronized_standby_slots(settings, role)? {
        text.push_str(&line("synchronized_standby_slots", &slots)?);
    }
    Ok(text)
}

/// WAL limits in megabytes that keep a small volume from filling up.
fn volume_defaults(volume_bytes: u64) -> [(&'static str, u64); 4] {
    let within = |bytes: u64, (low, high): (u64, u64)| bytes.clamp(low, high);
    let slots = within(volume_bytes / 4, SLOT_WAL_BOUNDS_BYTES);
    let max_wal = within(volume_bytes / 8, MAX_WAL_BOUNDS_BYTES);
    [
        ("max_slot_wal_keep_size", slots / MIB),
        ("wal_keep_size", within(slots / 4, KEPT_WAL_BOUNDS_BYTES) / MIB),
        ("max_wal_size", max_wal / MIB),
        ("min_wal_size", (max_wal / 4).clamp(32 * MIB, 80 * MIB) / MIB),
    ]
}

fn owned(settings: &ServerSettings, role: &ServerRole) -> Vec<(&'static str, String)> {
    let display = |path: &Path| path.to_string_lossy().into_owned();
    let upstream = match role {
        ServerRole::Primary { .. } => None,
        ServerRole::Standby { upstream } => upstream.as_ref(),
    };
    let mut lines = vec![
        ("data_directory", display(&settings.data_directory)),
        ("hba_file", display(&hba::path(settings))),
        ("listen_addresses", settings.listen_addresses.clone()),
        ("port", settings.port.to_string()),
        (
            "unix_socket_directories",
            socket_directories(&settings.socket_directories),
        ),
        ("cluster_name", settings.member.clone()),
        ("hot_standby", "on".to_owned()),
        ("recovery_target_timeline", "latest".to_owned()),
        (
            "primary_conninfo",
            upstream.map_or_else(String::new, |upstream| receiver_conninfo(settings, upstream)),
        ),
        (
            "primary_slot_name",
            upstream.map_or_else(String::new, |upstream| upstream.slot.clone()),
        ),
        (
            "synchronous_standby_names",
            synchronous_standby_names(settings, role),
        ),
    ];
    if read_only(role) {
        lines.push((auto_conf::READ_ONLY, "on".to_owned()));
    }
    lines.extend(archive(settings));
    if settings.tls.is_some() {
        let tls = tls_files::copies(settings);
        lines.extend([
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", display(&tls.certificate)),
            ("ssl_key_file", display(&tls.key)),
            ("ssl_ca_file", display(&tls.authority)),
        ]);
    }
    lines
}

/// How WAL is archived. On the command line too, for as long as the server runs: with another command, that `ALTER SYSTEM` gave,
/// WAL would count as archived and be recycled.
pub(super) fn archive(settings: &ServerSettings) -> Vec<(&'static str, String)> {
    // From an archive a standby would take WAL of a primary that it has promised not to follow, and never knows when it has all.
    let nowhere = ("restore_command", String::new());
    let Some(command) = &settings.archive_command else {
        return if settings.gated { vec![nowhere] } else { Vec::new() };
    };
    vec![
        // A standby keeps what the primary has not archived: after a failover nobody else has it.
        ("archive_mode", "always".to_owned()),
        ("archive_command", command.clone()),
        ("archive_library", String::new()),
        nowhere,
    ]
}

/// Under a Lease a standby that somebody else promotes acknowledges nothing: its gate is closed.
fn synchronous_standby_names(settings: &ServerSettings, role: &ServerRole) -> String {
    match role {
        ServerRole::Primary {
            synchronous_standby_names,
            ..
        } => synchronous_standby_names.clone(),
        ServerRole::Standby { .. } if settings.gated => format!("FIRST 1 ({GATE_NAME})"),
        ServerRole::Standby { .. } => String::new(),
    }
}

/// See [`synchronous_names::slots`]; `None` where commits wait for no standby, and before PostgreSQL 17.
fn synchronized_standby_slots(
    settings: &ServerSettings,
    role: &ServerRole,
) -> Result<Option<String>, FileError> {
    let slots = synchronous_names::slots(&synchronous_standby_names(settings, role));
    if slots.is_empty() {
        return Ok(None);
    }
    let file = settings.data_directory.join("PG_VERSION");
    let version = fs::read_to_string(&file).file("read file", &file)?;
    let knows = version.trim().parse().is_ok_and(|major: u32| major >= 17);
    Ok(knows.then(|| slots.join(", ")))
}

fn read_only(role: &ServerRole) -> bool {
    matches!(role, ServerRole::Primary { read_only: true, .. })
}

/// A list in which commas, quotes and spaces of a path mean themselves.
pub(super) fn socket_directories(directories: &[PathBuf]) -> String {
    let quoted: Vec<String> = directories
        .iter()
        .map(|path| format!("\"{}\"", path.to_string_lossy().replace('"', "\"\"")))
        .collect();
    quoted.join(", ")
}

/// An `include` line for each `*.conf` in the user's folder, by name, `pg_hba.conf` excepted.
pub(super) fn user_includes(settings: &ServerSettings) -> Result<String, ConfigurationError> {
    let Some(folder) = &settings.user_configuration else {
        return Ok(String::new());
    };
    let files = user_files(folder)?.into_iter();
    let not_hba = |file: &PathBuf| file.file_name() != Some(hba::USER_FILE.as_ref());
    files.filter(not_hba).map(|file| include(&file, false)).collect()
}

/// Each `*.conf` in the user's folder, by name.
pub(super) fn user_files(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).file("read directory", folder)? {
        let path = entry.file("read directory", folder)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let wanted = !hidden && path.extension().is_some_and(|extension| extension == "conf");
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `include '…'`.
pub(super) fn include(file: &Path, if_exists: bool) -> Result<String, ConfigurationError> {
    let word = if if_exists { "include_if_exists" } else { "include" };
    Ok(format!(
        "{word} {}\n",
        quote("file name", &file.to_string_lossy())?
    ))
}

/// `name = '…'`.
pub(super) fn line(name: &'static str, value: &str) -> Result<String, ConfigurationError> {
    let mut line = String::new();
    // Writing to a String cannot fail.
    writeln!(line, "{name} = {}", quote(name, value)?).ok();
    Ok(line)
}

/// A string of the configuration file: quotes doubled, backslashes escaped (`GUC_scanstr`).
fn quote(what: &'static str, value: &str) -> Result<String, ConfigurationError> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(ConfigurationError::LineBreak { what });
    }
    Ok(format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

/// Lets PostgreSQL read `file` as it would at a start, and looks at what must not be.
async fn check(settings: &ServerSettings, file: &Path) -> Result<(), ConfigurationError> {
    let refuse = |name, value: &str, detail| {
        Err(ConfigurationError::Setting {
            name,
            value: value.to_owned(),
            detail,
        })
    };
    let value = effective(settings, file, "max_slot_wal_keep_size").await?;
    if value.starts_with('-') {
        return refuse(
            "max_slot_wal_keep_size",
            &value,
            "the slot of a standby that is away would fill the volume; set a limit",
        );
    }
    let value = effective(settings, file, "wal_level").await?;
    if value == "minimal" {
        return refuse("wal_level", &value, "standbys need \"replica\" or \"logical\"");
    }
    Ok(())
}

/// The value that a server started with `file` would use, `postgresql.auto.conf` included.
async fn effective(
    settings: &ServerSettings,
    file: &Path,
    name: &'static str,
) -> Result<String, ConfigurationError> {
    let mut config_file = std::ffi::OsString::from("config_file=");
    config_file.push(file);
    let mut postgres = command(&settings.program("postgres"), Locale::C, Signal::KILL);
    postgres
        .args(["-C", name, "-D"])
        .arg(&settings.data_directory)
        .arg("-c")
        .arg(config_file);
    match program::run(postgres, CHECK_LIMIT).await {
        Ok(lines) => Ok(lines
            .last()
            .map_or_else(String::new, |line| line.trim().to_owned())),
        Err(ProgramError::Failed { output, .. }) => Err(ConfigurationError::Rejected { output }),
        Err(error) => Err(ConfigurationError::Check(error)),
    }
}

/// Comments out the value of `max_wal_size` and `min_wal_size` that initdb wrote, so that the
/// volume's size decides; what the user asked of initdb is another value and stays.
pub(super) fn release_initdb_defaults(directory: &Path) -> Result<(), FileError> {
    let path = directory.join("postgresql.conf");
    let text = fs::read_to_string(&path).file("read file", &path)?;
    let text = text
        .replace("\nmax_wal_size = 1GB", "\n#max_wal_size = 1GB")
        .replace("\nmin_wal_size = 80MB", "\n#min_wal_size = 80MB");
    write_private(&path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::fixtures::settings;

    /// A standby took WAL of a primary that it had promised not to follow, from the user's own archive.
    #[test]
    fn a_users_restore_command_led_past_the_promise() {
        let folder = tempfile::tempdir().expect("folder");
        let mut settings = settings(folder.path());
        for (gated, expected) in [(false, vec![]), (true, vec![("restore_command", String::new())])] {
            settings.gated = gated;
            assert_eq!(archive(&settings), expected, "{gated}");
        }
    }

    #[test]
    fn row_73_wal_limits_follow_the_volume() {
        let of = |bytes| volume_defaults(bytes).map(|(_, megabytes)| megabytes);
        assert_eq!(of(1 << 30), [256, 64, 128, 32]);
        assert_eq!(of(100 << 30), [25_600, 128, 1024, 80]);
        assert_eq!(of(10 << 40), [65_536, 128, 1024, 80]);
    }

    #[test]
    fn values_mean_themselves() {
        assert_eq!(line("port", "5432").expect("line"), "port = '5432'\n");
        assert_eq!(
            line("primary_conninfo", r"user='o\'b'").expect("line"),
            "primary_conninfo = 'user=''o\\\\''b'''\n"
        );
        assert!(line("cluster_name", "a\nfsync = off").is_err());
        let directories = [PathBuf::from("/a,b"), PathBuf::from("/c\"d")];
        assert_eq!(socket_directories(&directories), r#""/a,b", "/c""d""#);
    }
}
