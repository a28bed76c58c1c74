//! One connection to a Service, made when it is needed and made again when it broke. Every wait has a limit.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls};

/// For connecting, and for an answer. What takes longer counts as lost, and is asked anew on another connection.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);

/// How a Service is reached.
pub(crate) struct Database {
    config: Config,
    host: String,
    client: Mutex<Option<Client>>,
}

impl Database {
    /// The Service named by a variable; user, database and password file are the same for all.
    pub(crate) fn from_environment(host_variable: &str) -> anyhow::Result<Self> {
        let host = std::env::var(host_variable).with_context(|| format!("{host_variable} is not set"))?;
        let or = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let file = or("DATABASE_PASSWORD_FILE", "/etc/database/password");
        let password =
            std::fs::read_to_string(&file).with_context(|| format!("could not read \"{file}\""))?;
        let mut config = Config::new();
        config
            .host(&host)
            .user(or("DATABASE_USER", "postgres"))
            .dbname(or("DATABASE_NAME", "postgres"))
            .password(password.trim_end_matches(['\n', '\r']))
            .connect_timeout(LIMIT)
            .application_name("podgres-examples");
        Ok(Self {
            config,
            host,
            client: Mutex::new(None),
        })
    }

    /// Does something with the connection, a new one if the last has ended. An error, or no answer in time, ends it: the next may
    /// lead to another server.
    pub(crate) async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> anyhow::Result<T> {
        let mut kept = self.client.lock().await;
        let client = match kept.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connect().await?,
        };
        match timeout(LIMIT, work(&client)).await {
            Ok(Ok(value)) => {
                *kept = Some(client);
                Ok(value)
            }
            Ok(Err(error)) => Err(error).with_context(|| format!("\"{}\" refused", self.host)),
            Err(_) => bail!("\"{}\" did not answer within {} s", self.host, LIMIT.as_secs()),
        }
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let connected = timeout(LIMIT, self.config.connect(NoTls)).await;
        let (client, connection) = connected
            .with_context(|| {
                format!(
                    "\"{}\" took no connection within {} s",
                    self.host,
                    LIMIT.as_secs()
                )
            })?
            .with_context(|| format!("could not connect to \"{}\"", self.host))?;
        // Ends with its client; what ended it is seen there.
        tokio::spawn(async move { drop(connection.await) });
        Ok(client)
    }
}
