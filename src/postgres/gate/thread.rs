//! The gate's thread: attaches as long as a server is wanted, and confirms what comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::attach::{GateError, attach};
use super::shared::{Order, Shared};
use super::{GateSettings, GateTarget};
use crate::core::wal::Lsn;
use crate::postgres::replication::WalStream;

/// Between attempts to attach, and between the first confirmations of an attachment; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Until the handle is dropped.
pub(super) async fn run(settings: GateSettings, shared: Arc<Shared>) {
    let mut thread = Thread {
        settings,
        shared: Arc::clone(&shared),
        stream: None,
    };
    loop {
        match shared.order() {
            Order::End => break,
            Order::Detach => {
                thread.leave(settings.attempt_limit).await;
                shared.detached(None);
                shared.redirected.notified().await;
            }
            Order::Attach(_) => tokio::select! {
                biased;
                () = shared.redirected.notified() => {}
                () = thread.stay_attached() => {}
            },
        }
    }
    thread.leave(settings.attempt_limit).await;
    shared.detached(None);
}

struct Thread {
    settings: GateSettings,
    shared: Arc<Shared>,
    /// Stays here until its walsender is known to be gone.
    stream: Option<WalStream>,
}

impl Thread {
    /// Attaches again and again, until something else is wanted; may be given up at any time.
    async fn stay_attached(&mut self) {
        let mut pause = FIRST_PAUSE;
        while let Order::Attach(target) = self.shared.order() {
            let attached_before = self.shared.attachment.borrow().count;
            let error = self.attach_and_confirm(&target).await;
            tracing::debug!(%error, "the commit gate is not attached");
            self.shared.detached(Some(error.to_string()));
            if self.shared.attachment.borrow().count > attached_before {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(error.longest_pause());
        }
    }

    async fn attach_and_confirm(&mut self, target: &GateTarget) -> GateError {
        if !self.leave(self.settings.attempt_limit).await {
            return GateError::FormerWalsender;
        }
        let (stream, timeline) = match attach(target, self.settings.attempt_limit).await {
            Ok(attached) => attached,
            Err(error) => return error,
        };
        let stream = self.stream.insert(stream);
        let mut confirming = Confirming {
            shared: &self.shared,
            stream,
            confirmed: Lsn(0),
        };
        self.shared.attached(timeline);
        confirming.run(self.settings.repeat_every).await
    }

    /// Ends the stream, if there is one; `false` if its walsender is still there when `limit` has passed.
    async fn leave(&mut self, limit: Duration) -> bool {
        let Some(stream) = &mut self.stream else {
            return true;
        };
        if timeout(limit, stream.end()).await.is_err() {
            return false;
        }
        self.stream = None;
        true
    }
}

/// One attachment.
struct Confirming<'a> {
    shared: &'a Shared,
    stream: &'a mut WalStream,
    /// In this attachment; 0 before the first time.
    confirmed: Lsn,
}

impl Confirming<'_> {
    /// Until the stream ends.
    async fn run(&mut self, repeat_every: Duration) -> GateError {
        // The walsender counts a confirmation only when it has found that it has sent everything, which it does not
        // say: so the first one is repeated soon.
        let mut pause = FIRST_PAUSE;
        let repeat = sleep(pause);
        tokio::pin!(repeat);
        let mut answer = Answer::IfNew;
        loop {
            if let Err(error) = self.answer(answer) {
                return error;
            }
            answer = tokio::select! {
                biased;
                received = self.stream.receive() => match received {
                    Ok(reply_requested) if reply_requested => Answer::Requested,
                    Ok(_) => Answer::IfNew,
                    Err(error) => return GateError::Stream(error),
                },
                () = self.shared.allowed.notified() => Answer::IfNew,
                () = &mut repeat => {
                    pause = (pause * 2).min(repeat_every);
                    repeat.as_mut().reset(Instant::now() + pause);
                    Answer::Again
                }
            };
        }
    }

    /// Without a right it says again what it confirmed under one, which keeps the walsender waiting for more.
    fn answer(&mut self, answer: Answer) -> Result<(), GateError> {
        let received = self.stream.position();
        self.shared.set_received(received);
        let news = received > self.confirmed;
        if answer == Answer::IfNew && !news {
            return Ok(());
        }
        let confirm = |position| self.stream.try_confirm(position).map_err(GateError::Stream);
        let confirmed = self.confirmed;
        let sent = self.shared.with_right(|right| match (right, answer) {
            (true, _) => confirm(received).map(|sent| {
                // Noted before the right can be taken back: whoever does that then knows how far it went.
                sent.then(|| self.shared.set_confirmed(received))
                    .map(|()| received)
            }),
            (false, Answer::IfNew) => Ok(None),
            (false, Answer::Requested) if news => Err(GateError::MadeWay),
            (false, Answer::Again | Answer::Requested) => confirm(confirmed).map(|_| None),
        });
        self.confirmed = sent?.unwrap_or(confirmed);
        Ok(())
    }
}

/// When to send an update.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// There is something to confirm.
    IfNew,
    /// In any case.
    Again,
    /// PostgreSQL asks for one.
    Requested,
}
