//! Whether others are heard: the members of this node's group, by BFD. Never decides what follows.

use std::{
    future::pending,
    hash::{BuildHasher as _, Hasher as _, RandomState},
};

use anyhow::Context as _;
use lb_core::{
    bfd::{Peer, Reach, Wanted},
    config::LbConfig,
};

use crate::announce::bfd::{Bfd, Changes, Liveness};

/// The sessions, while there is anybody to be heard.
#[derive(Debug, Default)]
pub(super) struct Paths {
    bfd: Option<(Bfd, Changes)>,
}

impl Paths {
    /// Listens to those that a configuration names.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub(super) fn set(&mut self, config: &LbConfig) -> anyhow::Result<()> {
        let group = config.l2.group.iter();
        let wanted = group.flat_map(|group| {
            let others = group.others.values();
            others.map(|address| Wanted {
                peer: Peer::new(*address),
                local: None,
                // They share a segment.
                reach: Reach::SingleHop,
                timers: group.timers,
            })
        });
        let wanted: Vec<Wanted> = wanted.collect();
        if wanted.is_empty() {
            self.bfd = None;
            return Ok(());
        }
        let bfd = match &mut self.bfd {
            Some((bfd, _)) => bfd,
            none => {
                let seed = RandomState::new().build_hasher().finish();
                &mut none.insert(Bfd::start(seed).context("cannot start BFD")?).0
            }
        };
        bfd.set(wanted);
        Ok(())
    }

    /// Waits for somebody to be heard, or not any more.
    pub(super) async fn next(&mut self) -> (Peer, Liveness) {
        let Some((_, changes)) = &mut self.bfd else {
            return pending().await;
        };
        match changes.recv().await {
            Some(change) => change,
            // Its thread is gone, which it never is before `self.bfd`.
            None => pending().await,
        }
    }
}
