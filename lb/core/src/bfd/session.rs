//! One session (RFC 5880 §6.8): what a peer's packets and the passing of time do to it, and what is sent.
//!
//! Never asks whose packet it is. Every bound is the wire's own: intervals are 32-bit microseconds, multipliers 8 bits.

use std::time::Duration;

use super::{
    packet::{Diagnostic, Packet, State},
    random::Random,
};

/// While a session is not up, packets are at least this far apart (§6.8.3).
const SLOW_US: u32 = 1_000_000;
/// What a peer that has said nothing yet can receive (§6.8.1).
const UNHEARD_MIN_RX_US: u32 = 1;

/// What a session is asked to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Microseconds between two packets sent, at least.
    pub min_tx_us: u32,
    /// Microseconds between two packets received, at least; never 0.
    pub min_rx_us: u32,
    /// How many of ours in a row may be lost before the peer takes us for dead; never 0.
    pub multiplier: u8,
}

impl Default for Timers {
    /// A silent peer is down after 300 ms.
    fn default() -> Self {
        Self {
            min_tx_us: 100_000,
            min_rx_us: 100_000,
            multiplier: 3,
        }
    }
}

/// What happens to a session.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A packet of the peer's, for this session.
    Received(Packet),
    /// Time has passed; the only event that [`Session::deadline`] asks for.
    Timer,
    /// From now on, these timers.
    Retime(Timers),
    /// An administrator switches it off: the peer is told, and that it says nothing about the path.
    Disable,
    /// And on again.
    Enable,
}

/// Why a session is no longer up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Nothing was heard for the detection time: the peer or the path is dead.
    DetectionTimeExpired,
    /// The peer says that it does not hear us, or has begun anew.
    NeighbourDown,
    /// The peer's administrator switched it off: says nothing about the path (RFC 5882 §3.2).
    NeighbourAdminDown,
    /// Ours did.
    AdminDown,
}

impl Cause {
    /// As it is told to the peer.
    pub const fn diagnostic(self) -> Diagnostic {
        match self {
            Self::DetectionTimeExpired => Diagnostic::DetectionTimeExpired,
            Self::NeighbourDown | Self::NeighbourAdminDown => Diagnostic::NeighbourSignaledDown,
            Self::AdminDown => Diagnostic::AdministrativelyDown,
        }
    }

    /// In output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DetectionTimeExpired => "detection_time_expired",
            Self::NeighbourDown => "neighbour_down",
            Self::NeighbourAdminDown => "neighbour_admin_down",
            Self::AdminDown => "admin_down",
        }
    }
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this, now.
    Send(Packet),
    /// Both hear one another.
    Up,
    /// They do no more; only ever after an [`Action::Up`].
    Down(Cause),
}

/// A session as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Our state.
    pub state: State,
    /// The peer's, as last heard.
    pub remote_state: State,
    /// Our number for it.
    pub discriminator: u32,
    /// The peer's; 0: not known.
    pub remote_discriminator: u32,
    /// Why it last left Up.
    pub cause: Option<Cause>,
    /// Why the peer's last did, in its words.
    pub remote_diagnostic: Diagnostic,
    /// What lies between two packets that we send, before jitter.
    pub interval: Duration,
    /// After how long a silence the peer is taken for dead; `None`: it has not been heard.
    pub detection_time: Option<Duration>,
    /// When it last came up or went down.
    pub since: Duration,
    /// How often it has come up.
    pub ups: u64,
    /// How often it has gone down from up.
    pub downs: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets received, discarded ones left out.
    pub received: u64,
}

/// Where a poll sequence stands (§6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    None,
    /// Packets carry the poll bit until the peer answers.
    Asking,
    /// As above, and timers have changed since: there must be another.
    AskingAgain,
}

/// What the peer's last packet said.
#[derive(Clone, Copy, Debug)]
struct Remote {
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    min_tx_us: u32,
    min_rx_us: u32,
    multiplier: u8,
    demand: bool,
}

impl Remote {
    const UNHEARD: Self = Self {
        state: State::Down,
        diagnostic: Diagnostic::None,
        discriminator: 0,
        min_tx_us: 0,
        min_rx_us: UNHEARD_MIN_RX_US,
        multiplier: 0,
        demand: false,
    };
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    timers: Timers,
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    cause: Option<Cause>,
    remote: Remote,
    poll: Poll,
    /// While up: what is kept to until the peer has answered the poll about what is announced.
    tx_in_effect_us: u32,
    rx_in_effect_us: u32,
    last_sent: Option<Duration>,
    next_send: Duration,
    last_received: Option<Duration>,
    since: Duration,
    ups: u64,
    downs: u64,
    sent: u64,
    received: u64,
    random: Random,
}

impl Session {
    /// A session that is down and sends its first packet at `now`. `discriminator` is its number here, never 0 and like no other
    /// session's; `seed` decides its jitter.
    pub fn new(timers: Timers, discriminator: u32, seed: u64, now: Duration) -> Self {
        Self {
            timers,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::None,
            cause: None,
            remote: Remote::UNHEARD,
            poll: Poll::None,
            tx_in_effect_us: timers.min_tx_us.max(SLOW_US),
            rx_in_effect_us: timers.min_rx_us,
            last_sent: None,
            next_send: now,
            last_received: None,
            since: now,
            ups: 0,
            downs: 0,
            sent: 0,
            received: 0,
            random: Random(seed),
        }
    }

    /// What an event leads to, in this order.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Received(packet) => self.receive(&packet, now, &mut actions),
            Event::Timer => self.time(now, &mut actions),
            Event::Retime(timers) => self.retime(timers, now, &mut actions),
            Event::Disable => {
                if self.state != State::AdminDown {
                    self.leave(State::AdminDown, Cause::AdminDown, now, &mut actions);
                    self.send(false, now, &mut actions);
                }
            }
            Event::Enable => {
                if self.state == State::AdminDown {
                    self.state = State::Down;
                    self.send(false, now, &mut actions);
                }
            }
        }
        actions
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        let send = self.sends_periodically().then_some(self.next_send);
        send.into_iter().chain(self.expiry()).min()
    }

    /// As it is shown.
    pub fn view(&self) -> SessionView {
        SessionView {
            state: self.state,
            remote_state: self.remote.state,
            discriminator: self.discriminator,
            remote_discriminator: self.remote.discriminator,
            cause: self.cause,
            remote_diagnostic: self.remote.diagnostic,
            interval: self.interval(),
            detection_time: self.last_received.map(|_| self.detection_time()),
            since: self.since,
            ups: self.ups,
            downs: self.downs,
            sent: self.sent,
            received: self.received,
        }
    }

    /// §6.8.6, from where the session is known.
    fn receive(&mut self, packet: &Packet, now: Duration, actions: &mut Vec<Action>) {
        self.received += 1;
        self.remote = Remote {
            state: packet.state,
            diagnostic: packet.diagnostic,
            discriminator: packet.my_discriminator,
            min_tx_us: packet.min_tx_us,
            min_rx_us: packet.min_rx_us,
            multiplier: packet.multiplier,
            demand: packet.demand,
        };
        if packet.is_final {
            self.answered();
        }
        if self.state == State::AdminDown {
            return;
        }
        self.last_received = Some(now);
        let before = self.state;
        match (self.state, packet.state) {
            (State::Down, State::AdminDown) => {}
            (_, State::AdminDown) => self.leave(State::Down, Cause::NeighbourAdminDown, now, actions),
            (State::Down, State::Down) => self.state = State::Init,
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => self.come_up(now, actions),
            (State::Up, State::Down) => self.leave(State::Down, Cause::NeighbourDown, now, actions),
            (State::Down, State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up)
            | (State::AdminDown, _) => {}
        }
        // A state that changed is told at once (§6.8.7), and so is the answer to a poll, with the state.
        if packet.poll || self.state != before {
            self.send(packet.poll, now, actions);
        } else {
            self.hasten(now);
        }
    }

    fn time(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.expiry().is_some_and(|expiry| expiry <= now) {
            let was_heard = matches!(self.state, State::Init | State::Up);
            self.remote = Remote {
                diagnostic: self.remote.diagnostic,
                ..Remote::UNHEARD
            };
            self.last_received = None;
            if was_heard {
                self.leave(State::Down, Cause::DetectionTimeExpired, now, actions);
                self.send(false, now, actions);
            }
        }
        if self.sends_periodically() && self.next_send <= now {
            self.send(false, now, actions);
        }
    }

    /// §6.8.3: what the peer could be surprised by waits for its answer to a poll.
    fn retime(&mut self, timers: Timers, now: Duration, actions: &mut Vec<Action>) {
        if timers == self.timers {
            return;
        }
        self.timers = timers;
        if self.state != State::Up {
            self.keep_to_announced();
            self.hasten(now);
            return;
        }
        self.tx_in_effect_us = self.tx_in_effect_us.min(timers.min_tx_us);
        self.rx_in_effect_us = self.rx_in_effect_us.max(timers.min_rx_us);
        self.poll = match self.poll {
            Poll::None => Poll::Asking,
            Poll::Asking | Poll::AskingAgain => Poll::AskingAgain,
        };
        self.send(false, now, actions);
    }

    fn answered(&mut self) {
        match self.poll {
            Poll::None => {}
            Poll::Asking => {
                self.poll = Poll::None;
                self.keep_to_announced();
            }
            Poll::AskingAgain => self.poll = Poll::Asking,
        }
    }

    fn come_up(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.state = State::Up;
        self.diagnostic = Diagnostic::None;
        self.since = now;
        self.ups += 1;
        // Until now a packet a second was announced, unless the timers are as slow.
        if self.timers.min_tx_us < SLOW_US {
            self.poll = Poll::Asking;
        }
        self.keep_to_announced();
        actions.push(Action::Up);
    }

    fn leave(&mut self, to: State, cause: Cause, now: Duration, actions: &mut Vec<Action>) {
        let was_up = self.state == State::Up;
        self.state = to;
        self.diagnostic = cause.diagnostic();
        self.poll = Poll::None;
        self.keep_to_announced();
        if was_up {
            self.since = now;
            self.downs += 1;
            self.cause = Some(cause);
            actions.push(Action::Down(cause));
        }
    }

    fn keep_to_announced(&mut self) {
        self.tx_in_effect_us = self.announced_tx_us();
        self.rx_in_effect_us = self.timers.min_rx_us;
    }

    /// bfd.DesiredMinTxInterval.
    fn announced_tx_us(&self) -> u32 {
        match self.state {
            State::Up => self.timers.min_tx_us,
            State::AdminDown | State::Down | State::Init => self.timers.min_tx_us.max(SLOW_US),
        }
    }

    fn send(&mut self, is_final: bool, now: Duration, actions: &mut Vec<Action>) {
        self.sent += 1;
        self.last_sent = Some(now);
        self.next_send = now.saturating_add(self.jittered());
        actions.push(Action::Send(Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: !is_final && self.poll != Poll::None,
            is_final,
            control_plane_independent: false,
            demand: false,
            multiplier: self.timers.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            min_tx_us: self.announced_tx_us(),
            min_rx_us: self.timers.min_rx_us,
            min_echo_rx_us: 0,
        }));
    }

    /// The next packet comes no later than the interval asks for by now (§6.8.3).
    fn hasten(&mut self, now: Duration) {
        let latest = self.last_sent.unwrap_or(now).saturating_add(self.interval());
        if self.next_send > latest {
            let jittered = self.jittered();
            self.next_send = self.last_sent.unwrap_or(now).saturating_add(jittered);
        }
    }

    /// §6.8.7.
    fn sends_periodically(&self) -> bool {
        let demanded = self.remote.demand && self.state == State::Up && self.remote.state == State::Up;
        self.remote.min_rx_us != 0 && (!demanded || self.poll != Poll::None)
    }

    fn interval(&self) -> Duration {
        Duration::from_micros(self.tx_in_effect_us.max(self.remote.min_rx_us).into())
    }

    /// 75 to 100 % of the interval; with a multiplier of 1, where a late packet is a lost one, at most 90 % (§6.8.7).
    fn jittered(&mut self) -> Duration {
        let interval = u64::from(self.tx_in_effect_us.max(self.remote.min_rx_us));
        let most = if self.timers.multiplier == 1 { 90 } else { 100 };
        let least = interval * 3 / 4;
        Duration::from_micros(least + self.random.below(interval * most / 100 - least + 1))
    }

    /// §6.8.4, of a peer that has been heard.
    fn detection_time(&self) -> Duration {
        let interval = u64::from(self.rx_in_effect_us.max(self.remote.min_tx_us));
        Duration::from_micros(u64::from(self.remote.multiplier) * interval)
    }

    fn expiry(&self) -> Option<Duration> {
        Some(self.last_received?.saturating_add(self.detection_time()))
    }
}
