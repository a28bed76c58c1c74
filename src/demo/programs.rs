//! Puts programs where the pods' user can run them: podgres itself, as its install container does, and
//! PostgreSQL if it lies behind a directory that this user cannot enter.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::DemoError;
use super::layout::Layout;
use super::user::check_enters;
use crate::postgres::user::ServerUser;

/// Says which installation a copy is of.
const SOURCE_FILE: &str = "copied-from";

/// Copies the podgres binary; running processes keep the one that they have.
///
/// # Errors
/// The binary cannot be read, or not be written to its place.
pub(super) fn install(binary: &Path, layout: &Layout) -> Result<PathBuf, DemoError> {
    let target = layout.binary();
    let staged = target.with_extension("new");
    fs::copy(binary, &staged)
        .and_then(|_| fs::set_permissions(&staged, Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&staged, &target))
        .map_err(DemoError::file("install", &target))?;
    Ok(target)
}

/// The directory of PostgreSQL's programs, or of their copy if `user` could not reach them.
///
/// # Errors
/// The installation is not readable or the copy not writable.
pub(super) fn reachable(
    program_directory: &Path,
    directory: &Path,
    user: Option<&ServerUser>,
) -> Result<PathBuf, DemoError> {
    let found = fs::canonicalize(program_directory).map_err(DemoError::file("find", program_directory))?;
    if check_enters(user, &found).is_ok() {
        return Ok(found);
    }
    let root = found.parent().unwrap_or(&found);
    let parts = Parts::of(root);
    let target = directory.join("postgresql");
    let copied = target
        .join(parts.installation)
        .join(found.file_name().unwrap_or_default());
    let source = found.as_os_str().as_encoded_bytes();
    if fs::read(target.join(SOURCE_FILE)).is_ok_and(|earlier| earlier == source) {
        return Ok(copied);
    }
    let staged = directory.join("postgresql.new");
    copy_parts(&parts, &staged)
        .and_then(|()| fs::write(staged.join(SOURCE_FILE), source))
        .and_then(|()| remove(&target))
        .and_then(|()| fs::rename(&staged, &target))
        .map_err(DemoError::file("copy", root))?;
    Ok(copied)
}

/// What must be copied, relative to a common base.
struct Parts<'a> {
    base: &'a Path,
    installation: &'a Path,
    /// A wheel's shared libraries are beside its package, in `<package>.libs`, and found from there by the
    /// programs' run path (auditwheel's convention); so the way from the one to the other must stay.
    libraries: Option<PathBuf>,
}

impl<'a> Parts<'a> {
    fn of(root: &'a Path) -> Self {
        for package in root.ancestors() {
            let (Some(base), Some(name)) = (package.parent(), package.file_name()) else {
                break;
            };
            let mut libraries = name.to_owned();
            libraries.push(".libs");
            if base.join(&libraries).is_dir() {
                let installation = root.strip_prefix(base).unwrap_or(root);
                return Self {
                    base,
                    installation,
                    libraries: Some(libraries.into()),
                };
            }
        }
        let base = root.parent().unwrap_or(root);
        Self {
            base,
            installation: root.strip_prefix(base).unwrap_or(root),
            libraries: None,
        }
    }
}

fn copy_parts(parts: &Parts<'_>, staged: &Path) -> io::Result<()> {
    remove(staged)?;
    let libraries = parts.libraries.as_deref();
    for part in [Some(parts.installation), libraries].into_iter().flatten() {
        copy_tree(&parts.base.join(part), &staged.join(part))?;
    }
    Ok(())
}

/// Copies directories, files with their execute bits, and links as they are; other kinds are left out.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
            let mode = entry.metadata()?.permissions().mode();
            let open = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(&target, Permissions::from_mode(open))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wheel as it lies in a virtual environment, behind a folder of mode `mode`.
    fn wheel(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a directory");
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).expect("open");
        let home = root.path().join("home");
        let bin = home.join("site-packages/pgserver/pginstall/bin");
        let libraries = home.join("site-packages/pgserver.libs");
        for directory in [&bin, &libraries] {
            fs::create_dir_all(directory).expect("a directory");
        }
        fs::write(bin.join("postgres"), "program").expect("a program");
        fs::set_permissions(bin.join("postgres"), Permissions::from_mode(0o700)).expect("executable");
        symlink("postgres", bin.join("postmaster")).expect("a link");
        fs::write(libraries.join("libpq.so.5"), "library").expect("a library");
        fs::set_permissions(&home, Permissions::from_mode(mode)).expect("its mode");
        (root, bin)
    }

    fn stranger() -> ServerUser {
        ServerUser {
            name: "nobody".to_owned(),
            uid: 65_534,
            gid: 65_534,
        }
    }

    #[test]
    fn an_installation_that_can_be_reached_is_used_where_it_is() {
        let (root, bin) = wheel(0o755);
        let directory = root.path().join("demo");
        fs::create_dir(&directory).expect("a directory");
        let found = reachable(&bin, &directory, Some(&stranger())).expect("programs");
        assert_eq!(found, fs::canonicalize(&bin).expect("a path"));
        let (_root, closed) = wheel(0o700);
        assert!(
            reachable(&closed, &directory, None)
                .expect("one's own")
                .ends_with("pginstall/bin")
        );
        assert_eq!(fs::read_dir(&directory).expect("entries").count(), 0);
    }

    #[test]
    fn one_that_cannot_is_copied_once_with_the_libraries_of_its_wheel() {
        let (root, bin) = wheel(0o700);
        let directory = root.path().join("demo");
        fs::create_dir(&directory).expect("a directory");
        let copy = || reachable(&bin, &directory, Some(&stranger())).expect("programs");
        let found = copy();
        check_enters(Some(&stranger()), &found).expect("reachable");
        let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(&found.join("postmaster")), 0o755);
        // As the programs' run path says: $ORIGIN/../../../pgserver.libs
        let library = found.join("../../../pgserver.libs/libpq.so.5");
        assert_eq!(
            (fs::read(&library).expect("a library"), mode(&library)),
            (b"library".to_vec(), 0o644)
        );
        fs::write(found.join("mark"), "").expect("a mark");
        assert_eq!(copy(), found);
        assert!(found.join("mark").exists(), "copied twice");
    }
}
