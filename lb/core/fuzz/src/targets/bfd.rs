//! A BFD peer, and strangers, that may send anything at any time.

use std::time::Duration;

use lb_core::bfd::{
    Action, Arrival, MULTIHOP_PORT, Output, PACKET_BYTES, Packet, Peer, Reach, SINGLE_HOP_PORT, Sessions, State,
    Timers, Wanted,
};

use super::frames::Bytes;

/// Datagrams to sessions of both kinds, time that passes, and sessions that change.
pub fn bfd(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut sessions = Sessions::new(bytes.u8().into());
    let mut now = Duration::ZERO;
    let mut is_up = [false; 2];
    let mut received = 0;
    check(&sessions.set(wanted(3), now), &mut is_up);
    while !bytes.is_empty() {
        let what = bytes.u8();
        let outputs = match what >> 5 {
            0 => sessions.timer(now),
            1 => {
                now += Duration::from_micros(1 << (bytes.u8() % 34));
                sessions.timer(now)
            }
            2 if what & 0x1f == 0 => sessions.set([], now),
            2 => sessions.set(wanted(bytes.u8()), now),
            3.. => {
                received += 1;
                let view = sessions.views().into_iter().nth(usize::from(what & 1));
                let ours = view.map_or(0, |view| view.session.discriminator);
                let arrival = Arrival {
                    peer: peer(what & 1),
                    ttl: (what & 2 == 0).then_some(255),
                    port: if what & 1 == 0 { SINGLE_HOP_PORT } else { MULTIHOP_PORT },
                };
                sessions.received(arrival, &datagram(&mut bytes, ours, what), now)
            }
        };
        check(&outputs, &mut is_up);
        let _ = sessions.deadline();
    }
    // Those of sessions that are gone went with them.
    let taken: u64 = sessions.views().iter().map(|view| view.session.received).sum();
    let discarded: u64 = sessions.discarded().map(|(_, count)| count).sum();
    assert!(taken + discarded <= received);
}

fn peer(last: u8) -> Peer {
    Peer::new([192, 0, 2, last].into())
}

fn wanted(how: u8) -> [Wanted; 2] {
    let timers = Timers {
        min_tx_us: 1 << (how % 32),
        min_rx_us: 1 << (how / 8),
        multiplier: how | 1,
    };
    [(0, Reach::SingleHop), (1, Reach::Multihop)].map(|(last, reach)| Wanted {
        peer: peer(last),
        local: None,
        reach,
        timers,
    })
}

/// Any bytes, or a packet that passes the first rules and knows our discriminator.
fn datagram(bytes: &mut Bytes<'_>, ours: u32, what: u8) -> Vec<u8> {
    let mut datagram = bytes.take(PACKET_BYTES + 2).to_vec();
    if what & 4 == 0 && datagram.len() >= PACKET_BYTES {
        datagram[0] = 0x20 | datagram[0] & 0x1f;
        datagram[1] &= 0xfa;
        datagram[2] |= 1;
        datagram[3] = PACKET_BYTES as u8;
        datagram[7] |= 1;
        datagram[8..12].copy_from_slice(&ours.to_be_bytes());
    }
    datagram
}

fn check(outputs: &[Output], is_up: &mut [bool; 2]) {
    for Output { peer: of, action } in outputs {
        let is_up = &mut is_up[usize::from(*of == peer(1))];
        match action {
            Action::Send(packet) => {
                assert_eq!(Packet::parse(&packet.bytes()), Ok(*packet));
                assert!(!(packet.poll && packet.is_final));
                assert!(packet.state == State::Up || packet.min_tx_us >= 1_000_000);
            }
            Action::Up => assert!(!std::mem::replace(is_up, true)),
            Action::Down(_) => assert!(std::mem::replace(is_up, false)),
        }
    }
}
