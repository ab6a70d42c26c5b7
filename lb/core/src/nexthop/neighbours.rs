//! Which neighbour entries to create, keep fresh and let go, and which MAC address counts. Never sends a probe: the kernel does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{Command, Keeper, Neighbour, NeighbourState};

/// How long an entry that vanished without having failed still counts: the kernel's own three probes, one a second. So
/// `ip neigh flush`, a full table or a MAC address learned anew loses no packet.
pub const LINGER: Duration = Duration::from_secs(3);
/// The kernel tells of a deletion as a failure first and as a deletion within this time. A failure alone is one.
pub const DELETION: Duration = Duration::from_millis(100);
/// Time between two requests to resolve a neighbour that has no MAC address.
pub const SOLICIT_AGAIN: Duration = Duration::from_secs(1);
/// Least time between two requests to resolve a neighbour that packets wait for.
pub const HURRY_GAP: Duration = Duration::from_millis(100);
/// Time between two requests to keep a resolved neighbour that nobody keeps. Kernels before 5.16 have no managed entries:
/// there this is what keeps the entry fresh.
pub const KEEP_AGAIN: Duration = Duration::from_secs(5);
/// Most requests of one step; the rest follows in the next one. About 64 B of netlink messages each.
pub const SOLICITS_PER_STEP: usize = 256;

/// Interface index and IP address.
pub(super) type Key = (u32, IpAddr);

/// What a neighbour is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Resolved([u8; 6]),
    Resolving,
    Failed,
}

/// All neighbour entries of the kernel, and what is needed of them. At most `gc_thresh3` per family (1,024 by default) and the
/// needed ones, about 120 B each.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    entries: BTreeMap<Key, Entry>,
    needed: BTreeSet<Key>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// As the kernel last told; `None`: it has no such entry.
    seen: Option<Neighbour>,
    /// The last good MAC address, and until when it counts although the entry is not valid.
    lingering: Option<([u8; 6], Duration)>,
    /// It failed then, and has not been valid since.
    failed: Option<Duration>,
    /// Its last good MAC address.
    last_mac: Option<[u8; 6]>,
    /// When [`Command::Keep`] was last given.
    asked: Option<Duration>,
}

impl Entry {
    /// The MAC address that the kernel itself would use.
    fn valid_mac(&self) -> Option<[u8; 6]> {
        let seen = self.seen.filter(|seen| seen.state.is_valid())?;
        seen.mac.filter(|mac| *mac != [0; 6])
    }

    /// We keep it, or may have made it.
    fn is_ours(&self) -> bool {
        match self.seen {
            Some(seen) => seen.keeper == Keeper::Us,
            None => self.asked.is_some(),
        }
    }

    fn outcome(&self) -> Outcome {
        match (self.valid_mac(), self.lingering) {
            (Some(mac), _) | (None, Some((mac, _))) => Outcome::Resolved(mac),
            (None, None) if self.failed.is_some() => Outcome::Failed,
            (None, None) => Outcome::Resolving,
        }
    }

    fn see(&mut self, seen: Option<Neighbour>, now: Duration) {
        let was_valid = self.valid_mac().is_some();
        self.seen = seen;
        if let Some(mac) = self.valid_mac() {
            self.last_mac = Some(mac);
            self.lingering = None;
            self.failed = None;
        } else if seen.is_some_and(|seen| seen.state == NeighbourState::Failed) {
            self.lingering = None;
            // One that failed twice has no last good MAC address.
            self.last_mac = self.last_mac.filter(|_| was_valid);
            self.failed = Some(now);
        } else {
            let deleted = seen.is_none() && self.failed.is_some_and(|failed| now.saturating_sub(failed) < DELETION);
            if was_valid || deleted {
                self.lingering = self.last_mac.map(|mac| (mac, now + LINGER));
                self.failed = self.failed.filter(|_| self.lingering.is_none());
            }
        }
    }

    /// When to ask the kernel to keep this entry, if ever.
    fn keep_due(&self) -> Option<Duration> {
        let again = match self.seen {
            None => SOLICIT_AGAIN,
            Some(Neighbour {
                keeper: Keeper::Other, ..
            }) => return None,
            Some(Neighbour { keeper, state, .. }) => match state {
                // Making a permanent entry managed would make it resolvable, that is, not permanent.
                NeighbourState::Permanent | NeighbourState::Noarp => return None,
                NeighbourState::None | NeighbourState::Failed => SOLICIT_AGAIN,
                NeighbourState::Incomplete
                | NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe => match keeper {
                    Keeper::Us => return None,
                    Keeper::Nobody | Keeper::Other => KEEP_AGAIN,
                },
            },
        };
        Some(self.asked.map_or(Duration::ZERO, |asked| asked + again))
    }
}

impl Neighbours {
    /// Takes in what the kernel says of an entry; whether the outcome of a needed one changed.
    pub(super) fn see(&mut self, key: Key, seen: Option<Neighbour>, now: Duration) -> bool {
        let needed = self.needed.contains(&key);
        if seen.is_none() && !needed {
            self.entries.remove(&key);
            return false;
        }
        let entry = self.entries.entry(key).or_default();
        let before = entry.outcome();
        entry.see(seen, now);
        needed && before != entry.outcome()
    }

    /// Takes in all entries there are; whether the outcome of a needed one changed.
    pub(super) fn replace(&mut self, neighbours: Vec<Neighbour>, now: Duration) -> bool {
        let there: BTreeSet<Key> = neighbours.iter().map(|seen| (seen.ifindex, seen.address)).collect();
        let gone: Vec<Key> = self
            .entries
            .keys()
            .filter(|key| !there.contains(*key))
            .copied()
            .collect();
        let mut changed = false;
        for key in gone {
            changed |= self.see(key, None, now);
        }
        for seen in neighbours {
            changed |= self.see((seen.ifindex, seen.address), Some(seen), now);
        }
        changed
    }

    /// Forgets an interface that is gone: its neighbours do not linger.
    pub(super) fn forget_link(&mut self, ifindex: u32) {
        self.entries.retain(|(on, _), _| *on != ifindex);
    }

    /// What a neighbour is good for now.
    pub(super) fn outcome(&self, key: Key) -> Outcome {
        self.entries.get(&key).map_or(Outcome::Resolving, Entry::outcome)
    }

    /// Sets which neighbours next hops need.
    pub(super) fn need(&mut self, needed: BTreeSet<Key>) {
        for key in &needed {
            self.entries.entry(*key).or_default();
        }
        // One that was asked for stays until it has been released: the kernel does not tell of an entry until it is resolved.
        self.entries
            .retain(|key, entry| entry.seen.is_some() || entry.asked.is_some() || needed.contains(key));
        self.needed = needed;
    }

    /// Packets wait for this one: the next request is due now, unless there was one just before.
    pub(super) fn hurry(&mut self, key: Key, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.asked.is_some_and(|asked| now.saturating_sub(asked) >= HURRY_GAP)
        {
            entry.asked = None;
        }
    }

    /// Ends lingering that is over; whether an outcome changed.
    pub(super) fn expire(&mut self, now: Duration) -> bool {
        let mut changed = false;
        for key in &self.needed {
            if let Some(entry) = self.entries.get_mut(key)
                && entry.lingering.is_some_and(|(_, until)| until <= now)
            {
                entry.lingering = None;
                changed = true;
            }
        }
        changed
    }

    /// Requests that are due. Entries of ours that nothing needs are let go.
    pub(super) fn commands(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let mut room = SOLICITS_PER_STEP;
        for (key, entry) in &mut self.entries {
            let (ifindex, address) = *key;
            if room == 0 {
                break;
            }
            if self.needed.contains(key) {
                if entry.keep_due().is_some_and(|due| due <= now) {
                    entry.asked = Some(now);
                    let create = entry.seen.is_none();
                    commands.push(Command::Keep {
                        ifindex,
                        address,
                        create,
                    });
                    room -= 1;
                }
            } else if entry.is_ours() {
                // Said once; should it fail, the next snapshot says that the entry is still ours.
                entry.asked = None;
                if let Some(seen) = &mut entry.seen {
                    seen.keeper = Keeper::Nobody;
                }
                commands.push(Command::Release { ifindex, address });
                room -= 1;
            }
        }
    }

    /// Requests to let go of everything of ours.
    pub(super) fn release_all(&self) -> Vec<Command> {
        let ours = self.entries.iter().filter(|(_, entry)| entry.is_ours());
        ours.map(|(&(ifindex, address), _)| Command::Release { ifindex, address })
            .collect()
    }

    /// When the next request or the next end of lingering is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let entries = self.needed.iter().filter_map(|key| self.entries.get(key));
        entries
            .flat_map(|entry| [entry.keep_due(), entry.lingering.map(|(_, until)| until)])
            .flatten()
            .min()
    }
}
