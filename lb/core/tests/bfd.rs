//! BFD as it is lived: two ends joined by a channel that loses, delays and repeats, and one end with a peer that does anything.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use lb_core::bfd::{
    Action, Arrival, Cause, Diagnostic, Discard, Event, Output, PACKET_BYTES, Packet, Peer, Reach, SINGLE_HOP_PORT,
    Session, Sessions, State, Timers, Wanted,
};
use proptest::{collection::vec, prelude::*};

const MS: Duration = Duration::from_millis(1);

fn timers(min_tx_ms: u32, min_rx_ms: u32, multiplier: u8) -> Timers {
    Timers {
        min_tx_us: min_tx_ms * 1000,
        min_rx_us: min_rx_ms * 1000,
        multiplier,
    }
}

/// What the channel does with a packet: how long each copy of it is under way.
type Fate = Vec<Duration>;

/// Two sessions, and what is under way between them.
struct Link {
    ends: [Session; 2],
    /// By the time of arrival; the number keeps equal times apart, in order.
    on_the_way: BTreeMap<(Duration, u64), (usize, Packet)>,
    number: u64,
    now: Duration,
    changes: [Vec<(Duration, Action)>; 2],
    sent: [Vec<(Duration, Packet)>; 2],
}

impl Link {
    fn new(timers: [Timers; 2], seed: u64) -> Self {
        let end = |index: usize| Session::new(timers[index], 7 + index as u32, seed ^ index as u64, Duration::ZERO);
        Self {
            ends: [end(0), end(1)],
            on_the_way: BTreeMap::new(),
            number: 0,
            now: Duration::ZERO,
            changes: [Vec::new(), Vec::new()],
            sent: [Vec::new(), Vec::new()],
        }
    }

    fn perform(&mut self, end: usize, actions: Vec<Action>, channel: &mut impl FnMut(usize) -> Fate) {
        for action in actions {
            match action {
                Action::Send(packet) => {
                    // What is sent is a packet to whoever reads it.
                    assert_eq!(Packet::parse(&packet.bytes()), Ok(packet));
                    self.sent[end].push((self.now, packet));
                    for delay in channel(end) {
                        self.number += 1;
                        self.on_the_way
                            .insert((self.now + delay, self.number), (1 - end, packet));
                    }
                }
                Action::Up | Action::Down(_) => self.changes[end].push((self.now, action)),
            }
        }
    }

    fn event(&mut self, end: usize, event: Event, channel: &mut impl FnMut(usize) -> Fate) {
        let actions = self.ends[end].step(event, self.now);
        self.perform(end, actions, channel);
    }

    /// Lets time pass to `until`, or to when `done` says so.
    fn run(&mut self, until: Duration, channel: &mut impl FnMut(usize) -> Fate, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let arrival = self.on_the_way.keys().next().copied();
            let timer = (0..2).filter_map(|end| Some((self.ends[end].deadline()?, end))).min();
            let next = arrival
                .map(|(at, _)| at)
                .into_iter()
                .chain(timer.map(|(at, _)| at))
                .min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            match (arrival, timer) {
                (Some(key), _) if key.0 <= next => {
                    let (end, packet) = self.on_the_way.remove(&key).unwrap();
                    self.event(end, Event::Received(packet), channel);
                }
                (_, Some((_, end))) => self.event(end, Event::Timer, channel),
                (_, None) => unreachable!("something was due"),
            }
        }
    }

    fn is(&self, state: State) -> bool {
        self.ends.iter().all(|end| end.view().state == state)
    }
}

fn straight(_: usize) -> Fate {
    vec![MS]
}

fn dead(_: usize) -> Fate {
    Vec::new()
}

#[test]
fn two_ends_come_up_at_the_pace_of_their_round_trips() {
    let mut link = Link::new([timers(50, 50, 3), timers(100, 20, 5)], 1);
    link.run(Duration::from_secs(10), &mut straight, |link| link.is(State::Up));
    // Changes of state are told at once: no second passes in between.
    assert!(link.now < 10 * MS, "{:?}", link.now);
    link.run(Duration::from_secs(2), &mut straight, |_| false);
    // After the polls each sends as slowly as either side wants: 50 and 100 ms; and waits as long as the other promises.
    let [one, other] = [link.ends[0].view(), link.ends[1].view()];
    assert_eq!((one.interval, other.interval), (50 * MS, 100 * MS));
    assert_eq!(
        (one.detection_time, other.detection_time),
        (Some(500 * MS), Some(150 * MS))
    );
    assert_eq!((one.ups, one.downs), (1, 0));
    for (end, interval) in [(0, 50 * MS), (1, 100 * MS)] {
        let times: Vec<Duration> = link.sent[end]
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| *at > 1000 * MS)
            .collect();
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap >= interval * 3 / 4 && gap <= interval, "{gap:?}");
        }
        assert!(
            link.sent[end].iter().all(|(at, packet)| *at < 200 * MS || !packet.poll),
            "polls end"
        );
    }
}

#[test]
fn a_dead_path_is_noticed_after_the_detection_time_and_not_before() {
    let mut link = Link::new([timers(50, 50, 3), timers(50, 50, 3)], 2);
    link.run(Duration::from_secs(3), &mut straight, |_| false);
    assert!(link.is(State::Up));
    let cut = link.now;
    let last = link.sent[1].last().unwrap().0 + MS;
    link.run(cut + Duration::from_secs(5), &mut dead, |link| {
        link.ends[0].view().downs == 1
    });
    assert_eq!(
        link.changes[0].last().unwrap().1,
        Action::Down(Cause::DetectionTimeExpired)
    );
    assert_eq!(link.now, last + 150 * MS);
    let told = link.sent[0].last().unwrap().1;
    assert_eq!(
        (told.state, told.diagnostic),
        (State::Down, Diagnostic::DetectionTimeExpired)
    );
    assert_eq!(
        (told.your_discriminator, told.min_tx_us),
        (0, 1_000_000),
        "back to slow, and forgotten"
    );
    // And back.
    link.run(link.now + Duration::from_secs(5), &mut straight, |link| {
        link.is(State::Up)
    });
    assert!(link.is(State::Up));
}

#[test]
fn one_way_loss_takes_both_down() {
    let mut link = Link::new([timers(50, 50, 3), timers(50, 50, 3)], 3);
    link.run(Duration::from_secs(1), &mut straight, |_| false);
    let mut one_way = |end: usize| if end == 0 { vec![MS] } else { Vec::new() };
    link.run(Duration::from_secs(4), &mut one_way, |_| false);
    assert_eq!(
        link.changes[0].last().unwrap().1,
        Action::Down(Cause::DetectionTimeExpired)
    );
    assert_eq!(link.changes[1].last().unwrap().1, Action::Down(Cause::NeighbourDown));
    // The one that hears stays in Init; the one that does not, down. Neither comes up.
    assert_eq!(link.ends[0].view().state, State::Down);
    assert_eq!(link.ends[1].view().state, State::Init);
}

#[test]
fn switched_off_is_not_down_and_on_again_comes_up() {
    let mut link = Link::new([timers(50, 50, 3), timers(50, 50, 3)], 4);
    link.run(Duration::from_secs(1), &mut straight, |_| false);
    link.event(0, Event::Disable, &mut straight);
    link.run(Duration::from_secs(4), &mut straight, |_| false);
    assert_eq!(link.changes[0].last().unwrap().1, Action::Down(Cause::AdminDown));
    assert_eq!(
        link.changes[1].last().unwrap().1,
        Action::Down(Cause::NeighbourAdminDown)
    );
    assert_eq!(link.ends[1].view().remote_state, State::AdminDown);
    assert_eq!(
        (link.ends[0].view().state, link.ends[1].view().state),
        (State::AdminDown, State::Down)
    );
    link.event(0, Event::Enable, &mut straight);
    link.run(Duration::from_secs(6), &mut straight, |_| false);
    assert!(link.is(State::Up));
}

#[test]
fn slower_timers_take_effect_when_the_peer_has_answered() {
    let mut link = Link::new([timers(50, 50, 3), timers(50, 50, 3)], 5);
    link.run(Duration::from_secs(1), &mut straight, |_| false);
    link.event(0, Event::Retime(timers(200, 20, 3)), &mut dead);
    let polling = link.sent[0].last().unwrap().1;
    assert_eq!(
        (polling.poll, polling.min_tx_us, polling.min_rx_us),
        (true, 200_000, 20_000)
    );
    assert_eq!(link.ends[0].view().interval, 50 * MS);
    assert_eq!(link.ends[0].view().detection_time, Some(150 * MS));
    // A second change meanwhile needs a second poll.
    link.event(0, Event::Retime(timers(300, 20, 3)), &mut straight);
    link.run(link.now + 3 * MS, &mut straight, |_| false);
    assert_eq!(link.ends[0].view().interval, 50 * MS);
    link.run(link.now + Duration::from_secs(1), &mut straight, |_| false);
    assert_eq!(link.ends[0].view().interval, 300 * MS);
    assert!(link.is(State::Up), "nothing broke meanwhile");
    assert_eq!(link.ends[0].view().downs + link.ends[1].view().downs, 0);
    assert_eq!(link.ends[1].view().detection_time, Some(900 * MS));
}

#[test]
fn a_peer_in_demand_mode_hears_nothing_but_answers() {
    let mut link = Link::new([timers(50, 50, 3), timers(50, 50, 3)], 6);
    link.run(Duration::from_secs(1), &mut straight, |_| false);
    let template = link.sent[1].last().unwrap().1;
    let demanding = Packet {
        demand: true,
        poll: false,
        is_final: false,
        ..template
    };
    let session = &mut link.ends[0];
    let now = link.now;
    assert_eq!(session.step(Event::Received(demanding), now), []);
    // It is still watched, and nothing else is due.
    assert_eq!(session.deadline(), Some(now + 150 * MS));
    let poll = Packet {
        poll: true,
        ..demanding
    };
    let answer = session.step(Event::Received(poll), now);
    assert!(matches!(answer.as_slice(), [Action::Send(answer)] if answer.is_final && !answer.poll));
    session.step(Event::Received(template), now);
    assert!(session.deadline().unwrap() <= now + 50 * MS);
}

#[test]
fn a_peer_that_wants_no_packets_gets_none() {
    let mut session = Session::new(timers(50, 50, 3), 1, 0, Duration::ZERO);
    let silent = Packet {
        min_rx_us: 0,
        your_discriminator: 0,
        state: State::Down,
        ..some_packet()
    };
    session.step(Event::Received(silent), MS);
    assert_eq!(
        session.deadline(),
        Some(MS + Duration::from_millis(3000)),
        "only the detection time"
    );
}

#[test]
fn a_multiplier_of_one_leaves_room_for_the_way() {
    let mut link = Link::new([timers(100, 100, 1), timers(100, 100, 1)], 7);
    link.run(Duration::from_secs(60), &mut straight, |_| false);
    assert_eq!((link.ends[0].view().ups, link.ends[0].view().downs), (1, 0));
    let gaps = link.sent[0].windows(2).map(|pair| pair[1].0 - pair[0].0);
    assert!(gaps.skip(3).all(|gap| gap <= 90 * MS));
}

fn some_packet() -> Packet {
    Packet {
        diagnostic: Diagnostic::None,
        state: State::Down,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        multiplier: 3,
        my_discriminator: 99,
        your_discriminator: 0,
        min_tx_us: 1_000_000,
        min_rx_us: 50_000,
        min_echo_rx_us: 0,
    }
}

const PEER: Peer = Peer::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

fn wanted(reach: Reach) -> Wanted {
    Wanted {
        peer: PEER,
        local: None,
        reach,
        timers: timers(50, 50, 3),
    }
}

fn arrival(ttl: Option<u8>) -> Arrival {
    Arrival {
        peer: PEER,
        ttl,
        port: SINGLE_HOP_PORT,
    }
}

#[test]
fn every_datagram_that_is_for_no_session_has_its_reason() {
    let mut sessions = Sessions::new(1);
    sessions.set([wanted(Reach::SingleHop)], Duration::ZERO);
    let ours = sessions.views()[0].session.discriminator;
    let packet = some_packet();
    let cases = [
        (Discard::Hops, arrival(Some(254)), packet),
        (Discard::Hops, arrival(None), packet),
        (
            Discard::UnknownPeer,
            Arrival {
                port: 4784,
                ..arrival(Some(255))
            },
            packet,
        ),
        (
            Discard::UnknownPeer,
            Arrival {
                peer: Peer::new([192, 0, 2, 2].into()),
                ..arrival(Some(255))
            },
            packet,
        ),
        (
            Discard::OtherPeer,
            Arrival {
                peer: Peer::new([192, 0, 2, 2].into()),
                ..arrival(Some(255))
            },
            Packet {
                your_discriminator: ours,
                ..packet
            },
        ),
        (
            Discard::UnknownDiscriminator,
            arrival(Some(255)),
            Packet {
                your_discriminator: ours ^ 1,
                ..packet
            },
        ),
    ];
    let mut expected: BTreeMap<Discard, u64> = Discard::ALL.into_iter().map(|reason| (reason, 0)).collect();
    for (reason, arrival, packet) in cases {
        assert_eq!(sessions.received(arrival, &packet.bytes(), MS), []);
        *expected.get_mut(&reason).unwrap() += 1;
        assert_eq!(sessions.discarded().collect::<BTreeMap<_, _>>(), expected, "{reason:?}");
    }
    assert_eq!(sessions.received(arrival(Some(255)), &[0; 7], MS), []);
    *expected.get_mut(&Discard::Short).unwrap() += 1;
    // And one that is right.
    let outputs = sessions.received(arrival(Some(255)), &packet.bytes(), MS);
    assert!(matches!(outputs.as_slice(), [Output { action: Action::Send(sent), .. }] if sent.state == State::Init));
    assert_eq!(sessions.discarded().collect::<BTreeMap<_, _>>(), expected);
}

#[test]
fn a_multihop_session_takes_what_comes_from_any_distance() {
    let mut sessions = Sessions::new(1);
    sessions.set([wanted(Reach::Multihop)], Duration::ZERO);
    for (count, ttl) in (1..).zip([Some(1), Some(64), Some(255), None]) {
        let arrival = Arrival {
            port: 4784,
            ..arrival(ttl)
        };
        sessions.received(arrival, &some_packet().bytes(), MS);
        assert_eq!(sessions.views()[0].session.received, count);
    }
}

#[test]
fn sessions_come_go_and_keep_their_state_as_they_are_asked_for() {
    let mut sessions = Sessions::new(1);
    assert_eq!(sessions.deadline(), None);
    assert_eq!(sessions.set([wanted(Reach::SingleHop)], Duration::ZERO), []);
    let first = sessions.views()[0];
    assert_ne!(first.session.discriminator, 0);
    assert_eq!(sessions.deadline(), Some(Duration::ZERO));
    assert_eq!(sessions.timer(Duration::ZERO).len(), 1);
    sessions.received(arrival(Some(255)), &some_packet().bytes(), MS);
    // The same again, and with other timers: the same session.
    for timers in [timers(50, 50, 3), timers(500, 50, 3)] {
        let again = Wanted {
            timers,
            ..wanted(Reach::SingleHop)
        };
        assert_eq!(sessions.set([again], 2 * MS), []);
        let view = sessions.views()[0];
        assert_eq!((view.wanted, view.session.state), (again, State::Init));
        assert_eq!(view.session.discriminator, first.session.discriminator);
    }
    // With another reach: a new one. The old one's peer is told, several times.
    let outputs = sessions.set([wanted(Reach::Multihop)], 3 * MS);
    assert_eq!(outputs.len(), 3);
    for output in outputs {
        assert!(matches!(output.action, Action::Send(sent) if sent.state == State::AdminDown));
    }
    assert_ne!(sessions.views()[0].session.discriminator, first.session.discriminator);
    assert_eq!(sessions.set([], 4 * MS).len(), 3);
    assert_eq!((sessions.views().len(), sessions.deadline()), (0, None));
}

#[derive(Clone, Debug)]
enum Anything {
    Received(Vec<u8>),
    Timer,
    Retime(Timers),
    Disable,
    Enable,
}

fn anything() -> impl Strategy<Value = Anything> {
    let timers = (any::<u32>(), 1..=u32::MAX, 1..=u8::MAX).prop_map(|(min_tx_us, min_rx_us, multiplier)| Timers {
        min_tx_us,
        min_rx_us,
        multiplier,
    });
    // Mostly packets that pass the first rules, or nothing would ever happen.
    let right = (vec(any::<u8>(), PACKET_BYTES), 0..4_u8).prop_map(|(mut bytes, state)| {
        bytes[0] = 0x20 | bytes[0] & 0x1f;
        bytes[1] = state << 6 | bytes[1] & 0x3a;
        bytes[2] |= 1;
        bytes[3] = PACKET_BYTES as u8;
        bytes[7] |= 1;
        bytes[11] |= 1;
        bytes
    });
    prop_oneof![
        6 => right.prop_map(Anything::Received),
        1 => vec(any::<u8>(), 0..40).prop_map(Anything::Received),
        6 => Just(Anything::Timer),
        1 => timers.prop_map(Anything::Retime),
        1 => Just(Anything::Disable),
        1 => Just(Anything::Enable),
    ]
}

proptest! {
    /// Whatever happens in whatever order, at times that even run backwards: Up and Down take turns, the states shown are those told,
    /// and what is sent is right.
    #[test]
    fn any_order_of_events_is_lived_through(
        events in vec((anything(), any::<u64>()), 0..200),
        seed in any::<u64>(),
    ) {
        let mut session = Session::new(timers(50, 50, 3), 1, seed, Duration::ZERO);
        let mut is_up = false;
        for (event, at) in events {
            let now = Duration::from_micros(at >> (at % 64));
            let event = match event {
                Anything::Received(bytes) => match Packet::parse(&bytes) {
                    Ok(packet) => Event::Received(packet),
                    Err(_) => continue,
                },
                Anything::Timer => Event::Timer,
                Anything::Retime(timers) => Event::Retime(timers),
                Anything::Disable => Event::Disable,
                Anything::Enable => Event::Enable,
            };
            for action in session.step(event, now) {
                match action {
                    Action::Send(packet) => {
                        prop_assert_eq!(Packet::parse(&packet.bytes()), Ok(packet));
                        prop_assert!(!(packet.poll && packet.is_final));
                        prop_assert_eq!(packet.my_discriminator, 1);
                        prop_assert!(packet.state == State::Up || packet.min_tx_us >= 1_000_000);
                    }
                    Action::Up => {
                        prop_assert!(!is_up);
                        is_up = true;
                    }
                    Action::Down(_) => {
                        prop_assert!(is_up);
                        is_up = false;
                    }
                }
            }
            prop_assert_eq!(session.view().state == State::Up, is_up);
            let _ = session.deadline();
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_is_read_can_be_written(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert_eq!(Packet::parse(&packet.bytes()), Ok(packet));
        }
    }

    /// A channel that loses up to a third, delays up to 40 ms (so that it reorders) and repeats: both ends come up in the end; when it
    /// dies, both go down no later than their detection time; when it lives again, they come up again.
    #[test]
    fn a_bad_channel_brings_up_what_a_dead_one_takes_down(
        fates in vec((0..3_u8, 0..40_u64, 0..8_u8), 64),
        each in ([20..200_u32, 20..200], [20..200_u32, 20..200], [3..6_u8, 3..6]),
        seed in any::<u64>(),
    ) {
        let ([tx0, tx1], [rx0, rx1], [m0, m1]) = each;
        let mut link = Link::new([timers(tx0, rx0, m0), timers(tx1, rx1, m1)], seed);
        let mut fates: VecDeque<_> = fates.into();
        let mut bad = move |_: usize| {
            let fate @ (lost, delay, twice) = fates.pop_front().unwrap();
            fates.push_back(fate);
            let delay = Duration::from_millis(delay);
            match (lost, twice) {
                // Every fate is used in turn, by two ends: one that says `lost` for all of them is dead.
                (0, 1..) => Vec::new(),
                (_, 0) => vec![delay, delay * 2],
                _ => vec![delay],
            }
        };
        link.run(Duration::from_secs(600), &mut bad, |link| link.is(State::Up));
        prop_assert!(link.is(State::Up));
        for _ in 0..2 {
            // Polls are answered and packets under way have arrived, if it stays up for so long.
            let settled = link.now + Duration::from_secs(2);
            link.run(settled, &mut straight, |_| false);
            prop_assert!(link.is(State::Up));
            let limit = link.now + link.ends.each_ref().map(|end| end.view().detection_time.unwrap()).into_iter().max().unwrap() + MS;
            link.run(limit, &mut dead, |_| false);
            for end in &link.ends {
                prop_assert_ne!(end.view().state, State::Up);
            }
            link.run(link.now + Duration::from_secs(5), &mut straight, |link| link.is(State::Up));
            prop_assert!(link.is(State::Up));
        }
    }

    /// Demultiplexing: any datagram from anybody to a node with sessions.
    #[test]
    fn any_datagram_is_counted_or_taken(
        datagrams in vec((vec(any::<u8>(), 0..32), any::<Option<u8>>(), 0..4_u8, any::<bool>()), 0..40),
    ) {
        let mut sessions = Sessions::new(9);
        let peers: Vec<Peer> = (0..3).map(|last| Peer::new([192, 0, 2, last].into())).collect();
        let all = peers.iter().map(|peer| Wanted { peer: *peer, ..wanted(Reach::SingleHop) });
        sessions.set(all, Duration::ZERO);
        for ((payload, ttl, last, single), count) in datagrams.into_iter().zip(1_u64..) {
            let arrival = Arrival {
                peer: Peer::new([192, 0, 2, last].into()),
                ttl,
                port: if single { SINGLE_HOP_PORT } else { 4784 },
            };
            sessions.received(arrival, &payload, MS);
            let taken: u64 = sessions.views().iter().map(|view| view.session.received).sum();
            let discarded: u64 = sessions.discarded().map(|(_, count)| count).sum();
            prop_assert_eq!(taken + discarded, count);
        }
    }
}
