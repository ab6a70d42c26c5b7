//! What the balancer puts on, the worker node takes off: the packet is the client's again, but for one hop.

use anyhow::Result;
use xdp_prog::verdict::Verdict;

use super::worker::with_tunnel;
use crate::support::{
    bed::{Bed, Sent},
    frames::{DOT1AD, DOT1Q, Packet, SYN, TCP, UDP, framed},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

#[test]
fn encapsulated_and_decapsulated_is_the_clients_packet() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    // Way 1 of either family ends at the worker's own address.
    for way in [Way::v4(1).mtu(9000), Way::v6(1).mtu(9000)] {
        let mut tables = Tables::new(0);
        let backend = tables.backend(way.line());
        let mut vips = Vec::new();
        for (client, address) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
            vips.push((
                tables.vip(address, TCP, 80, &[backend]),
                Packet::tcp(client, &at(address, 80)),
            ));
            vips.push((
                tables.vip(address, UDP, 53, &[backend]),
                Packet::udp(client, &at(address, 53)),
            ));
        }
        let mut balancer = Bed::balancer(tables)?;
        let mut worker = Bed::worker(with_tunnel(Tables::new(0)))?;
        for (vip, packet) in vips {
            for tags in [&[][..], &[(DOT1Q, 100)], &[(DOT1AD, 200), (DOT1Q, 300)]] {
                for payload in [0, 1, 2, 511, 1400, 3500, 8800] {
                    for tos in [0x00, 0x01, 0x02, 0x03, 0xb9, 0xff] {
                        let packet = packet.clone().tagged(tags).payload(payload).tos(tos).flags(SYN);
                        let what = format!("{packet:?}");
                        let sent = Sent {
                            vip,
                            backend,
                            bytes: packet.bytes(),
                        };
                        let frame = packet.frame();
                        let between = balancer.step(&what, &frame, Verdict::ForwardTx, Some(sent))?;
                        let arrived = framed(way.next_hop, way.egress, tags, &packet.clone().hops(56).ip());
                        worker.becomes(&what, &between, Verdict::PassDecapsulated, None, &arrived)?;
                    }
                }
            }
        }
    }
    Ok(())
}
