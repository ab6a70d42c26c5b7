//! Virtual reassembly: all fragments of a datagram go where its first goes. Never puts a datagram together, and never holds more
//! than its bounds.
//!
//! A datagram is known by source, destination and identification, in IPv4 by the protocol, too (RFC 791, 3.2; RFC 8200, 4.5). It is
//! forgotten when it is complete, or a fixed time after the first of its fragments was seen. One that overlaps is refused until
//! then (RFC 5722). A source (IPv6: a /64) has at most a sixteenth of the room; beyond it, its own oldest datagrams make way for
//! its newest, so that whoever never completes any does harm to nobody else, and who loses some is not shut out by those. Where
//! all the room is taken, everybody's oldest make way: sources are easily forged, and a table that takes nothing new until it has
//! waited is full for everybody with a thousand packets a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use xdp_prog::{
    verdict::Verdict,
    wire::{PROTO_ICMP, PROTO_TCP, PROTO_UDP, TCP_DATA_OFFSET, TCP_LEN, UDP_LEN},
};

use super::{
    FlowKey, Fragment, FragmentBounds, Outcome, Packet,
    packet::{byte, icmp_of},
};

/// Fragments of one datagram: 64 KiB in pieces of 576 bytes are 119. 4 bytes each.
pub const MAX_FRAGMENTS: usize = 128;
/// A source's part of the room.
const SHARE: u32 = 16;
/// Datagrams are forgotten together: each moment at which one is due wakes every worker.
const TOGETHER_NS: u64 = 100_000_000;
/// What a held frame takes beside its bytes: its place in a list that grows by doubling, and the allocator's own.
const FRAME_OVERHEAD: u64 = 128;
/// What a datagram takes without held frames: its fragments' places, and its places in trees whose nodes may be half empty.
const DATAGRAM_BYTES: u64 = (MAX_FRAGMENTS * size_of::<Span>()
    + 2 * (size_of::<Entry>() + 3 * size_of::<Key>() + size_of::<Account>() + 96)) as u64;
/// ICMP echo request, by family.
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;
/// What an ICMP error must quote of ICMP, and an echo request's own header.
const ICMP_LEN: usize = 8;

/// What a datagram is, once its first fragment is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datagram {
    /// Part of a flow.
    Flow(FlowKey),
    /// An echo request.
    Echo,
    /// Nothing that is forwarded or answered.
    Other,
    /// The balancer's rules dropped one of its fragments.
    Refused(Verdict),
    /// An echo request that is not answered, and why.
    Unanswered(Outcome),
}

/// What to do with a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Treat it as its datagram, and then those that waited for it, in the order they came.
    Go { datagram: Datagram, released: Vec<Vec<u8>> },
    /// It waits for the first.
    Held,
    /// Drop it, and as many that were held.
    Drop { outcome: Outcome, released: usize },
}

impl Arrival {
    fn drop(outcome: Outcome) -> Self {
        Self::Drop { outcome, released: 0 }
    }
}

/// Which datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    /// 0 in IPv6, where it is not part of it.
    protocol: u8,
}

impl Key {
    fn of(packet: &Packet<'_>, fragment: &Fragment) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            id: fragment.id,
            protocol: if packet.source.is_ipv4() { packet.protocol } else { 0 },
        }
    }

    /// Whose share of the room it takes.
    fn owner(&self) -> IpAddr {
        match self.source {
            IpAddr::V4(_) => self.source,
            IpAddr::V6(source) => Ipv6Addr::from_bits(source.to_bits() >> 64 << 64).into(),
        }
    }
}

/// A fragment's place in its datagram: first byte, and the one behind its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u16,
    to: u16,
}

/// A datagram.
#[derive(Debug)]
struct Entry {
    deadline_ns: u64,
    known: Option<Datagram>,
    /// Why nothing more of it goes anywhere.
    refused: Option<Outcome>,
    /// Its length, once the last fragment is known.
    end: Option<u16>,
    /// Bytes that have been seen.
    covered: u32,
    /// In order, none overlapping another.
    spans: Vec<Span>,
    held: Vec<Vec<u8>>,
}

/// What a source has of the room.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    datagrams: u32,
    bytes: u64,
}

/// The datagrams that are being watched.
#[derive(Debug)]
pub(super) struct Fragments {
    bounds: FragmentBounds,
    datagrams: BTreeMap<Key, Entry>,
    due: BTreeSet<(u64, Key)>,
    /// The same by owner.
    oldest: BTreeSet<(IpAddr, u64, Key)>,
    accounts: BTreeMap<IpAddr, Account>,
    /// Bytes held, with what holding them takes.
    bytes: u64,
    /// Held frames that made way and are not yet reported.
    evicted: usize,
    next_id: u16,
}

impl Fragments {
    pub(super) fn new(bounds: FragmentBounds) -> Self {
        Self {
            bounds,
            datagrams: BTreeMap::new(),
            due: BTreeSet::new(),
            oldest: BTreeSet::new(),
            accounts: BTreeMap::new(),
            bytes: 0,
            evicted: 0,
            next_id: 0,
        }
    }

    /// Datagrams that are being watched, and bytes held with what holding them takes.
    pub(super) fn watched(&self) -> (usize, u64) {
        (self.datagrams.len(), self.bytes)
    }

    /// Takes in a fragment. What became of frames that made way for it, [`Self::take_evicted`] says.
    pub(super) fn arrive(&mut self, now_ns: u64, packet: &Packet<'_>) -> Arrival {
        let Some(fragment) = packet.fragment else {
            return Arrival::drop(Outcome::Malformed);
        };
        let end = u16::try_from(fragment.offset.saturating_add(fragment.len));
        let (Ok(from), Ok(to)) = (u16::try_from(fragment.offset), end) else {
            return Arrival::drop(Outcome::Malformed);
        };
        let is_known = packet.protocol == PROTO_TCP || packet.protocol == PROTO_UDP || packet.protocol == PROTO_ICMP;
        if packet.source.is_ipv4() && !is_known {
            // All its fragments say so; in IPv6 only the first's word counts.
            return Arrival::Go {
                datagram: Datagram::Other,
                released: Vec::new(),
            };
        }
        let key = Key::of(packet, &fragment);
        if let Some(entry) = self.datagrams.get(&key)
            && entry.deadline_ns <= now_ns
        {
            // Nobody has called `expire` yet.
            self.evicted += self.forget(&key);
        }
        if !self.datagrams.contains_key(&key)
            && let Err(outcome) = self.begin(now_ns, key)
        {
            return Arrival::drop(outcome);
        }
        let Some(entry) = self.datagrams.get_mut(&key) else {
            return Arrival::drop(Outcome::FragmentRoom);
        };
        if let Some(outcome) = entry.refused {
            return Arrival::drop(outcome);
        }
        let identified = match identify(packet, &fragment) {
            Ok(identified) => identified,
            Err(outcome) => return self.refuse(&key, outcome),
        };
        match entry.place(Span { from, to }, fragment.more) {
            Ok(()) => {}
            Err(Outcome::FragmentDuplicate) => return Arrival::drop(Outcome::FragmentDuplicate),
            Err(outcome) => return self.refuse(&key, outcome),
        }
        entry.known = entry.known.or(identified);
        match entry.known {
            Some(datagram) => {
                let held = std::mem::take(&mut entry.held);
                let complete = entry.end.map(u32::from) == Some(entry.covered);
                self.give_back(&key, &held);
                if complete {
                    self.forget(&key);
                }
                Arrival::Go {
                    datagram,
                    released: held,
                }
            }
            None => self.hold(&key, packet),
        }
    }

    /// What later fragments of this one's datagram are from now on.
    pub(super) fn settle(&mut self, packet: &Packet<'_>, datagram: Datagram) {
        let key = packet.fragment.map(|fragment| Key::of(packet, &fragment));
        if let Some(entry) = key.and_then(|key| self.datagrams.get_mut(&key))
            && entry.known.is_some()
        {
            entry.known = Some(datagram);
        }
    }

    /// How many held frames made way for others since the last call: dropped.
    pub(super) fn take_evicted(&mut self) -> usize {
        std::mem::take(&mut self.evicted)
    }

    /// Forgets what is too old; how many held frames were dropped.
    pub(super) fn expire(&mut self, now_ns: u64) -> usize {
        let mut dropped = 0;
        while let Some((deadline_ns, key)) = self.due.first().copied() {
            if deadline_ns > now_ns {
                break;
            }
            dropped += self.forget(&key);
        }
        dropped
    }

    /// When to look for what is too old: up to [`TOGETHER_NS`] after the oldest is.
    pub(super) fn deadline(&self) -> Option<u64> {
        let (deadline_ns, _) = self.due.first()?;
        Some(
            deadline_ns
                .checked_next_multiple_of(TOGETHER_NS)
                .unwrap_or(*deadline_ns),
        )
    }

    /// An identification for a datagram that had none: never 0, and unlike the last 65,534 that this node gave.
    pub(super) fn fresh_id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Makes an entry, if there is room.
    fn begin(&mut self, now_ns: u64, key: Key) -> Result<(), Outcome> {
        let owner = key.owner();
        let share = (self.bounds.datagrams / SHARE).max(1);
        if self
            .accounts
            .get(&owner)
            .is_some_and(|account| account.datagrams >= share)
        {
            self.evict(owner, None);
        }
        while self.datagrams.len() >= self.bounds.datagrams as usize {
            if !self.evict_oldest(None) {
                return Err(Outcome::FragmentRoom);
            }
        }
        let deadline_ns = now_ns.saturating_add(u64::from(self.bounds.timeout_ms) * 1_000_000);
        let entry = Entry {
            deadline_ns,
            known: None,
            refused: None,
            end: None,
            covered: 0,
            spans: Vec::new(),
            held: Vec::new(),
        };
        self.datagrams.insert(key, entry);
        self.due.insert((deadline_ns, key));
        self.oldest.insert((owner, deadline_ns, key));
        self.accounts.entry(owner).or_default().datagrams += 1;
        Ok(())
    }

    /// Keeps a frame until its datagram's first comes.
    fn hold(&mut self, key: &Key, packet: &Packet<'_>) -> Arrival {
        let owner = key.owner();
        let charge = (packet.link.bytes.len() + packet.ip.len()) as u64 + FRAME_OVERHEAD;
        let share = self.bounds.bytes / u64::from(SHARE);
        while self
            .accounts
            .get(&owner)
            .is_some_and(|account| account.bytes + charge > share)
        {
            if !self.evict(owner, Some(key)) {
                return self.refuse(key, Outcome::FragmentRoom);
            }
        }
        while self.bytes + charge > self.bounds.bytes {
            if !self.evict_oldest(Some(key)) {
                // Without this one it is never complete: the others wait in vain.
                return self.refuse(key, Outcome::FragmentRoom);
            }
        }
        let (Some(entry), Some(account)) = (self.datagrams.get_mut(key), self.accounts.get_mut(&owner)) else {
            return Arrival::drop(Outcome::FragmentRoom);
        };
        entry.held.push([packet.link.bytes, packet.ip].concat());
        account.bytes += charge;
        self.bytes += charge;
        Arrival::Held
    }

    /// Forgets a source's oldest datagram, but not `spared`; whether there was one.
    fn evict(&mut self, owner: IpAddr, spared: Option<&Key>) -> bool {
        let least = Key {
            source: IpAddr::from([0; 4]),
            destination: IpAddr::from([0; 4]),
            id: 0,
            protocol: 0,
        };
        let of_owner = self
            .oldest
            .range((owner, 0, least)..)
            .take_while(|(other, ..)| *other == owner);
        let mut others = of_owner.map(|(_, _, key)| *key).filter(|key| Some(key) != spared);
        let Some(key) = others.next() else { return false };
        self.evicted += self.forget(&key);
        true
    }

    /// Forgets the oldest datagram of all, but not `spared`; whether there was one.
    fn evict_oldest(&mut self, spared: Option<&Key>) -> bool {
        let mut others = self.due.iter().map(|(_, key)| *key).filter(|key| Some(key) != spared);
        let Some(key) = others.next() else { return false };
        self.evicted += self.forget(&key);
        true
    }

    /// Nothing more of this datagram goes anywhere.
    fn refuse(&mut self, key: &Key, outcome: Outcome) -> Arrival {
        let Some(entry) = self.datagrams.get_mut(key) else {
            return Arrival::drop(outcome);
        };
        entry.refused = Some(outcome);
        entry.spans = Vec::new();
        let held = std::mem::take(&mut entry.held);
        self.give_back(key, &held);
        Arrival::Drop {
            outcome,
            released: held.len(),
        }
    }

    /// Takes a datagram out; how many frames were held of it.
    fn forget(&mut self, key: &Key) -> usize {
        let Some(entry) = self.datagrams.remove(key) else {
            return 0;
        };
        let owner = key.owner();
        self.due.remove(&(entry.deadline_ns, *key));
        self.oldest.remove(&(owner, entry.deadline_ns, *key));
        self.give_back(key, &entry.held);
        if let Some(account) = self.accounts.get_mut(&owner) {
            account.datagrams = account.datagrams.saturating_sub(1);
            if account.datagrams == 0 {
                self.accounts.remove(&owner);
            }
        }
        entry.held.len()
    }

    /// Frames are held no longer.
    fn give_back(&mut self, key: &Key, frames: &[Vec<u8>]) {
        let bytes: u64 = frames.iter().map(|frame| frame.len() as u64 + FRAME_OVERHEAD).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(account) = self.accounts.get_mut(&key.owner()) {
            account.bytes = account.bytes.saturating_sub(bytes);
        }
    }
}

impl FragmentBounds {
    /// The most memory that virtual reassembly takes, in bytes: what is held, and 1,200 for every datagram.
    pub const fn memory_bound(&self) -> u64 {
        (self.datagrams as u64)
            .saturating_mul(DATAGRAM_BYTES)
            .saturating_add(self.bytes)
    }
}

impl Entry {
    /// Puts a fragment in its place.
    fn place(&mut self, span: Span, more: bool) -> Result<(), Outcome> {
        let at = self.spans.partition_point(|other| other.from < span.from);
        if self.spans.get(at) == Some(&span) && self.is_last(span) != more {
            return Err(Outcome::FragmentDuplicate);
        }
        let before = at.checked_sub(1).and_then(|at| self.spans.get(at));
        let after = self.spans.get(at);
        let overlaps =
            before.is_some_and(|other| other.to > span.from) || after.is_some_and(|other| other.from < span.to);
        let contradicts = match self.end {
            // Beyond the end, another end, or more where there is none.
            Some(end) => !more || span.to >= end,
            None => !more && self.spans.last().is_some_and(|other| other.to > span.to),
        };
        if overlaps || contradicts {
            return Err(Outcome::FragmentOverlap);
        }
        if self.spans.len() >= MAX_FRAGMENTS {
            return Err(Outcome::FragmentRoom);
        }
        self.spans.insert(at, span);
        self.covered += u32::from(span.to - span.from);
        if !more {
            self.end = Some(span.to);
        }
        Ok(())
    }

    fn is_last(&self, span: Span) -> bool {
        self.end == Some(span.to)
    }
}

/// What the datagram is, if this is its first fragment: one with the whole transport header (RFC 1858, RFC 7112).
fn identify(packet: &Packet<'_>, fragment: &Fragment) -> Result<Option<Datagram>, Outcome> {
    let is_tcp = packet.protocol == PROTO_TCP;
    if fragment.offset > 0 {
        // Between a TCP header's ports and its flags (RFC 1858, 3.2.2).
        let tiny = is_tcp && fragment.offset == 8;
        return if tiny { Err(Outcome::FragmentTiny) } else { Ok(None) };
    }
    let payload = packet.payload();
    let is_icmp = packet.protocol == icmp_of(packet.destination);
    let needed = if is_tcp {
        let words = byte(payload, TCP_DATA_OFFSET).map_err(|_| Outcome::FragmentTiny)? >> 4;
        TCP_LEN.max(usize::from(words) * 4)
    } else if packet.protocol == PROTO_UDP {
        UDP_LEN
    } else if is_icmp {
        ICMP_LEN
    } else {
        return Ok(Some(Datagram::Other));
    };
    if payload.len() < needed {
        return Err(Outcome::FragmentTiny);
    }
    if is_icmp {
        let request = if packet.destination.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
        let is_request = byte(payload, 0)? == request;
        return Ok(Some(if is_request { Datagram::Echo } else { Datagram::Other }));
    }
    Ok(Some(FlowKey::of(packet).map_or(Datagram::Other, Datagram::Flow)))
}

#[cfg(test)]
mod tests;
