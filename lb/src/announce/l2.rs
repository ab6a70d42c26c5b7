//! VIP addresses on this node's own segments: asked for before they are answered for. Never answers a question itself: the slow path
//! does, for what [`L2::owns`] says.

use std::{collections::BTreeSet, future::pending, io, net::IpAddr, time::Duration};

use lb_core::{
    announce::{Claim, Claims, Mac},
    slow::{claimed, question},
};
use tokio::time::{Instant, sleep_until};

use crate::xsk::{FrameSender, NeighbourReceiver};

/// What this node answers for, and what it asks for before.
#[derive(Debug)]
pub struct L2 {
    start: Instant,
    /// Where addresses are asked for: index and MAC address of each interface.
    interfaces: Vec<(u32, Mac)>,
    claims: Claims,
    /// What was wanted last; `None` before the first time.
    wanted: Option<BTreeSet<IpAddr>>,
    /// What a process before this one answered for until now is not asked for again.
    goes_on: bool,
    ours: BTreeSet<IpAddr>,
    /// While anything is asked for.
    wire: Option<Wire>,
}

#[derive(Debug)]
struct Wire {
    sender: FrameSender,
    receiver: NeighbourReceiver,
}

/// An address that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Which.
    pub address: IpAddr,
    /// Who has it.
    pub by: Mac,
}

impl L2 {
    /// Answers for nothing yet. `goes_on`: a process before this one answered for what is wanted first.
    pub fn new(goes_on: bool) -> Self {
        Self {
            start: Instant::now(),
            interfaces: Vec::new(),
            claims: Claims::default(),
            wanted: None,
            goes_on,
            ours: BTreeSet::new(),
            wire: None,
        }
    }

    /// Addresses that this node is to answer for from now on, on these interfaces; `probes`: after asking for them.
    pub fn want(&mut self, wanted: BTreeSet<IpAddr>, interfaces: Vec<(u32, Mac)>, probes: bool) {
        self.interfaces = interfaces;
        if self.wanted.as_ref() == Some(&wanted) {
            return;
        }
        let goes_on = self.goes_on && self.wanted.is_none();
        let is_asked_for = probes && !goes_on;
        self.claims.want(&wanted, |_| !is_asked_for, self.now());
        self.wanted = Some(wanted);
        self.turn();
    }

    /// Whether this node answers for an address.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.ours.contains(&address)
    }

    /// How many addresses this node answers for.
    pub fn owned(&self) -> usize {
        self.ours.len()
    }

    /// Addresses that somebody else has are asked for again at once.
    pub fn ask_again(&mut self) {
        self.claims.ask_again(self.now());
    }

    /// Addresses that somebody else has.
    pub fn in_use(&self) -> impl Iterator<Item = InUse> {
        self.claims.all().filter_map(|(address, claim)| match claim {
            Claim::InUse { by, .. } => Some(InUse { address, by }),
            Claim::Asking { .. } | Claim::Ours => None,
        })
    }

    /// Somebody says that it has an address. Whether that is what this node asked, so that nothing more is to be said of it.
    pub fn hear(&mut self, address: IpAddr, by: Mac) -> bool {
        if self.interfaces.iter().any(|(_, mac)| *mac == by) {
            return false;
        }
        let is_news = self.claims.hear(address, by, self.now());
        if is_news {
            let [a, b, c, d, e, f] = by;
            tracing::error!(
                %address,
                reason = "AddressInUse",
                "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} has this VIP address already: it is not answered for here, and asked \
                 for again every {} s; take the address from that host, or out of this node's VIPs",
                lb_core::announce::ASK_AGAIN.as_secs()
            );
        }
        is_news
    }

    /// Waits until [`Self::owns`] says something else. Nothing is lost when it is dropped while it waits.
    pub async fn next(&mut self) {
        loop {
            let due = self.claims.deadline().map(|due| self.start + due);
            let frame = tokio::select! {
                () = until(due) => None,
                frame = receive(self.wire.as_ref()) => Some(frame),
            };
            match frame {
                None => {
                    if self.turn() {
                        return;
                    }
                }
                Some(Ok(frame)) => {
                    if let Some((address, by)) = claimed(&frame) {
                        self.hear(address, by);
                    }
                }
                // An interface that goes down says so once.
                Some(Err(error)) => tracing::debug!(%error, "no answer could be received"),
            }
        }
    }

    /// Does what is due; whether this node answers for something else than before.
    fn turn(&mut self) -> bool {
        for address in self.claims.turn(self.now()) {
            self.ask(address);
        }
        let ours = self.claims.all().filter(|(_, claim)| *claim == Claim::Ours);
        let ours: BTreeSet<IpAddr> = ours.map(|(address, _)| address).collect();
        let changed = ours != self.ours;
        self.ours = ours;
        let is_asking = |(_, claim)| matches!(claim, Claim::Asking { .. });
        if !self.claims.all().any(is_asking) {
            self.wire = None;
        }
        changed
    }

    fn ask(&mut self, address: IpAddr) {
        let wire = match self.wire.take().map_or_else(Wire::open, Ok) {
            Ok(wire) => self.wire.insert(wire),
            Err(error) => {
                tracing::warn!(%address, "cannot ask whether another host has this VIP address: {error}");
                return;
            }
        };
        for (ifindex, mac) in &self.interfaces {
            if let Err(error) = wire.sender.send(*ifindex, &question(address, *mac)) {
                tracing::warn!(%address, "cannot ask whether another host has this VIP address: {error}");
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Wire {
    fn open() -> io::Result<Self> {
        Ok(Self {
            sender: FrameSender::open()?,
            receiver: NeighbourReceiver::open()?,
        })
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

async fn receive(wire: Option<&Wire>) -> io::Result<Vec<u8>> {
    match wire {
        Some(wire) => wire.receiver.receive().await,
        None => pending().await,
    }
}
