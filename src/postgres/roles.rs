//! The roles that podgres itself logs in with: they exist, and their stored verifiers fit the mounted passwords.
//!
//! Writes only if something differs, and only on a primary. Sends a SCRAM verifier, never a password; the
//! session's settings keep the statement out of the server's log.

use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::query::{LocalServer, QueryError, Session};
use super::{Login, Secret, scram};

/// What became of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleChange {
    /// It was as it should be; nothing was written.
    Unchanged,
    Created,
    /// Its password or its rights were changed.
    Altered,
}

/// A role as `pg_authid` has it, and whether this server could change it.
struct StoredRole {
    exists: bool,
    may_rewind: bool,
    may_log_in: bool,
    may_replicate: bool,
    verifier: Option<String>,
    in_recovery: bool,
}

const STORED_ROLE: &str = "
SELECT rolname IS NOT NULL AS exists, coalesce(rolcanlogin, false) AS may_log_in,
       coalesce(rolreplication, false) AS may_replicate, rolpassword AS verifier,
       pg_is_in_recovery() AS in_recovery,
       rolname IS NOT NULL AND (rolsuper OR (pg_has_role(rolname, 'pg_checkpoint', 'USAGE')
           AND has_function_privilege(rolname, 'pg_ls_dir(text,boolean,boolean)', 'EXECUTE')
           AND has_function_privilege(rolname, 'pg_stat_file(text,boolean)', 'EXECUTE')
           AND has_function_privilege(rolname, 'pg_read_binary_file(text)', 'EXECUTE')
           AND has_function_privilege(rolname, 'pg_read_binary_file(text,bigint,bigint,boolean)', 'EXECUTE')))
           AS may_rewind
FROM (SELECT 1) server LEFT JOIN pg_authid ON rolname = $1::text::name";

impl LocalServer {
    /// Sees to it that the login of the standbys exists, may replicate and has this password.
    ///
    /// The status judges `replication_role` by this login from now on.
    ///
    /// # Errors
    /// [`QueryError::InRecovery`] if something would have to be written on a standby.
    pub async fn ensure_replication_role(
        &mut self,
        login: &Login,
        limit: Duration,
    ) -> Result<RoleChange, QueryError> {
        self.replication = login.clone();
        self.run(limit, async |session| {
            let role = stored_role(session, &login.user).await?;
            let complete = role.may_log_in && role.may_replicate && role.may_rewind;
            if complete && role.has_password(login) {
                return Ok(RoleChange::Unchanged);
            }
            let (verb, change) = if role.exists {
                ("ALTER", RoleChange::Altered)
            } else {
                ("CREATE", RoleChange::Created)
            };
            role.refuse_in_recovery(login)?;
            write(session, verb, "LOGIN REPLICATION", login).await?;
            session.client.batch_execute(&rights(&login.user)).await?;
            Ok(change)
        })
        .await
    }

    /// Sees to it that the superuser's stored verifier fits `login`, and logs in with it from now on.
    ///
    /// An open connection, or the password known so far, is the way in; if that fails too, with `login`.
    ///
    /// # Errors
    /// [`QueryError::AuthenticationFailed`] if neither password is the server's;
    /// [`QueryError::InRecovery`] if the password would have to be changed on a standby.
    pub async fn ensure_superuser_password(
        &mut self,
        login: &Login,
        limit: Duration,
    ) -> Result<RoleChange, QueryError> {
        let change = match self.alter_superuser(login, limit).await {
            Err(QueryError::AuthenticationFailed { .. }) => {
                let previous = std::mem::replace(&mut self.superuser, login.clone());
                let change = self.alter_superuser(login, limit).await;
                if change.is_err() {
                    self.superuser = previous;
                }
                change
            }
            change => change,
        }?;
        self.superuser = login.clone();
        Ok(change)
    }

    async fn alter_superuser(&mut self, login: &Login, limit: Duration) -> Result<RoleChange, QueryError> {
        self.run(limit, async |session| {
            let role = stored_role(session, &login.user).await?;
            if role.has_password(login) {
                return Ok(RoleChange::Unchanged);
            }
            role.refuse_in_recovery(login)?;
            write(session, "ALTER", "LOGIN", login).await?;
            Ok(RoleChange::Altered)
        })
        .await
    }
}

impl StoredRole {
    fn has_password(&self, login: &Login) -> bool {
        self.verifier
            .as_deref()
            .is_some_and(|verifier| scram::fits(verifier, &login.password))
    }

    fn refuse_in_recovery(&self, login: &Login) -> Result<(), QueryError> {
        if self.in_recovery {
            return Err(QueryError::InRecovery {
                role: login.user.clone(),
            });
        }
        Ok(())
    }
}

async fn stored_role(session: &Session, name: &str) -> Result<StoredRole, QueryError> {
    let row = session.client.query_one(STORED_ROLE, &[&name]).await?;
    Ok(StoredRole {
        exists: row.try_get("exists")?,
        may_log_in: row.try_get("may_log_in")?,
        may_replicate: row.try_get("may_replicate")?,
        may_rewind: row.try_get("may_rewind")?,
        verifier: row.try_get("verifier")?,
        in_recovery: row.try_get("in_recovery")?,
    })
}

/// The statements that give a replication role what `pg_rewind` needs of its source (manual, pg_rewind, "Notes"), in the
/// database that it connects to. Reading the data directory's files is what replication allows anyway.
pub(super) fn rights(role: &str) -> String {
    let role = escape_identifier(role);
    format!(
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean), \
         pg_catalog.pg_stat_file(text, boolean), pg_catalog.pg_read_binary_file(text), \
         pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO {role}; GRANT pg_checkpoint TO {role}"
    )
}

/// What a server stores of a password; `None` of an empty one, with which nobody logs in.
#[must_use]
pub fn stored_form(password: &Secret) -> Option<String> {
    (!password.expose().is_empty()).then(|| scram::verifier(password))
}

/// Gives a role a password in its stored form.
#[must_use]
pub fn password_statement(role: &str, stored_form: &str) -> String {
    let (role, stored_form) = (escape_identifier(role), escape_literal(stored_form));
    format!("ALTER ROLE {role} LOGIN PASSWORD {stored_form}")
}

/// `verb` is CREATE or ALTER. A utility statement takes no parameters, hence the quoting.
async fn write(session: &Session, verb: &str, rights: &str, login: &Login) -> Result<(), QueryError> {
    let name = escape_identifier(&login.user);
    let verifier = scram::verifier(&login.password);
    let verifier = escape_literal(&verifier);
    let statement = format!("{verb} ROLE {name} {rights} PASSWORD {verifier}");
    Ok(session.client.batch_execute(&statement).await?)
}
