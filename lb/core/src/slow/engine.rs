//! One worker's slow path: from a packet to its handler. A table of contents; what is done with a packet stands in the handlers.

use xdp_prog::{
    host::Choice,
    verdict::Verdict,
    wire::{PROTO_TCP, PROTO_UDP, TCP_LEN, UDP_LEN},
};

use super::{
    Book, Common, Decide, Event, FlowKey, Input, Kind, Link, Outcome, Output, Packet, To, Way,
    announce::Announcer,
    echo,
    fragments::{Arrival, Datagram},
    hold::{Held, Hold},
    neighbour,
    packet::icmp_of,
    reject, steer, too_big, way,
};

/// What a worker is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Index of the worker's interface.
    pub ifindex: u32,
    /// The interface's MAC address: the source of answers.
    pub mac: [u8; 6],
    /// It announces, for its interface, the VIP addresses that the node comes to own: one worker of every interface does.
    pub announces: bool,
}

/// What became of a packet in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It is done with.
    With(Outcome),
    /// The balancer's rules drop it.
    Refused(Verdict),
    /// It waits, and is counted when it waits no longer.
    Held,
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        Self::With(outcome)
    }
}

/// What became of a packet that was held.
enum Retry {
    Done(Done),
    /// It goes on waiting.
    Wait(Choice),
}

/// What a worker looks things up in; it may be other tables with every call.
pub struct Tables<'a> {
    /// What is known of VIP addresses.
    pub book: &'a Book,
    /// What all workers of the node share.
    pub common: &'a Common,
    /// The fast path's decision.
    pub decide: &'a mut dyn Decide,
}

/// What handlers have at hand.
pub(super) struct Context<'a> {
    /// Nanoseconds since some fixed moment.
    pub(super) now_ns: u64,
    pub(super) settings: EngineSettings,
    pub(super) common: &'a Common,
    pub(super) book: &'a Book,
    pub(super) decide: &'a mut dyn Decide,
    pub(super) hold: &'a mut Hold,
    pub(super) out: &'a mut Output,
    /// Whose budget has been charged for what is in hand.
    pub(super) paid: Kind,
}

/// One worker's slow path.
#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    hold: Hold,
    announcer: Announcer,
}

impl Engine {
    /// With empty hands.
    pub fn new(settings: EngineSettings) -> Self {
        Self {
            settings,
            hold: Hold::default(),
            announcer: Announcer::default(),
        }
    }

    /// Handles a packet. `now_ns` never goes back.
    pub fn step(&mut self, now_ns: u64, input: Input<'_>, tables: &mut Tables<'_>, out: &mut Output) {
        self.context(now_ns, tables, out).arrive(input);
    }

    /// Does what is due: call when [`Self::deadline`] has passed, and after every change of the tables or the book.
    pub fn turn(&mut self, now_ns: u64, tables: &mut Tables<'_>, out: &mut Output) {
        for _ in 0..tables.common.fragments().expire(now_ns) {
            out.counts.add(Kind::Fragment, Outcome::FragmentTimeout);
        }
        if self.settings.announces {
            self.announcer.turn(now_ns, &self.settings, tables.book, out);
        }
        let held = self.hold.take_all();
        let mut context = self.context(now_ns, tables, out);
        for held in held {
            context.again(held);
        }
    }

    /// When something is due next, in the time of `now_ns`.
    pub fn deadline(&self, common: &Common) -> Option<u64> {
        let held = self.hold.deadline(common.bounds().hold);
        let due = [held, common.fragments().deadline(), self.announcer.deadline()];
        due.into_iter().flatten().min()
    }

    /// Frames that wait for a next hop.
    pub fn held(&self) -> usize {
        self.hold.len()
    }

    /// Bytes of frames that wait for a next hop.
    pub fn held_bytes(&self) -> u64 {
        self.hold.bytes()
    }

    fn context<'a>(&'a mut self, now_ns: u64, tables: &'a mut Tables<'_>, out: &'a mut Output) -> Context<'a> {
        Context {
            now_ns,
            settings: self.settings,
            common: tables.common,
            book: tables.book,
            decide: tables.decide,
            hold: &mut self.hold,
            out,
            paid: Kind::Unusual,
        }
    }
}

impl Context<'_> {
    fn arrive(&mut self, input: Input<'_>) {
        let Some(mut kind) = Kind::of(input.verdict).first().copied() else {
            self.out.counts.add(Kind::Unusual, Outcome::NoReason);
            return;
        };
        let done = match kind {
            Kind::Neighbour => self.within(kind, |context| neighbour::answer(context, input.frame)),
            Kind::Echo
            | Kind::IcmpError
            | Kind::TooBig
            | Kind::Fragment
            | Kind::Unusual
            | Kind::NextHop
            | Kind::Reject => match Packet::parse(input.frame) {
                Ok(packet) => {
                    kind = self.kind_of(kind, &packet);
                    if let Some(verdict) = self.book.refuses(packet.source, packet.destination) {
                        // Before it can take a token of those who are not refused.
                        return self.count(kind, Done::Refused(verdict));
                    }
                    let admitted = matches!(
                        input.verdict,
                        Verdict::SlowTooBig | Verdict::SlowNextHop | Verdict::SlowNoBackend
                    );
                    self.within(kind, |context| context.packet(kind, &packet, admitted))
                }
                Err(outcome) => outcome.into(),
            },
        };
        self.count(kind, done);
    }

    /// The kind of a packet that has been looked at: the fast path looks less closely.
    fn kind_of(&self, kind: Kind, packet: &Packet<'_>) -> Kind {
        if packet.fragment.is_some() {
            Kind::Fragment
        } else if packet.protocol == icmp_of(packet.destination) {
            if steer::is_error(packet) {
                Kind::IcmpError
            } else {
                Kind::Echo
            }
        } else {
            kind
        }
    }

    /// Does the work if the kind's budget allows it.
    fn within(&mut self, kind: Kind, work: impl FnOnce(&mut Self) -> Done) -> Done {
        if self.common.take(kind, self.now_ns) {
            self.paid = kind;
            work(self)
        } else {
            Outcome::OverBudget.into()
        }
    }

    fn count(&mut self, kind: Kind, done: Done) {
        match done {
            Done::With(outcome) => self.out.counts.add(kind, outcome),
            Done::Refused(verdict) => self.out.counts.add_refused(kind, verdict),
            Done::Held => {}
        }
    }

    fn packet(&mut self, kind: Kind, packet: &Packet<'_>, admitted: bool) -> Done {
        if packet.fragment.is_some() {
            return self.fragment(packet);
        }
        self.whole(kind, packet, admitted)
    }

    /// A packet that is no fragment.
    fn whole(&mut self, kind: Kind, packet: &Packet<'_>, admitted: bool) -> Done {
        if packet.protocol == icmp_of(packet.destination) {
            return if steer::is_error(packet) {
                steer::steer(self, packet)
            } else {
                echo::answer(self, packet)
            };
        }
        if packet.protocol != PROTO_TCP && packet.protocol != PROTO_UDP {
            // Its VIPs may be gone since the fast path looked: then it is not this node's to answer for.
            return match self.book.address(packet.destination) {
                Some(_) => reject::protocol(self, packet),
                None => Outcome::NotVip.into(),
            };
        }
        let least = if packet.protocol == PROTO_TCP { TCP_LEN } else { UDP_LEN };
        match FlowKey::of(packet) {
            Some(flow) if packet.payload().len() >= least => self.flow(kind, packet, &flow, admitted),
            // As the fast path has it.
            Some(_) | None => Outcome::Malformed.into(),
        }
    }

    /// A fragment: it follows the first of its datagram.
    fn fragment(&mut self, packet: &Packet<'_>) -> Done {
        let (arrival, evicted) = {
            let mut fragments = self.common.fragments();
            (fragments.arrive(self.now_ns, packet), fragments.take_evicted())
        };
        for _ in 0..evicted {
            self.out.counts.add(Kind::Fragment, Outcome::FragmentRoom);
        }
        match arrival {
            Arrival::Held => Done::Held,
            Arrival::Drop { outcome, released } => {
                for _ in 0..released {
                    self.out.counts.add(Kind::Fragment, outcome);
                }
                outcome.into()
            }
            Arrival::Go { mut datagram, released } => {
                let done = self.of_datagram(packet, &datagram);
                if let Some(lost) = lost(done, &datagram) {
                    datagram = lost;
                    self.common.fragments().settle(packet, datagram);
                }
                for frame in released {
                    let done = match Packet::parse(&frame) {
                        Ok(packet) => self.of_datagram(&packet, &datagram),
                        Err(outcome) => outcome.into(),
                    };
                    self.count(Kind::Fragment, done);
                }
                done
            }
        }
    }

    fn of_datagram(&mut self, packet: &Packet<'_>, datagram: &Datagram) -> Done {
        match datagram {
            // Each takes a token of the VIP's limits, which are for packets: or one token would bring a hundred of them.
            Datagram::Flow(flow) => self.flow(Kind::Fragment, packet, flow, false),
            Datagram::Echo => echo::answer_fragment(self, packet),
            Datagram::Other => Outcome::Unanswerable.into(),
            Datagram::Refused(verdict) => Done::Refused(*verdict),
            Datagram::Unanswered(outcome) => (*outcome).into(),
        }
    }

    /// Sends a packet of a flow on its way, or does what must be done where there is none.
    pub(super) fn flow(&mut self, kind: Kind, packet: &Packet<'_>, flow: &FlowKey, admitted: bool) -> Done {
        match way(self.decide, self.settings.ifindex, packet, flow, admitted) {
            Way::Send { to, frame, choice } => {
                self.out.forward(to, frame, choice, packet.ip.len());
                Outcome::Forwarded.into()
            }
            Way::Local { choice } => self.local(packet, choice),
            Way::TooBig { mtu, .. } => too_big::too_big(self, packet, flow, mtu),
            Way::NextHop { choice } => self.wait(kind, packet, flow, choice),
            Way::None(Verdict::PassOwnAddress) => self.pass_up(packet),
            Way::None(Verdict::SlowNoBackend | Verdict::SlowUnservedPort) => reject::port(self, packet),
            Way::None(Verdict::PassNotVip) => Outcome::NotVip.into(),
            Way::None(verdict) => Done::Refused(verdict),
        }
    }

    /// The backend is this node.
    pub(super) fn local(&mut self, packet: &Packet<'_>, choice: Choice) -> Done {
        let frame = [packet.link.bytes, packet.ip].concat();
        self.out.forward(To::Kernel, frame, choice, packet.ip.len());
        Outcome::Local.into()
    }

    pub(super) fn pass_up(&mut self, packet: &Packet<'_>) -> Done {
        let frame = [packet.link.bytes, packet.ip].concat();
        self.out.send(To::Kernel, frame);
        Outcome::Local.into()
    }

    /// Keeps a packet until its backend's next hop is known.
    pub(super) fn wait(&mut self, kind: Kind, packet: &Packet<'_>, flow: &FlowKey, choice: Choice) -> Done {
        let held = Held {
            kind,
            flow: *flow,
            frame: [packet.link.bytes, packet.ip].concat(),
            since_ns: self.now_ns,
        };
        self.keep(choice, held)
    }

    fn keep(&mut self, choice: Choice, held: Held) -> Done {
        match self
            .hold
            .put(self.common.bounds().hold, self.now_ns, choice.backend, held)
        {
            Ok(ask) => {
                if ask {
                    self.out.events.push(Event::NextHopWanted(choice.backend));
                }
                Done::Held
            }
            Err(outcome) => outcome.into(),
        }
    }

    /// Tries a packet that was held; who waited too long is told that the host cannot be reached.
    fn again(&mut self, held: Held) {
        let kind = held.kind;
        self.paid = kind;
        let done = match self.retry(&held) {
            Retry::Done(done) => done,
            Retry::Wait(choice) => self.keep(choice, held),
        };
        self.count(kind, done);
    }

    fn retry(&mut self, held: &Held) -> Retry {
        let packet = match Packet::parse(&held.frame) {
            Ok(packet) => packet,
            Err(outcome) => return Retry::Done(outcome.into()),
        };
        let late = self.now_ns >= held.deadline_ns(self.common.bounds().hold);
        match way(self.decide, self.settings.ifindex, &packet, &held.flow, true) {
            Way::NextHop { choice } if !late => Retry::Wait(choice),
            Way::NextHop { .. } => Retry::Done(reject::host(self, &packet)),
            Way::Send { .. } | Way::Local { .. } | Way::TooBig { .. } | Way::None(_) => {
                Retry::Done(self.flow(held.kind, &packet, &held.flow, true))
            }
        }
    }

    /// Whether an answer of this kind of work may go to who sent `packet` now: it is one host, and has not had its share. Whatever
    /// the packet came as, the answer is one of its kind's budget: or options and fragments would be a way past it.
    pub(super) fn may_answer(&self, kind: Kind, packet: &Packet<'_>) -> Result<(), Outcome> {
        reject::answerable(kind, packet)?;
        if kind != self.paid && !self.common.take(kind, self.now_ns) {
            Err(Outcome::OverBudget)
        } else if self.common.take_for(packet.source, self.now_ns) {
            Ok(())
        } else {
            Err(Outcome::OverSourceLimit)
        }
    }

    /// Sends an answer back where a packet came from: `network` is what goes behind the link layer.
    pub(super) fn answer(&mut self, link: &Link<'_>, network: &[u8]) {
        let mut frame = link.answer(self.settings.mac);
        frame.extend_from_slice(network);
        self.out.send(To::Interface(self.settings.ifindex), frame);
    }
}

/// What a datagram is from now on, if no more of it is of use after what was done with one of its fragments.
fn lost(done: Done, datagram: &Datagram) -> Option<Datagram> {
    match (done, datagram) {
        (Done::Refused(verdict), _) => Some(Datagram::Refused(verdict)),
        (Done::With(outcome), Datagram::Echo) if outcome != Outcome::EchoReply => Some(Datagram::Unanswered(outcome)),
        (Done::With(_) | Done::Held, _) => None,
    }
}
