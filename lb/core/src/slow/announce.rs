//! Ownership of VIP addresses, announced when it is taken: so that neighbours that remember another owner learn at once. Never
//! answers a question; that is `neighbour`'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Book, EngineSettings, Output, To, neighbour::announcement};

/// How often an address is announced (RFC 5227, 2.3 says twice; the third is for a switch that was still learning).
const TIMES: u8 = 3;
/// Time between two announcements of an address (RFC 5227, 1.1: ANNOUNCE_INTERVAL is two seconds; a fail-over should be faster).
const INTERVAL_NS: u64 = 1_000_000_000;
/// Addresses announced at a time, and the pause after them: 6,400 a second, so that ten thousand VIPs are no burst.
const AT_A_TIME: usize = 64;
const PAUSE_NS: u64 = 10_000_000;

/// What one interface has announced.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    owned: BTreeSet<IpAddr>,
    /// Announcements to come: when, which address, how many are left.
    due: BTreeMap<(u64, IpAddr), u8>,
}

impl Announcer {
    /// Takes in who owns what, and announces what is due.
    pub(super) fn turn(&mut self, now_ns: u64, settings: &EngineSettings, book: &Book, out: &mut Output) {
        let owned: BTreeSet<IpAddr> = book.owned().collect();
        if owned != self.owned {
            self.due.retain(|(_, address), _| owned.contains(address));
            for (position, address) in owned.difference(&self.owned).enumerate() {
                let wait = (position / AT_A_TIME) as u64 * PAUSE_NS;
                self.due.insert((now_ns.saturating_add(wait), *address), TIMES);
            }
            self.owned = owned;
        }
        while let Some(entry) = self.due.first_entry() {
            let ((at, address), left) = (*entry.key(), *entry.get());
            if at > now_ns {
                break;
            }
            entry.remove();
            for frame in announcement(address, settings.mac) {
                out.send(To::Interface(settings.ifindex), frame);
            }
            if left > 1 {
                // From when it was due, so that what was spread stays spread.
                self.due.insert((at.saturating_add(INTERVAL_NS), address), left - 1);
            }
        }
    }

    /// When the next is due.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use super::{AT_A_TIME, Announcer, INTERVAL_NS, PAUSE_NS};
    use crate::{
        config::Protection,
        desired::{BackendSet, Desired, NextHops, Protocol, Vip, VipKey},
        health::Overlay,
        slow::{Book, EngineSettings, Output},
    };

    const SETTINGS: EngineSettings = EngineSettings {
        ifindex: 7,
        mac: [2; 6],
        announces: true,
    };

    fn book(addresses: impl Iterator<Item = IpAddr>) -> Book {
        let set = BackendSet {
            members: Vec::new(),
            table_slots: None,
        };
        let vip = Vip::new(set.into());
        let key = |address| VipKey {
            address,
            protocol: Protocol::Udp,
            port: 1,
        };
        let desired = Desired {
            vips: addresses.map(|address| (key(address), vip.clone())).collect(),
            ..Desired::default()
        };
        let everything = ["0.0.0.0/0", "::/0"].map(|network| network.parse().unwrap());
        Book::new(
            &desired,
            &NextHops::new(),
            &Overlay::default(),
            Protection::default(),
            &everything,
        )
    }

    fn address(last: u16) -> IpAddr {
        let [high, low] = last.to_be_bytes();
        [203, 0, high, low].into()
    }

    /// Frames by moment until nothing is due.
    fn run(announcer: &mut Announcer, book: &Book, mut now: u64) -> BTreeMap<u64, usize> {
        let mut frames = BTreeMap::new();
        loop {
            let mut out = Output::default();
            announcer.turn(now, &SETTINGS, book, &mut out);
            if !out.frames.is_empty() {
                frames.insert(now, out.frames.len());
            }
            match announcer.deadline() {
                Some(next) => now = next,
                None => return frames,
            }
        }
    }

    #[test]
    fn what_is_taken_is_announced_three_times_and_what_stays_is_not() {
        let mut announcer = Announcer::default();
        let one = book([address(1)].into_iter());
        let times = run(&mut announcer, &one, 5);
        assert_eq!(
            times.keys().copied().collect::<Vec<_>>(),
            [5, 5 + INTERVAL_NS, 5 + 2 * INTERVAL_NS]
        );
        assert!(run(&mut announcer, &one, 1 << 40).is_empty(), "nothing new");
        let two = book([address(1), address(2)].into_iter());
        let again = run(&mut announcer, &two, 1 << 40);
        assert_eq!(
            again.values().sum::<usize>(),
            times.values().sum::<usize>(),
            "only the new one"
        );
        run(&mut announcer, &book(std::iter::empty()), 1 << 41);
        assert!(
            !run(&mut announcer, &one, 1 << 42).is_empty(),
            "lost and taken again is taken"
        );
    }

    #[test]
    fn what_is_lost_meanwhile_is_announced_no_more() {
        let mut announcer = Announcer::default();
        announcer.turn(0, &SETTINGS, &book([address(1)].into_iter()), &mut Output::default());
        assert!(announcer.deadline().is_some());
        announcer.turn(1, &SETTINGS, &book(std::iter::empty()), &mut Output::default());
        assert_eq!(announcer.deadline(), None);
    }

    #[test]
    fn many_are_spread() {
        let mut announcer = Announcer::default();
        let times = run(&mut announcer, &book((0..1000).map(address)), 0);
        let first_round: Vec<_> = times.iter().filter(|(at, _)| **at < INTERVAL_NS).collect();
        assert_eq!(first_round.len(), 1000_usize.div_ceil(AT_A_TIME));
        assert!(first_round.iter().all(|(_, frames)| **frames <= 2 * AT_A_TIME));
        assert_eq!(*first_round[1].0, PAUSE_NS);
    }
}
