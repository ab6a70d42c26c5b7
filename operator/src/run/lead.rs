//! Whether this operator may write.
//!
//! Never writes anything but its Lease; a lost Lease is the end of the process, because another operator may have begun.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Instant, timeout_at};

use super::lease::{Attempt, Candidate, RENEW_DEADLINE, RETRY};

/// Until when this operator may write, shared with all who do.
#[derive(Clone, Debug, Default)]
pub(super) struct Leadership {
    until: Arc<Mutex<Until>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Until {
    /// It does not lead.
    #[default]
    Never,
    Instant(Instant),
    /// There is no election.
    Ever,
}

impl Leadership {
    /// Of an operator that was told that it is the only one.
    pub(super) fn alone() -> Self {
        let leadership = Self::default();
        leadership.set(Until::Ever);
        leadership
    }

    /// Whether it may write now.
    pub(super) fn holds(&self) -> bool {
        match *self.until.lock().unwrap_or_else(PoisonError::into_inner) {
            Until::Never => false,
            Until::Instant(until) => Instant::now() < until,
            Until::Ever => true,
        }
    }

    fn set(&self, until: Until) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Tries until it leads.
    pub(super) async fn acquire(&self, candidate: &mut Candidate) {
        let mut said: Option<String> = None;
        loop {
            match candidate.attempt().await {
                Ok(Attempt::Held(since)) => {
                    self.set(Until::Instant(since + RENEW_DEADLINE));
                    return;
                }
                Ok(Attempt::HeldBy(holder)) => {
                    if said.as_ref() != Some(&holder) {
                        tracing::info!(holder, "another operator leads; watching");
                        said = Some(holder);
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if said.as_ref() != Some(&text) {
                        let target = super::explain::Target::of_kind(crate::index::Kind::Lease);
                        let remedy = target
                            .remedy(&error)
                            .map(|remedy| format!(": {remedy}"))
                            .unwrap_or_default();
                        tracing::warn!(error = text, "the leader's Lease cannot be had{remedy}; tried again");
                        said = Some(text);
                    }
                }
            }
            tokio::time::sleep(RETRY.mul_f64(1.0 + fastrand::f64() / 5.0)).await;
        }
    }

    /// Renews until that fails for too long; then nothing may be written any more.
    pub(super) async fn keep(&self, candidate: &mut Candidate) {
        let mut deadline = Instant::now() + RENEW_DEADLINE;
        if let Until::Instant(until) = *self.until.lock().unwrap_or_else(PoisonError::into_inner) {
            deadline = until;
        }
        loop {
            tokio::time::sleep_until((Instant::now() + RETRY).min(deadline)).await;
            match timeout_at(deadline, candidate.attempt()).await {
                Ok(Ok(Attempt::Held(since))) => {
                    deadline = since + RENEW_DEADLINE;
                    self.set(Until::Instant(deadline));
                }
                Ok(Ok(Attempt::HeldBy(holder))) => {
                    tracing::error!(holder, "another operator leads");
                    break;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the leader's Lease was not renewed; tried again"),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        self.set(Until::Never);
    }
}
