//! What tests of flows have in common: the clock that records are kept by, packets with a sequence number, clients and their ports.

use crate::support::{
    frames::{Packet, TCP},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6},
};

pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::ClockId::CLOCK_MONOTONIC
        .now()
        .expect("the clock is always there");
    std::time::Duration::from(now).as_nanos() as u64
}

/// The packet with this sequence number; checksums are nothing to the program.
pub(crate) fn numbered(packet: &Packet, sequence: u32) -> Vec<u8> {
    let mut frame = packet.frame();
    let l4 = 14 + if packet.source.is_ipv4() { 20 } else { 40 };
    if packet.protocol == TCP {
        frame[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
    }
    frame
}

pub(crate) fn both() -> [(&'static str, &'static str); 2] {
    [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)]
}

/// The same client on another port.
pub(crate) fn on_port(client: &str, number: u16) -> String {
    format!("{}{}", &client[..client.len() - 5], 40_000 + number)
}
