//! Gives a server its configuration: from the mounted files as they are now or, where that must not fail, from those that PostgreSQL
//! accepted last.
//!
//! A typo in a mounted file must not keep a member from the role that the cluster needs it in.

use super::error::{ConfigurationError, describe};
use super::mounted::{Fingerprint, fingerprint};
use super::{ServerSettings, conf, user_copy};
use crate::core::supervision::ServerRole;

/// What may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The mounted files alone: the server goes on well with what it has.
    Mounted,
    /// What was accepted last, if these are refused: a role waits for it, or the start of a server.
    MountedOrAccepted,
}

/// What has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    pub files: Fingerprint,
    /// The files are those that were accepted last, since those of now were refused.
    pub refused: bool,
}

/// Writes everything that a server in `role` reads, before a start or a reload. Which files were refused, and why, is logged if others are given.
///
/// The fingerprint comes first: of files that change meanwhile, the older is remembered, and they are written again.
///
/// # Errors
/// As [`conf::write`], or a mounted file cannot be read.
pub async fn give(
    settings: &ServerSettings,
    role: &ServerRole,
    source: Source,
) -> Result<Given, ConfigurationError> {
    let error = match mounted(settings, role).await {
        Ok(files) => {
            return Ok(Given {
                files,
                refused: false,
            });
        }
        Err(error) => error,
    };
    let accepted = match source {
        Source::Mounted => None,
        Source::MountedOrAccepted => user_copy::last_accepted(settings),
    };
    let Some(accepted) = accepted else {
        return Err(error);
    };
    match last_accepted(&accepted, role).await {
        Ok(files) => {
            tracing::warn!(
                "the configuration files that were accepted last are used, since {}",
                describe(&error)
            );
            Ok(Given { files, refused: true })
        }
        Err(second) => {
            tracing::warn!(
                "could not use the configuration files that were accepted last: {}",
                describe(&second)
            );
            Err(error)
        }
    }
}

async fn mounted(settings: &ServerSettings, role: &ServerRole) -> Result<Fingerprint, ConfigurationError> {
    let files = fingerprint(settings)?;
    conf::write(settings, role).await?;
    Ok(files)
}

async fn last_accepted(
    accepted: &ServerSettings,
    role: &ServerRole,
) -> Result<Fingerprint, ConfigurationError> {
    let files = fingerprint(accepted)?;
    conf::write_accepted(accepted, role).await?;
    Ok(files)
}
