//! One worker: receives, lets the handler think, sends, sleeps. Never decides what becomes of a packet, and never spins: with
//! nothing to do it sleeps in poll(2) until a packet, a ring of its bell or the handler's deadline.

use std::{
    collections::BTreeMap,
    io,
    mem::take,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam::{channel::Sender, queue::ArrayQueue};
use lb_core::slow::{Event, Input, Output, Sent, To};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::{TimeSpec, TimeValLike as _},
    time::{ClockId, clock_gettime},
};
use xdp_prog::verdict::Verdict;
use xsk_rs::socket::XdpStatistics;

use super::{
    Handler, Tally,
    area::{Area, Filled, Frame},
    rings::Rings,
    settings::MAX_DESCRIPTORS,
    status::{Place, lock},
};

/// How often the kernel is asked what it dropped, and whether the socket still works.
const INSPECTION_NS: u64 = 1_000_000_000;
/// How long to wait for the kernel to give sent frames back, or to take what it did not: doubled up to the most each time.
const SHORTEST_WAIT_NS: u64 = 1_000_000;
const LONGEST_WAIT_NS: u64 = 128_000_000;

/// Nanoseconds of CLOCK_MONOTONIC: the time of all handlers.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|now| u64::try_from(now.num_nanoseconds()).ok())
        .unwrap_or(0)
}

/// What the workers of a group share.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) area: Area,
    pub(super) members: Vec<Member>,
    /// By interface index, the members that have a queue to send by.
    pub(super) senders: BTreeMap<u32, Vec<usize>>,
    pub(super) stop: AtomicBool,
}

/// A worker of a group, as the others see it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) place: Arc<Place>,
    /// Packets that others want sent by this one.
    pub(super) inbox: ArrayQueue<Filled>,
}

/// A worker.
pub(super) struct Worker {
    pub(super) place: Arc<Place>,
    pub(super) group: Arc<Group>,
    /// Position among the members.
    pub(super) position: usize,
    pub(super) rings: Rings,
    /// The interface's hardware address that the handler was made with.
    pub(super) mac: [u8; 6],
    pub(super) handler: Box<dyn Handler>,
    pub(super) events: Sender<Event>,
    /// Where frames for this node's kernel go.
    pub(super) kernel: Option<Arc<super::ToKernel>>,
    pub(super) state: State,
}

/// What a worker keeps between rounds.
#[derive(Default)]
pub(super) struct State {
    output: Output,
    /// Frames in hand: the last ones may be the beginning of a packet.
    frames: Vec<Frame>,
    /// Packets of several frames, put together. Never more than the frames in hand.
    assembled: Vec<u8>,
    inspected_ns: u64,
    seen: XdpStatistics,
    wait_ns: u64,
    /// The kernel did not take everything.
    stuck: bool,
}

/// Where a received packet lies.
enum Span {
    Frame(usize),
    Assembled(usize, usize),
}

impl Worker {
    /// Works until the group stops.
    pub(super) fn run(&mut self) -> io::Result<()> {
        self.rings.refill(&self.group.area);
        loop {
            if self.group.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            assert!(!self.place.condemned.swap(false, Ordering::AcqRel), "killed by a test");
            let now_ns = monotonic_ns();
            let busy = self.round(now_ns)?;
            if now_ns.saturating_sub(self.state.inspected_ns) >= INSPECTION_NS {
                self.inspect()?;
                self.state.inspected_ns = now_ns;
            }
            self.report();
            if !busy {
                self.sleep()?;
            }
        }
    }

    /// One round. Returns whether there may be more to do at once.
    fn round(&mut self, now_ns: u64) -> io::Result<bool> {
        if self.place.wake.is_rung() {
            self.place.wake.clear();
        }
        self.rings.reap(&self.group.area);
        let handed = self.send_inbox();
        let received = self.rings.receive(&mut self.state.frames);
        if received > 0 {
            self.handle(now_ns);
        }
        let poked = self.place.poked.swap(false, Ordering::AcqRel);
        if poked || self.handler.deadline().is_some_and(|deadline| deadline <= now_ns) {
            self.handler.turn(now_ns, &mut self.state.output);
        }
        self.send_output();
        self.rings.refill(&self.group.area);
        if received > 0 {
            self.rings.wake_receiving()?;
        }
        match self.rings.kick() {
            Ok(stuck) => self.state.stuck = stuck,
            Err(error) => {
                self.place.add(Tally::SendErrors, 1);
                // The socket is not bound any more: the interface is gone.
                if error.raw_os_error() == Some(libc::ENXIO) {
                    return Err(error);
                }
                self.state.stuck = true;
            }
        }
        Ok(received > 0 || handed > 0)
    }

    /// Gives the packets in hand to the handler, and their frames back.
    fn handle(&mut self, now_ns: u64) {
        let area = &self.group.area;
        let frames = &self.state.frames;
        let assembled = &mut self.state.assembled;
        assembled.clear();
        let mut packets: Vec<(Verdict, Span)> = Vec::with_capacity(frames.len());
        let mut unknown = 0;
        let mut begin = 0;
        for (position, frame) in frames.iter().enumerate() {
            if frame.has_more() {
                continue;
            }
            let pieces = frames.get(begin..=position).unwrap_or_default();
            let first = begin;
            begin = position + 1;
            let verdict = pieces.first().and_then(|frame| verdict_of(area.metadata(frame)));
            let Some(verdict) = verdict else {
                unknown += 1;
                continue;
            };
            if pieces.len() == 1 {
                packets.push((verdict, Span::Frame(first)));
            } else {
                let from = assembled.len();
                for piece in pieces {
                    assembled.extend_from_slice(area.contents(piece));
                }
                packets.push((verdict, Span::Assembled(from, assembled.len())));
            }
        }
        let inputs: Vec<Input<'_>> = packets
            .iter()
            .filter_map(|(verdict, span)| {
                let frame = match *span {
                    Span::Frame(position) => area.contents(frames.get(position)?),
                    Span::Assembled(from, to) => assembled.get(from..to)?,
                };
                Some(Input {
                    verdict: *verdict,
                    frame,
                })
            })
            .collect();
        self.place.add(Tally::NoReason, unknown);
        self.place.add(Tally::Received, unknown + inputs.len() as u64);
        if !inputs.is_empty() {
            self.handler.batch(now_ns, &inputs, &mut self.state.output);
        }
        for frame in self.state.frames.drain(..begin) {
            area.give(frame);
        }
        if self.state.frames.len() > MAX_DESCRIPTORS {
            // The kernel never makes such a packet; if it does, the frames are not ours to keep.
            self.place.add(Tally::Malformed, 1);
            for frame in self.state.frames.drain(..) {
                area.give(frame);
            }
        }
    }

    /// Sends what others handed over. Returns how many packets.
    fn send_inbox(&mut self) -> usize {
        let group = Arc::clone(&self.group);
        let Some(member) = group.members.get(self.position) else {
            return 0;
        };
        // As many as there are now: others may go on handing over.
        let waiting = member.inbox.len();
        for _ in 0..waiting {
            let Some(packet) = member.inbox.pop() else {
                break;
            };
            self.send(packet);
        }
        waiting
    }

    /// Carries out what the handler wants.
    fn send_output(&mut self) {
        let mut output = take(&mut self.state.output);
        for event in output.events.drain(..) {
            if self.events.try_send(event).is_err() {
                self.place.add(Tally::EventsLost, 1);
            }
        }
        let mut rung: Vec<usize> = Vec::new();
        for sent in output.frames.drain(..) {
            if let Some(position) = self.dispatch(&sent)
                && !rung.contains(&position)
            {
                rung.push(position);
            }
        }
        for position in rung {
            if let Some(member) = self.group.members.get(position) {
                member.place.wake.ring();
            }
        }
        lock(&self.place.counts).merge(&output.counts);
        output.counts = lb_core::slow::Counts::default();
        // Keeps the room of the lists.
        self.state.output = output;
    }

    /// Sends a frame on its way. Returns the member whose bell is to be rung.
    fn dispatch(&mut self, sent: &Sent) -> Option<usize> {
        let ifindex = match sent.to {
            To::Interface(ifindex) => ifindex,
            To::Kernel => {
                let taken = self.kernel.as_ref().is_some_and(|kernel| kernel.write(&sent.frame));
                self.place.add(
                    if taken {
                        Tally::ToKernel
                    } else {
                        Tally::ToKernelUnsupported
                    },
                    1,
                );
                return None;
            }
        };
        let Some(to) = self.sender(ifindex) else {
            self.place.add(Tally::NoInterface, 1);
            return None;
        };
        let most = if self.rings.multi_buffer { MAX_DESCRIPTORS } else { 1 };
        let Some(packet) = self.fill(&sent.frame, most) else {
            let too_long = self.group.area.pieces(&sent.frame) > most;
            self.place
                .add(if too_long { Tally::TooLong } else { Tally::NoFrame }, 1);
            return None;
        };
        if to == self.position {
            self.send(packet);
            return None;
        }
        match self.group.members.get(to).map(|member| member.inbox.push(packet)) {
            Some(Ok(())) => {
                self.place.add(Tally::HandedOver, 1);
                Some(to)
            }
            Some(Err(packet)) => {
                self.group.area.give_all(packet);
                self.place.add(Tally::InboxFull, 1);
                Some(to)
            }
            None => None,
        }
    }

    /// The member that sends out of an interface for us: ourselves where possible.
    fn sender(&self, ifindex: u32) -> Option<usize> {
        let senders = self.group.senders.get(&ifindex)?;
        if senders.contains(&self.position) {
            return Some(self.position);
        }
        senders.get(self.place.queue as usize % senders.len().max(1)).copied()
    }

    /// A packet in frames; frames that have been sent are taken back if there are none.
    fn fill(&mut self, packet: &[u8], most: usize) -> Option<Filled> {
        if let Some(filled) = self.group.area.fill(packet, most) {
            return Some(filled);
        }
        let _ = self.rings.kick();
        self.rings.reap(&self.group.area);
        self.group.area.fill(packet, most)
    }

    fn send(&mut self, packet: Filled) {
        let refused = match self.rings.send(packet) {
            Ok(()) => None,
            Err(packet) => {
                // Full: let the kernel have what is there, and try once more.
                let _ = self.rings.kick();
                self.rings.reap(&self.group.area);
                self.rings.send(packet).err()
            }
        };
        match refused {
            None => self.place.add(Tally::Sent, 1),
            Some(packet) => {
                self.group.area.give_all(packet);
                self.place.add(Tally::SendFull, 1);
            }
        }
    }

    /// Asks the kernel for what it counts, and whether the socket still works and the handler still knows its interface.
    fn inspect(&mut self) -> io::Result<()> {
        self.rings.broken()?;
        // A new handler answers with, and announces, the new one. An interface that cannot be asked is the socket's business.
        if self.place.interface.mac_now().is_ok_and(|mac| mac != self.mac) {
            return Err(io::Error::other("the interface has another hardware address now"));
        }
        let (now, seen) = (self.rings.statistics()?, self.state.seen);
        let since = |field: fn(&XdpStatistics) -> u64| field(&now).saturating_sub(field(&seen));
        self.place
            .add(Tally::KernelRingFull, since(XdpStatistics::rx_ring_full));
        self.place
            .add(Tally::KernelNoFrame, since(XdpStatistics::rx_fill_ring_empty_descs));
        self.place.add(Tally::KernelDropped, since(XdpStatistics::rx_dropped));
        let invalid = since(XdpStatistics::rx_invalid_descs) + since(XdpStatistics::tx_invalid_descs);
        self.place.add(Tally::KernelInvalid, invalid);
        self.state.seen = now;
        Ok(())
    }

    /// Says how full everything is.
    fn report(&mut self) {
        let inbox = self
            .group
            .members
            .get(self.position)
            .map_or(0, |member| member.inbox.len());
        self.place.inbox.store(inbox as u32, Ordering::Relaxed);
        self.place.waiting.store(self.rings.waiting(), Ordering::Relaxed);
        self.place.posted.store(self.rings.posted(), Ordering::Relaxed);
        self.place.sending.store(self.rings.sending(), Ordering::Relaxed);
    }

    fn sleep(&mut self) -> io::Result<()> {
        // What was asked for with a ring that this round has cleared away: nobody rings again for it.
        if self.group.stop.load(Ordering::Acquire) || self.place.condemned.load(Ordering::Acquire) {
            return Ok(());
        }
        let now_ns = monotonic_ns();
        let mut until_ns = self.state.inspected_ns.saturating_add(INSPECTION_NS);
        if let Some(deadline) = self.handler.deadline() {
            until_ns = until_ns.min(deadline);
        }
        // Nobody says when the kernel is done with frames or others have given some back: look again soon, and less and less often.
        if self.state.stuck || self.rings.sending() > 0 || self.rings.is_short() {
            self.state.wait_ns = (self.state.wait_ns * 2).clamp(SHORTEST_WAIT_NS, LONGEST_WAIT_NS);
            until_ns = until_ns.min(now_ns.saturating_add(self.state.wait_ns));
        } else {
            self.state.wait_ns = 0;
        }
        let left_ns = i64::try_from(until_ns.saturating_sub(now_ns)).unwrap_or(i64::MAX);
        let mut descriptors = [
            PollFd::new(self.rings.fd(), PollFlags::POLLIN),
            PollFd::new(self.place.wake.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut descriptors, Some(TimeSpec::nanoseconds(left_ns)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Whatever the flag says: who rings sets it before they write, and it may have been cleared in between. Nobody else would
        // ever take that write away, and there would be no more sleep.
        if descriptors[1].any().unwrap_or(true) {
            self.place.wake.clear();
        }
        Ok(())
    }
}

/// The verdict whose number is in the metadata word.
fn verdict_of(word: u64) -> Option<Verdict> {
    u32::try_from(word).ok().and_then(Verdict::from_counter)
}
