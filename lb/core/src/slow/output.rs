//! What the slow path says and wants to know: frames in, frames, events and counts out. Nothing here touches a socket.

use std::net::IpAddr;

use xdp_prog::{
    abi::{BackendIndex, BackendLine, MAX_VERDICTS, VipIndex, feature},
    host::{self, Choice, Host, Memory},
    verdict::Verdict,
};

use super::{Kind, Outcome};

/// A frame from the fast path.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What the fast path said of it.
    pub verdict: Verdict,
    /// From the Ethernet header on.
    pub frame: &'a [u8],
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    /// Out of the interface with this index.
    Interface(u32),
    /// To this node's own kernel.
    Kernel,
}

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Where to.
    pub to: To,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

/// A packet that went to a backend, for the counters of VIPs and backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Which VIP.
    pub vip: VipIndex,
    /// Which backend.
    pub backend: BackendIndex,
    /// Bytes of the IP packet as the client sent it.
    pub bytes: u32,
}

/// Something that the control side should act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Packets wait for the next hop of this backend.
    NextHopWanted(BackendIndex),
    /// Another host, with this MAC address, uses a VIP address that this node owns. With every packet that says so.
    AddressConflict(IpAddr, [u8; 6]),
}

/// Packets by kind of work and outcome, and those that the balancer's rules refused, by verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    outcomes: [[u64; Outcome::ALL.len()]; Kind::ALL.len()],
    refused: [u64; MAX_VERDICTS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            outcomes: [[0; Outcome::ALL.len()]; Kind::ALL.len()],
            refused: [0; MAX_VERDICTS],
        }
    }
}

impl Counts {
    /// Counts a packet.
    pub fn add(&mut self, kind: Kind, outcome: Outcome) {
        self.outcomes[kind as usize][outcome as usize] += 1;
    }

    /// Counts a packet that the balancer's rules refused.
    pub fn add_refused(&mut self, kind: Kind, verdict: Verdict) {
        self.add(kind, Outcome::Refused);
        self.refused[verdict as usize] += 1;
    }

    /// Packets of a kind with an outcome.
    pub fn of(&self, kind: Kind, outcome: Outcome) -> u64 {
        self.outcomes[kind as usize][outcome as usize]
    }

    /// Packets that were refused with a verdict.
    pub fn refused(&self, verdict: Verdict) -> u64 {
        self.refused[verdict as usize]
    }

    /// All counts that are not 0, by kind and outcome.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, Outcome, u64)> + '_ {
        Kind::ALL.into_iter().flat_map(move |kind| {
            let counted = Outcome::ALL
                .iter()
                .map(move |outcome| (kind, *outcome, self.of(kind, *outcome)));
            counted.filter(|(_, _, count)| *count > 0)
        })
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        let mine = self.outcomes.iter_mut().flatten().chain(&mut self.refused);
        let theirs = other.outcomes.iter().flatten().chain(&other.refused);
        for (mine, theirs) in mine.zip(theirs) {
            *mine += theirs;
        }
    }
}

/// What comes of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Frames to send, in order.
    pub frames: Vec<Sent>,
    /// What went to backends.
    pub passed: Vec<Passed>,
    /// What the control side should act on.
    pub events: Vec<Event>,
    /// What became of packets.
    pub counts: Counts,
}

impl Output {
    /// Adds a frame.
    pub fn send(&mut self, to: To, frame: Vec<u8>) {
        self.frames.push(Sent { to, frame });
    }

    /// Adds a frame that takes a packet, or a part of it, of `bytes` bytes of IP to a backend.
    pub fn forward(&mut self, to: To, frame: Vec<u8>, choice: Choice, bytes: usize) {
        self.passed.push(Passed {
            vip: choice.vip,
            backend: choice.backend,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        });
        self.send(to, frame);
    }
}

/// The fast path's decision, asked for a packet in hand.
pub trait Decide {
    /// What the program would do with this frame. `admitted`: it has been through the VIP's limits already, and takes no token.
    fn balance(&mut self, frame: &[u8], admitted: bool) -> host::Outcome;
    /// Whether what follows only asks where a packet would go, and is no sign that its flow lives.
    fn only_ask(&mut self, _only: bool) {}
    /// A backend's line as it is now.
    fn line(&self, backend: BackendIndex) -> Option<BackendLine>;
}

impl<M: Memory> Decide for Host<M> {
    fn balance(&mut self, frame: &[u8], admitted: bool) -> host::Outcome {
        self.without(if admitted { feature::LIMITS } else { 0 });
        Host::balance(self, frame)
    }

    fn only_ask(&mut self, only: bool) {
        self.record_flows(!only);
    }

    fn line(&self, backend: BackendIndex) -> Option<BackendLine> {
        Host::line(self, backend)
    }
}
