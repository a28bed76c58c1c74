//! Where everything of a demo lies, and whose it is.
//!
//! The pods' volumes, logs and secrets in the demo's directory; what must have a short name (unix
//! sockets may have 107 bytes) under `/tmp` if that directory's name is long.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::DemoError;
use super::user;
use crate::core::fnv::fnv_1a;
use crate::core::supervision::SOCKET_NAME;
use crate::postgres::user::ServerUser;

/// The longest run directory: 107 bytes less a slash and the longest name of a socket in it.
const RUN_DIRECTORY_BYTES: usize = 107 - 1 - SOCKET_NAME.len();

/// The directories and files of one demo.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Absolute and without links.
    directory: PathBuf,
    /// Where the sockets are.
    sockets: PathBuf,
    user: Option<ServerUser>,
}

/// Where the emptyDir of a pod is, in a demo whose directory is here: the one or the other.
#[must_use]
pub fn run_directories(directory: &Path, pod: &str) -> [PathBuf; 2] {
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    [
        directory.join("pods").join(pod).join("run"),
        short_directory(&directory).join(pod),
    ]
}

fn short_directory(directory: &Path) -> PathBuf {
    let hash = hash_of(directory);
    let folded = (hash ^ (hash >> 32)) & 0xffff_ffff;
    Path::new("/tmp").join(format!("podgres-{folded:08x}"))
}

impl Layout {
    /// Makes what is missing below `directory`, which the pods' user must be able to enter.
    ///
    /// `longest_pod` is a pod name as long as any will be.
    ///
    /// # Errors
    /// A directory cannot be made, or not be entered by the user.
    pub(super) fn prepare(
        directory: &Path,
        longest_pod: &str,
        user: Option<ServerUser>,
    ) -> Result<Self, DemoError> {
        make(directory).map_err(DemoError::file("create", directory))?;
        let directory = fs::canonicalize(directory).map_err(DemoError::file("find", directory))?;
        user::check_enters(user.as_ref(), &directory)?;
        let short = short_directory(&directory);
        let near = directory.join("pods").join(longest_pod).join("run");
        let fits = near.as_os_str().len() <= RUN_DIRECTORY_BYTES;
        let layout = Self {
            sockets: if fits { directory.join("pods") } else { short },
            directory,
            user,
        };
        for public in ["bin", "pods", "volumes"] {
            make_directory(&layout.directory.join(public), 0o755, None)?;
        }
        make_directory(&layout.sockets, 0o755, None)?;
        make_directory(&layout.directory.join("secret"), 0o700, layout.user.as_ref())?;
        Ok(layout)
    }

    #[must_use]
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A number that differs between demos in different directories, and stays.
    #[must_use]
    pub(super) fn hash(&self) -> u64 {
        hash_of(&self.directory)
    }

    #[must_use]
    pub(super) fn control_socket(&self) -> PathBuf {
        let near = self.directory.join("demo.sock");
        if near.as_os_str().len() <= RUN_DIRECTORY_BYTES {
            near
        } else {
            self.sockets.join("demo.sock")
        }
    }

    #[must_use]
    pub(super) fn password_file(&self) -> PathBuf {
        self.directory.join("secret").join("password")
    }

    /// For the pods' Kubernetes client, and kubectl.
    #[must_use]
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// The password once more, in the form that libpq reads by itself.
    #[must_use]
    pub(super) fn passfile(&self) -> PathBuf {
        self.directory.join("secret").join("pgpass")
    }

    #[must_use]
    pub(super) fn binary(&self) -> PathBuf {
        self.directory.join("bin").join("podgres")
    }

    /// Where a pod's processes work and its logs are.
    #[must_use]
    pub(super) fn pod(&self, pod: &str) -> PathBuf {
        self.directory.join("pods").join(pod)
    }

    /// The pod's emptyDir.
    #[must_use]
    pub(super) fn run(&self, pod: &str) -> PathBuf {
        if self.near() {
            self.pod(pod).join("run")
        } else {
            self.sockets.join(pod)
        }
    }

    /// Whether the sockets are in the demo's own directory.
    fn near(&self) -> bool {
        self.sockets.starts_with(&self.directory)
    }

    /// The pod's persistent volume, named as a claim of the template `data` would be.
    #[must_use]
    pub(super) fn volume(&self, pod: &str) -> PathBuf {
        self.directory.join("volumes").join(format!("data-{pod}"))
    }

    /// Makes the directories of a new pod; an emptyDir is empty, a volume keeps what it has.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub(super) fn make_pod(&self, pod: &str) -> Result<(), DemoError> {
        make_directory(&self.pod(pod), 0o755, None)?;
        let run = self.run(pod);
        remove(&run)?;
        make_directory(&run, 0o700, self.user.as_ref())?;
        make_directory(&self.volume(pod), 0o700, self.user.as_ref())
    }

    /// Takes a pod's volume away at once; its contents go later, by [`Layout::empty_trash`].
    ///
    /// # Errors
    /// The volume cannot be moved.
    pub(super) fn wipe_volume(&self, pod: &str) -> Result<(), DemoError> {
        let volume = self.volume(pod);
        let trash = self.trash();
        make_directory(&trash, 0o700, None)?;
        match fs::rename(&volume, trash.join(format!("{pod}-{:016x}", fastrand::u64(..)))) {
            // A disk that somebody has mounted there stays, without its files.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                empty(&volume).map_err(DemoError::file("remove", &volume))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DemoError::file("remove", &volume)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what was taken away; slow.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub(super) fn empty_trash(&self) -> Result<(), DemoError> {
        remove(&self.trash())
    }

    fn trash(&self) -> PathBuf {
        self.directory.join("volumes").join(".removed")
    }

    /// Removes everything that the demo made.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub(super) fn remove_all(&self) -> Result<(), DemoError> {
        self.remove_sockets()?;
        remove(&self.directory)
    }

    /// Removes what has no use without running pods.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub(super) fn remove_sockets(&self) -> Result<(), DemoError> {
        drop(fs::remove_file(self.control_socket()));
        if self.near() {
            Ok(())
        } else {
            remove(&self.sockets)
        }
    }
}

/// Makes a directory of the demo, or checks that the one that exists is its own.
fn make_directory(path: &Path, mode: u32, user: Option<&ServerUser>) -> Result<(), DemoError> {
    let failed = || DemoError::file("create", path);
    let made = make(path).map_err(failed())?;
    let found = fs::symlink_metadata(path).map_err(failed())?;
    let own = rustix::process::geteuid().as_raw();
    let expected = user.map_or(own, |user| user.uid);
    // Under /tmp, somebody else's directory or link of this name would be a trap.
    if !found.is_dir() || (found.uid() != own && found.uid() != expected) {
        return Err(failed()(io::Error::other("it belongs to somebody else")));
    }
    if found.uid() != expected || user.is_some_and(|user| found.gid() != user.gid) {
        chown(path, Some(expected), user.map(|user| user.gid)).map_err(failed())?;
    }
    // Whatever the umask is.
    if made || mode == 0o700 {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed())?;
    }
    Ok(())
}

/// Makes a directory with its parents; false if it was there.
fn make(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    Ok(true)
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), DemoError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DemoError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn hash_of(path: &Path) -> u64 {
    fnv_1a(path.as_os_str().as_encoded_bytes().iter().copied())
}
