//! Whether others are heard: the members of this node's group, by BFD. Never decides what follows.

use std::future::pending;

use anyhow::Context as _;
use lb_core::{
    bfd::{Discard, Peer, Reach, Wanted},
    config::L2Group,
};

use crate::{
    announce::bfd::{Bfd, Changes, Liveness},
    chance,
};

/// The sessions of the group. Others may share the thread: [`Bfd::another`].
#[derive(Debug)]
pub(super) struct Paths {
    bfd: Bfd,
    changes: Changes,
}

impl Paths {
    /// Listens to nobody yet.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub(super) fn start() -> anyhow::Result<Self> {
        let seed = chance::number();
        let (bfd, changes) = Bfd::start(seed).context("cannot start BFD")?;
        Ok(Self { bfd, changes })
    }

    /// For somebody else to listen to others.
    pub(super) fn another(&self) -> Bfd {
        // Who takes no changes is sent none.
        self.bfd.another().0
    }

    /// Datagrams that were for no session, and why.
    pub(super) fn discarded(&self) -> Vec<(Discard, u64)> {
        self.bfd.discarded()
    }

    /// Listens to the members of a group, who hear this node as long.
    pub(super) fn set(&self, group: Option<&L2Group>) {
        let wanted = group.into_iter().flat_map(|group| {
            group.others.iter().map(|(name, address)| Wanted {
                peer: Peer::new(*address),
                local: group.from.get(name).copied(),
                // They share a segment.
                reach: Reach::SingleHop,
                timers: group.timers,
            })
        });
        self.bfd.set(wanted);
    }

    /// Waits for somebody to be heard, or not any more.
    pub(super) async fn next(&mut self) -> (Peer, Liveness) {
        match self.changes.recv().await {
            Some(change) => change,
            // Its thread is gone, which it never is before `self.bfd`.
            None => pending().await,
        }
    }
}
