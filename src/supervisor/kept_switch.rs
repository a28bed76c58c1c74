//! Keeps the read-only switch on the volume, for the agent, which cannot write there. One write at a time, so that an
//! older position never replaces a newer one; one that fails is tried again.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::core::switch::SwitchPosition;
use crate::postgres::error::describe;
use crate::postgres::{ServerSettings, kept_switch};

const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What was kept by an earlier supervisor; nothing, with a warning, if it cannot be read. Blocks.
pub(super) fn read(settings: &ServerSettings) -> SwitchPosition {
    let read = kept_switch::read(settings);
    read.inspect_err(|error| tracing::warn!("{}", describe(error)))
        .unwrap_or_default()
}

/// Writes every change of `position`.
pub(super) async fn keep(
    settings: &ServerSettings,
    mut position: watch::Receiver<SwitchPosition>,
) -> Infallible {
    loop {
        if position.changed().await.is_err() {
            return std::future::pending().await;
        }
        loop {
            let (settings, newest) = (settings.clone(), position.borrow_and_update().clone());
            let written = spawn_blocking(move || kept_switch::write(&settings, &newest)).await;
            match written {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::warn!("could not keep the read-only switch: {}", describe(&error)),
                Err(error) => tracing::warn!(%error, "could not keep the read-only switch"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }
}
