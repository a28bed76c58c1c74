//! The PostgreSQL server's settings: the official image's variables, the two logins, the mounted folders.

use std::path::{Path, PathBuf};

use clap::Args;

use super::backup::StoreArguments;
use super::pod::{LeadershipArgument, Pod, variable};
use super::{Environment, InvalidSetting};
use crate::postgres::{Login, Secret, ServerSettings};

/// Flags of the commands that touch the data directory.
#[derive(Args, Clone, Debug)]
pub struct ServerArguments {
    /// Folder with initdb, postgres, pg_basebackup [default: found on PATH and in the usual places]
    #[arg(long, env = "PG_BINDIR", visible_aliases = ["bindir", "pg-bindir"])]
    pub program_dir: Option<PathBuf>,
    /// PostgreSQL's unix socket folders, separated by commas
    #[arg(long, env = "PODGRES_SOCKET_DIRECTORIES", value_delimiter = ',')]
    pub socket_directories: Vec<PathBuf>,
    /// Mounted folder with your *.conf files and pg_hba.conf
    #[arg(
        long,
        env = "PODGRES_CONFIGURATION_DIR",
        default_value = "/etc/podgres/conf.d"
    )]
    pub configuration_dir: PathBuf,
    /// Mounted folder with tls.crt, tls.key and ca.crt
    #[arg(long, env = "PODGRES_TLS_DIR", default_value = "/etc/podgres/tls")]
    pub tls_dir: PathBuf,
    /// Where WAL is archived: a folder, s3://bucket/prefix, azure://container/prefix or gs://bucket/prefix [default: nowhere]
    #[arg(long, env = "PODGRES_ARCHIVE_DESTINATION")]
    pub archive_destination: Option<String>,
    /// Where the backup is that a new cluster begins with, instead of an empty database: as for PODGRES_ARCHIVE_DESTINATION
    #[arg(long, env = "PODGRES_RESTORE_FROM")]
    pub restore_from: Option<String>,
    /// How far: the last commit before a time [default: all archived WAL]
    #[arg(long, env = "PODGRES_RESTORE_TO_TIME")]
    pub restore_to_time: Option<String>,
    #[command(flatten)]
    pub store: StoreArguments,
}

impl ServerArguments {
    /// The mounted TLS folder, if there is one.
    pub fn tls_directory(&self) -> Option<PathBuf> {
        existing(&self.tls_dir)
    }

    /// The mounted folder with the user's configuration, if there is one.
    pub fn configuration_directory(&self) -> Option<PathBuf> {
        existing(&self.configuration_dir)
    }
}

const INITDB_SCRIPTS: &str = "/docker-entrypoint-initdb.d";
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// Everything but the program folder and the PGDATA default, which depend on the PostgreSQL found.
pub struct ServerInputs<'a> {
    pub pod: &'a Pod,
    pub arguments: &'a ServerArguments,
    pub program_directory: PathBuf,
    pub major_version: u32,
}

/// Builds the settings of this pod's server.
pub fn resolve(
    inputs: ServerInputs<'_>,
    environment: &impl Environment,
) -> Result<ServerSettings, InvalidSetting> {
    let ServerInputs {
        pod,
        arguments,
        program_directory,
        major_version,
    } = inputs;
    let superuser = superuser(environment)?;
    let data_directory =
        variable(environment, "PGDATA").map_or_else(|| default_data_directory(major_version), PathBuf::from);
    if !data_directory.is_absolute() {
        return Err(InvalidSetting::new(
            "PGDATA",
            format!("\"{}\" is not absolute", data_directory.display()),
            "give the full path",
        ));
    }
    let run_directory = pod.arguments.run_dir.clone();
    let listen_addresses = pod
        .arguments
        .listen_address
        .map_or_else(|| "*".to_owned(), |address| address.to_string());
    let words = value(environment, "POSTGRES_INITDB_ARGS")?.unwrap_or_default();
    Ok(ServerSettings {
        member: pod.name.to_string(),
        program_directory,
        socket_directories: socket_directories(arguments, &run_directory),
        run_directory,
        listen_addresses,
        local_address: pod.local_address,
        port: pod.arguments.postgres_port,
        replication: replication(environment, &superuser)?,
        database: value(environment, "POSTGRES_DB")?.unwrap_or_else(|| superuser.user.clone()),
        superuser,
        initdb_arguments: split_words(&words)?,
        host_auth_method: variable(environment, "POSTGRES_HOST_AUTH_METHOD")
            .unwrap_or_else(|| "scram-sha-256".to_owned()),
        initdb_scripts: variable(environment, "PODGRES_INITDB_SCRIPTS")
            .map_or_else(|| PathBuf::from(INITDB_SCRIPTS), PathBuf::from),
        user_configuration: arguments.configuration_directory(),
        tls: arguments.tls_directory(),
        stop_timeout: pod.arguments.stop_timeout,
        gated: pod.arguments.leadership == LeadershipArgument::Lease,
        archive_command: None,
        restore_program: None,
        data_directory,
    })
}

/// The logins alone: what the sidecar needs.
pub fn logins(environment: &impl Environment) -> Result<(Login, Login), InvalidSetting> {
    let superuser = superuser(environment)?;
    let replication = replication(environment, &superuser)?;
    Ok((superuser, replication))
}

/// What the members sign with, if it is given: for those who are no member.
pub fn replication_secret(environment: &impl Environment) -> Result<Option<Secret>, InvalidSetting> {
    secret(environment, "PODGRES_REPLICATION_PASSWORD")
}

fn superuser(environment: &impl Environment) -> Result<Login, InvalidSetting> {
    let password = secret(environment, "POSTGRES_PASSWORD")?.ok_or_else(|| {
        InvalidSetting::new(
            "POSTGRES_PASSWORD_FILE",
            "not set",
            "mount a Secret and give the path of the superuser's password, or set POSTGRES_PASSWORD",
        )
    })?;
    Ok(Login {
        user: value(environment, "POSTGRES_USER")?.unwrap_or_else(|| "postgres".to_owned()),
        password,
    })
}

fn replication(environment: &impl Environment, superuser: &Login) -> Result<Login, InvalidSetting> {
    let user =
        value(environment, "PODGRES_REPLICATION_USER")?.unwrap_or_else(|| "podgres_replication".to_owned());
    if user == superuser.user {
        return Err(InvalidSetting::new(
            "PODGRES_REPLICATION_USER",
            format!("\"{user}\" is the superuser"),
            "give replication a role of its own",
        ));
    }
    let password =
        secret(environment, "PODGRES_REPLICATION_PASSWORD")?.unwrap_or_else(|| superuser.password.clone());
    Ok(Login { user, password })
}

/// A value given as `KEY` or as a file in `KEY_FILE`, never both (the official image's rule).
fn value(environment: &impl Environment, key: &str) -> Result<Option<String>, InvalidSetting> {
    let file_key = format!("{key}_FILE");
    match (variable(environment, key), variable(environment, &file_key)) {
        (Some(_), Some(_)) => Err(InvalidSetting::new(
            key,
            format!("both {key} and {file_key} are set"),
            "set one of them",
        )),
        (Some(value), None) => Ok(Some(value)),
        (None, Some(path)) => std::fs::read_to_string(&path)
            .map(|text| Some(text.trim_end_matches(['\n', '\r']).to_owned()))
            .map_err(|error| {
                InvalidSetting::new(
                    &file_key,
                    format!("could not read \"{path}\": {error}"),
                    "is the Secret mounted?",
                )
            }),
        (None, None) => Ok(None),
    }
}

/// A password: ends of line at its end are not part of it, others cannot be (a passfile has one line).
fn secret(environment: &impl Environment, key: &str) -> Result<Option<Secret>, InvalidSetting> {
    let Some(text) = value(environment, key)? else {
        return Ok(None);
    };
    let text = text.trim_end_matches(['\n', '\r']);
    let invalid = |problem: &str| {
        Err(InvalidSetting::new(
            key,
            problem,
            "passwords are one line of text",
        ))
    };
    if text.is_empty() {
        return invalid("the password is empty");
    }
    if text.contains(['\n', '\r', '\0']) {
        return invalid("the password contains an end of line");
    }
    Ok(Some(Secret::new(text.to_owned())))
}

/// As the official image has it: version 18 moved the data below a folder of its own.
fn default_data_directory(major_version: u32) -> PathBuf {
    if major_version >= 18 {
        PathBuf::from(format!("/var/lib/postgresql/{major_version}/docker"))
    } else {
        PathBuf::from("/var/lib/postgresql/data")
    }
}

fn socket_directories(arguments: &ServerArguments, run_directory: &Path) -> Vec<PathBuf> {
    if !arguments.socket_directories.is_empty() {
        return arguments.socket_directories.clone();
    }
    let usual = PathBuf::from(DEFAULT_SOCKET_DIRECTORY);
    let mut directories = vec![run_directory.to_owned()];
    if rustix::fs::access(&usual, rustix::fs::Access::WRITE_OK).is_ok() {
        directories.push(usual);
    }
    directories
}

fn existing(directory: &Path) -> Option<PathBuf> {
    directory.is_dir().then(|| directory.to_owned())
}

/// Splits as a shell would: white space, single and double quotes, backslash. No expansion.
fn split_words(text: &str) -> Result<Vec<String>, InvalidSetting> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    if quote.is_some() {
        return Err(InvalidSetting::new(
            "POSTGRES_INITDB_ARGS",
            format!("\"{text}\": a quote is not closed"),
            "close it",
        ));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Table(BTreeMap<&'static str, String>);

    impl Environment for Table {
        fn get(&self, key: &str) -> Option<String> {
            self.0.get(key).cloned()
        }
    }

    fn table(pairs: &[(&'static str, &str)]) -> Table {
        Table(
            pairs
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn row_71_a_trailing_newline_is_not_part_of_a_password() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("password");
        std::fs::write(&path, "it's a \"pass\\word\": ü \n").expect("write");
        let environment = table(&[("POSTGRES_PASSWORD_FILE", path.to_str().expect("utf-8"))]);
        let (superuser, replication) = logins(&environment).expect("valid");
        assert_eq!(superuser.password.expose(), "it's a \"pass\\word\": ü ");
        assert_eq!(replication.password, superuser.password);
        assert_eq!(replication.user, "podgres_replication");
        assert!(
            !format!("{superuser:?}").contains("it's"),
            "a password must not be printable"
        );
    }

    #[test]
    fn bad_secrets_are_named() {
        let both = table(&[("POSTGRES_PASSWORD", "a"), ("POSTGRES_PASSWORD_FILE", "/x")]);
        let error = logins(&both).expect_err("both forms");
        assert_eq!(
            error.to_string(),
            "invalid value for POSTGRES_PASSWORD: both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are set"
        );
        assert!(logins(&table(&[])).is_err(), "no password");
        assert!(
            logins(&table(&[("POSTGRES_PASSWORD", "\n")])).is_err(),
            "empty password"
        );
        assert!(
            logins(&table(&[("POSTGRES_PASSWORD", "a\nb")])).is_err(),
            "two lines"
        );
        assert!(
            logins(&table(&[("POSTGRES_PASSWORD_FILE", "/nowhere/at/all")])).is_err(),
            "missing file"
        );
        let same = table(&[
            ("POSTGRES_PASSWORD", "a"),
            ("PODGRES_REPLICATION_USER", "postgres"),
        ]);
        assert!(logins(&same).is_err(), "replication as superuser");
    }

    #[test]
    fn initdb_arguments_split_as_a_shell_would() {
        let words = split_words("--locale=C  -c 'shared_buffers=1 MB' \"a\\\"b\" c\\ d ''").expect("valid");
        assert_eq!(
            words,
            ["--locale=C", "-c", "shared_buffers=1 MB", "a\"b", "c d", ""]
        );
        assert!(split_words("'open").is_err());
    }

    #[test]
    fn version_18_has_its_own_data_directory() {
        assert_eq!(
            default_data_directory(17),
            PathBuf::from("/var/lib/postgresql/data")
        );
        assert_eq!(
            default_data_directory(18),
            PathBuf::from("/var/lib/postgresql/18/docker")
        );
    }
}
