//! What the demo tells its user: one line per change, and with `--verbose` every line of every container.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// How often a followed log is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

/// Where the lines go; clones share it.
#[derive(Clone)]
pub struct Events {
    started: Instant,
    out: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Events {
    /// Lines to standard output.
    #[must_use]
    pub fn to_stdout() -> Self {
        Self::to(Box::new(io::stdout()))
    }

    /// Lines to anything else.
    #[must_use]
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self {
            started: Instant::now(),
            out: Arc::new(Mutex::new(out)),
        }
    }

    /// Time since the demo began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// One change: `  1.23 s  demo-0  postgres started`.
    pub fn change(&self, who: &str, what: &str) {
        self.line(&format!(
            "{:7.2} s  {who}  {what}",
            self.started.elapsed().as_secs_f64()
        ));
    }

    /// One line as it is.
    pub fn line(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that has gone away is no reason to stop the cluster.
        drop(writeln!(out, "{text}").and_then(|()| out.flush()));
    }

    /// Repeats what is appended to a file from now on, each line behind `[who] `. Never returns.
    pub async fn follow(self, who: String, path: PathBuf) {
        let mut place = std::fs::metadata(&path).map_or(0, |file| file.len());
        let mut torn = Vec::new();
        loop {
            tokio::time::sleep(FOLLOW_PAUSE).await;
            let Ok(news) = read_from(&path, &mut place).await else {
                continue;
            };
            torn.extend(news);
            while let Some(end) = torn.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = torn.drain(..=end).collect();
                self.line(&format!("[{who}] {}", String::from_utf8_lossy(&line[..end])));
            }
        }
    }
}

/// What a file holds behind `place`, which moves on; a file that has become shorter is read from its start.
async fn read_from(path: &PathBuf, place: &mut u64) -> io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    if file.metadata().await?.len() < *place {
        *place = 0;
    }
    file.seek(io::SeekFrom::Start(*place)).await?;
    let mut news = Vec::new();
    let length = file.take(1 << 20).read_to_end(&mut news).await?;
    *place += length as u64;
    Ok(news)
}
