//! The workers: take a subject, ask for its next write, do it, ask again.
//!
//! Never decides what to write, and remembers nothing about a subject from one look to the next but how often it failed.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    events::Events,
    explain::{DELETE_FAILED, SYNC_FAILED, Target, UPDATE_FAILED, refusal},
    fault::{Fault, Side},
    lead::Leadership,
    queue::Outcome,
    room::Room,
    write::{Effect, Meaning, WriteError, Writer},
};
use crate::{
    Subject,
    decide::{About, Action, Next, Note, tunnel_fault},
    index::Wanted,
};

/// Writes of one look: more would be a decision that goes round in circles.
const MOST_WRITES: u32 = 64;
/// After the DELETE of a chunk, the watch says when it is gone, and that ends this wait.
const DELETED: Duration = Duration::from_secs(1);

/// What a worker needs.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) room: Arc<Room>,
    pub(super) writer: Writer,
    pub(super) events: Events,
    pub(super) leadership: Leadership,
    pub(super) fault: Arc<Fault>,
    pub(super) death: tokio_util::sync::CancellationToken,
}

impl Worker {
    /// Works until it is told to take nothing more.
    pub(super) async fn run(self, enough: tokio_util::sync::CancellationToken) {
        loop {
            let subject = tokio::select! {
                biased;
                () = enough.cancelled() => return,
                subject = self.room.queue.take() => subject,
            };
            let start = Instant::now();
            let look = AssertUnwindSafe(self.look(&subject)).catch_unwind().await;
            let (outcome, result) = look.unwrap_or_else(|_| {
                tracing::error!(?subject, "this look panicked: a bug of Vipline; tried again later");
                (Outcome::Failed, "panic")
            });
            self.room.metrics.reconciled(&subject, result, start.elapsed());
            self.room.queue.done(subject, outcome);
        }
    }

    /// One look at a subject, with all its writes; how it ended, for the queue and for the metrics.
    async fn look(&self, subject: &Subject) -> (Outcome, &'static str) {
        for _ in 0..MOST_WRITES {
            // Held until the answer is in the index.
            let (next, _reservation) = self.room.decide_to_write(subject, Timestamp::now());
            let (action, notes) = match next {
                Next::Do(action, notes) => (action, notes),
                Next::Done => {
                    self.followed(subject);
                    return (Outcome::Done, "done");
                }
                Next::Wait(seconds) => {
                    self.followed(subject);
                    return (Outcome::Wait(Duration::from_secs(seconds.into())), "wait");
                }
                Next::Retry => {
                    self.followed(subject);
                    return (Outcome::Failed, "unavailable");
                }
            };
            if !self.leadership.holds() {
                return (Outcome::Wait(Duration::from_secs(1)), "not_leader");
            }
            match self.act(&action).await {
                Ok(effect) => {
                    let unseen = matches!((&*action, &effect), (Action::DeleteNodeSet { .. }, Effect::Deleted));
                    self.room.written(&action, effect);
                    if let (Action::ApplyTable(_), Subject::Service(service)) = (&*action, subject)
                        && let Some(delay) = self.room.endpoints_followed(service)
                    {
                        self.room.metrics.endpoints_followed(delay);
                    }
                    for note in notes {
                        self.events.send(note, &self.room.metrics);
                    }
                    if unseen {
                        return (Outcome::Wait(DELETED), "wait");
                    }
                }
                Err(error) => return self.failed(subject, &action, &notes, &error),
            }
        }
        // There may be thousands of orphans: others have their turn between.
        if *subject == Subject::Orphans {
            return (Outcome::Wait(Duration::ZERO), "more");
        }
        tracing::error!(
            ?subject,
            "{MOST_WRITES} writes and no end: a bug of Vipline; tried again later"
        );
        (Outcome::Failed, "endless")
    }

    /// Does a write, or dies before or after it.
    async fn act(&self, action: &Action) -> Result<Effect, WriteError> {
        let side = self.fault.next_write();
        if side == Some(Side::Before) {
            self.die().await;
        }
        let target = Target::of_action(action);
        let answer = self.writer.write(action).await;
        if side == Some(Side::After) {
            self.die().await;
        }
        let code = match &answer {
            Ok(_) => 200,
            Err(WriteError::Api(kube::Error::Api(status))) => status.code,
            Err(WriteError::Api(_) | WriteError::Timeout | WriteError::Random(_)) => 0,
        };
        self.room.metrics.written(&target, code);
        answer
    }

    /// Stops the operator, and this worker here and now.
    async fn die(&self) {
        self.death.cancel();
        std::future::pending().await
    }

    fn failed(
        &self,
        subject: &Subject,
        action: &Action,
        notes: &[Note],
        error: &WriteError,
    ) -> (Outcome, &'static str) {
        let target = Target::of_action(action);
        let resource = target.resource;
        match error.meaning(&target) {
            Meaning::Conflict => {
                tracing::debug!(?subject, resource, %error, "somebody was faster");
                (Outcome::Conflict, "conflict")
            }
            Meaning::Away => {
                tracing::warn!(?subject, resource, %error, "not written; tried again");
                (Outcome::Away, "away")
            }
            Meaning::Refused => {
                let remedy = match error {
                    WriteError::Api(error) => target.remedy(error),
                    WriteError::Random(_) | WriteError::Timeout => None,
                };
                match remedy {
                    Some(remedy) => tracing::error!(?subject, resource, %error, "{remedy}; tried again later"),
                    None => tracing::error!(?subject, resource, %error, "refused; tried again later"),
                }
                if let Some((about, reason)) = self.about(subject, notes) {
                    self.events
                        .send(refusal(&about, reason, &target, error), &self.room.metrics);
                }
                (Outcome::Failed, "refused")
            }
        }
    }

    /// What an Event about a refused write is about, and its reason: by what the Service was on the way to.
    fn about(&self, subject: &Subject, notes: &[Note]) -> Option<(About, &'static str)> {
        let Subject::Service(service) = subject else {
            return notes.first().map(|note| (note.about.clone(), SYNC_FAILED));
        };
        self.room.read(|index| {
            let object = index.service(service)?;
            let about = About::Service {
                service: service.clone(),
                uid: object.metadata.uid.clone().unwrap_or_default(),
            };
            let reason = match index.wanted(service) {
                Wanted::Nothing(_) | Wanted::Foreign => DELETE_FAILED,
                Wanted::Serve(_) if index.table(service).is_some_and(|table| index.is_published(table)) => {
                    UPDATE_FAILED
                }
                Wanted::Serve(_) => SYNC_FAILED,
            };
            Some((about, reason))
        })
    }

    /// Nothing is left to write for what has changed, or it cannot be written.
    fn followed(&self, subject: &Subject) {
        match subject {
            Subject::Service(service) => {
                self.room.endpoints_followed(service);
            }
            Subject::Tunnel => {
                let fault = self.room.read(tunnel_fault);
                self.room.metrics.tunnel_too_large(fault.is_some());
                if let Some(note) = fault {
                    tracing::error!("{}; tried again later", note.message);
                    self.events.send(note, &self.room.metrics);
                }
            }
            Subject::Seed
            | Subject::NodeSets
            | Subject::Announcement(_)
            | Subject::Pool(_)
            | Subject::Peer(_)
            | Subject::Orphans => {}
        }
    }
}
