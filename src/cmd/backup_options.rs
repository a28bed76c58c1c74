//! What `podgres backup` was asked for, as the options of a run: logins, formats, and what does not go together.

use std::path::PathBuf;

use crate::backup::run::Options;
use crate::config::{ProcessEnvironment, server};
use crate::core::backup::parent::Base;
use crate::core::backup::{DumpFormat, Kind};
use crate::postgres::{Login, Secret, passfile};

use super::backing::{self, RunDirectory};
use super::backup::{Arguments, FormatArgument, KindArgument};
use super::place::Place;
use super::{ExitStatus, Failure};

/// That dump in directory format where nobody says how many.
const DIRECTORY_JOBS: u32 = 2;

/// Whom a backup logs in as.
pub(super) struct Logins {
    pub(super) superuser: Login,
    pub(super) replication: Login,
}

/// A demo's own, else those of the environment.
pub(super) fn logins(place: &Place) -> Result<Logins, Failure> {
    let Some(directory) = &place.dir else {
        let (superuser, replication) = server::logins(&ProcessEnvironment)?;
        return Ok(Logins {
            superuser,
            replication,
        });
    };
    let state = super::demo::state(directory)?;
    let password = std::fs::read_to_string(&state.password_file).map_err(|error| {
        Failure::new(
            super::status_of(&error),
            format!("could not read \"{}\": {error}", state.password_file.display()),
        )
    })?;
    let password = Secret::new(password.trim_end_matches(['\n', '\r']).to_owned());
    let login = |user: &str| Login {
        user: user.to_owned(),
        password: password.clone(),
    };
    Ok(Logins {
        superuser: login(&state.superuser),
        replication: login("podgres_replication"),
    })
}

/// What a run needs beside whom it reads, which is found out later.
pub(super) async fn options(
    arguments: &Arguments,
    logins: &Logins,
    run: &RunDirectory,
) -> Result<Options, Failure> {
    let logical = arguments.kind == KindArgument::Logical;
    if !logical && !arguments.databases.is_empty() {
        return Err(
            Failure::new(ExitStatus::Settings, "--database is for --kind logical")
                .hint("A physical backup holds the whole server."),
        );
    }
    let base = base(arguments)?;
    let format = format(arguments)?;
    let program_directory = match (&arguments.place.dir, logical) {
        (Some(directory), true) if arguments.program_dir.is_none() => {
            super::demo::state(directory)?.program_directory
        }
        (_, true) => backing::program_directory(arguments.program_dir.as_deref()).await?,
        (_, false) => PathBuf::new(),
    };
    let passfile = run.path().join("passfile");
    if logical {
        let Login { user, password } = &logins.superuser;
        backing::write_generated(&passfile, &passfile::line(user, password.expose().as_bytes()))?;
    }
    Ok(Options {
        kind: if logical { Kind::Logical } else { Kind::Physical },
        base,
        databases: arguments.databases.clone(),
        format,
        jobs: arguments.jobs.unwrap_or(DIRECTORY_JOBS),
        scratch_directory: arguments
            .scratch_dir
            .clone()
            .unwrap_or_else(|| run.path().to_owned()),
        keep: arguments.keep,
        key: arguments.store.key()?,
        level: arguments.level,
        threads: arguments.threads,
        max_rate_bytes: arguments.max_rate,
        piece_bytes: arguments.piece_size,
        facts_bytes: arguments.proof_size,
        program_directory,
        passfile: Some(passfile),
        cluster: String::new(),
        term: 0,
    })
}

fn base(arguments: &Arguments) -> Result<Base, Failure> {
    let base = match arguments.incremental.as_deref().unwrap_or_default().parse() {
        Ok(base) => base,
        Err(impossible) => match impossible {},
    };
    if base != Base::None && arguments.kind == KindArgument::Logical {
        return Err(Failure::new(
            ExitStatus::Settings,
            "--incremental is for --kind physical",
        ));
    }
    Ok(base)
}

fn format(arguments: &Arguments) -> Result<DumpFormat, Failure> {
    let refused = |message: &str| Err(Failure::new(ExitStatus::Settings, message));
    match (arguments.kind, arguments.format, arguments.jobs.unwrap_or(1)) {
        (KindArgument::Physical, None, 1) => Ok(DumpFormat::Custom),
        (KindArgument::Physical, ..) => refused("--format and --jobs are for --kind logical"),
        (_, Some(FormatArgument::Directory), _) | (_, None, 2..) => Ok(DumpFormat::Directory),
        (_, Some(FormatArgument::Custom | FormatArgument::Tar), 2..) => {
            refused("several --jobs write only --format directory")
        }
        (_, Some(FormatArgument::Tar), _) => Ok(DumpFormat::Tar),
        (_, Some(FormatArgument::Custom) | None, _) => Ok(DumpFormat::Custom),
    }
}
