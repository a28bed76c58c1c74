//! `podgres install DIR`: copies this program; the image has neither shell nor cp.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use clap::Args;

use super::{Failure, file_status};

#[derive(Args, Debug)]
pub struct Arguments {
    /// The folder, e.g. an emptyDir
    pub directory: PathBuf,
}

/// Copies to a name beside the final one and renames: nobody ever runs half a program.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = arguments.directory.join("podgres");
    let staged = arguments.directory.join(".podgres.new");
    let copy = || {
        fs::create_dir_all(&arguments.directory)?;
        fs::copy("/proc/self/exe", &staged)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
        fs::File::open(&staged)?.sync_all()?;
        fs::rename(&staged, &target)
    };
    copy().map_err(|error| {
        Failure::new(
            file_status(&error),
            format!("could not install to \"{}\": {error}", target.display()),
        )
        .hint("The folder must exist or be makeable, and writable for this user.")
    })
}
