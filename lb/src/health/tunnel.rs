//! Probes through the tunnel on the wire: frames out by AF_PACKET, answers in by AF_PACKET. Never decides which VIP is asked for, or
//! what silence means.
//!
//! Not by AF_XDP: the answer is no VIP's packet, so that the program passes it to the kernel, where an AF_XDP socket does not see it; and
//! probes go on while the slow path is off. The frames are those that the program would make, and no rule of this host, kube-proxy's
//! among them, sees them.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
};

use lb_core::{
    desired::{NextHop, Via},
    health::{Answer, Fault, Launch, Outcome, PROBE_PORTS, Ticket, TunnelProbe},
    nexthop::NextHopView,
};

use super::Now;
use crate::xsk::{Family, FrameSender, SegmentReceiver};

/// The sockets, and what is under way.
pub(super) struct Tunnel {
    sender: FrameSender,
    receivers: [SegmentReceiver; 2],
    /// By VIP and own port.
    waiting: BTreeMap<(SocketAddr, u16), Waiting>,
    next_port: u16,
    /// Of initial sequence numbers: nobody can answer who has not seen the SYN.
    secret: u64,
}

struct Waiting {
    ticket: Ticket,
    probe: TunnelProbe,
    via: Via,
    node: IpAddr,
    until: Now,
}

impl Tunnel {
    /// Opens the sockets, on the thread's runtime.
    pub(super) fn open(secret: u64) -> io::Result<Self> {
        let receiver = |family| SegmentReceiver::open(family, *PROBE_PORTS.start());
        Ok(Self {
            sender: FrameSender::open()?,
            receivers: [receiver(Family::V4)?, receiver(Family::V6)?],
            waiting: BTreeMap::new(),
            next_port: *PROBE_PORTS.start(),
            secret,
        })
    }

    /// Sends a SYN; its answer comes by [`Self::answered`], if one does. What came of it where none was sent.
    pub(super) fn ask(&mut self, launch: &Launch, view: &NextHopView, now: Now) -> Result<(), Outcome> {
        let vip = launch.vip.ok_or(Outcome::Skipped(Fault::NoVip))?;
        let Some(NextHop::Via(via)) = view.next_hops.get(&launch.backend) else {
            return Err(Outcome::Skipped(Fault::NoWay));
        };
        let own = |address: &&IpAddr| address.is_ipv4() == vip.address.is_ipv4();
        let source = if via.source.is_ipv4() == vip.address.is_ipv4() {
            Some(via.source)
        } else {
            view.own_addresses.iter().find(own).copied()
        };
        let source = source.ok_or(Outcome::Skipped(Fault::NoSource))?;
        let vip = SocketAddr::new(vip.address, vip.port);
        self.waiting.retain(|_, waiting| waiting.until > now);
        let port = self.free_port(vip).ok_or(Outcome::Skipped(Fault::NoSource))?;
        let probe = TunnelProbe {
            source: SocketAddr::new(source, port),
            vip,
            isn: self.isn(now),
        };
        let frame = probe.syn(via, launch.address).ok_or(Outcome::Skipped(Fault::NoWay))?;
        self.send(via, &frame)
            .map_err(|error| Outcome::Skipped(fault(&error)))?;
        let timeout = std::time::Duration::from_millis(launch.check.timing.timeout_ms.into());
        let waiting = Waiting {
            ticket: launch.ticket,
            probe,
            via: *via,
            node: launch.address,
            until: now + timeout,
        };
        self.waiting.insert((vip, port), waiting);
        Ok(())
    }

    /// Waits for an answer to one of them; which it was of. Nothing is lost when it is dropped while it waits.
    pub(super) async fn answered(&mut self) -> Ticket {
        loop {
            let [v4, v6] = &self.receivers;
            let received = tokio::select! {
                received = v4.receive() => received,
                received = v6.receive() => received,
            };
            let packet = match received {
                Ok(packet) => packet,
                // An interface that goes down says so once.
                Err(error) => {
                    tracing::debug!(%error, "no answer could be received");
                    continue;
                }
            };
            if let Some(ticket) = self.match_up(&packet) {
                return ticket;
            }
        }
    }

    fn match_up(&mut self, packet: &[u8]) -> Option<Ticket> {
        let answer = Answer::read(packet)?;
        let key = (answer.from, answer.to.port());
        let waiting = self.waiting.get(&key)?;
        if !waiting.probe.is_answered_by(&answer) {
            return None;
        }
        let waiting = self.waiting.remove(&key)?;
        if answer.accepted
            && let Some(frame) = waiting.probe.reset(&waiting.via, waiting.node)
            // The server ends it by itself, in time.
            && let Err(error) = self.send(&waiting.via, &frame)
        {
            tracing::debug!(%error, "a probe's connection could not be ended");
        }
        Some(waiting.ticket)
    }

    fn send(&self, via: &Via, frame: &[u8]) -> io::Result<()> {
        self.sender.send(via.ifindex, frame)
    }

    /// The next port at which nothing is awaited from this VIP.
    fn free_port(&mut self, vip: SocketAddr) -> Option<u16> {
        (0..PROBE_PORTS.len()).find_map(|_| {
            let port = self.next_port;
            self.next_port = if port == *PROBE_PORTS.end() {
                *PROBE_PORTS.start()
            } else {
                port + 1
            };
            (!self.waiting.contains_key(&(vip, port))).then_some(port)
        })
    }

    fn isn(&mut self, now: Now) -> u32 {
        let word = self.secret ^ u64::try_from(now.as_nanos()).unwrap_or_default();
        self.secret = xdp_prog::hash::mix(xdp_prog::hash::mix(word).rotate_left(29));
        (self.secret >> 32) as u32
    }
}

fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        ErrorKind::PermissionDenied => Fault::NotPermitted,
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory => Fault::NoSocket,
        _ => Fault::NoWay,
    }
}
