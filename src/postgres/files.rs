//! Changes of a data directory, off the runtime and one at a time.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use tokio::sync::Mutex;

use crate::files::FileError;

/// One change of a data directory at a time: a job that was dropped may still have an operation
/// under way on the blocking pool, and the next one must not begin before that has ended.
static CHANGE: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// Runs a blocking change of files, or a look at them, off the runtime, after every earlier one has ended.
pub(super) async fn blocking<T, E>(change: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<FileError> + Send + 'static,
{
    let turn = Arc::clone(&CHANGE).lock_owned().await;
    let task = tokio::task::spawn_blocking(move || {
        let result = change();
        drop(turn);
        result
    });
    match task.await {
        Ok(result) => result,
        Err(error) => Err(E::from(FileError {
            verb: "finish the work on",
            path: PathBuf::from("data directory"),
            source: io::Error::other(error),
        })),
    }
}
