//! Where would this flow go? Never guesses: it makes a packet of the flow and runs the program's own logic on the tables that it is
//! given, so the answer is the program's.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use thiserror::Error;
use xdp_prog::host::{Host, Memory, Outcome};

use crate::desired::Protocol;

/// TTL of the packet that is tried; any live one will do.
const TTL: u8 = 64;
/// Receive window of the SYN that is tried.
const WINDOW: u16 = 65_535;

/// Why there is no such flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ExplainError {
    /// Source and destination are of different families.
    #[error("{0} and {1} are of different address families: no packet has both")]
    MixedFamilies(IpAddr, IpAddr),
}

/// A flow's first packet: a SYN, or a datagram without payload.
///
/// # Errors
///
/// When the addresses are of different families.
pub fn first_frame(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Result<Vec<u8>, ExplainError> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), TTL),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source.octets(), destination.octets(), TTL),
        (source, destination) => return Err(ExplainError::MixedFamilies(source, destination)),
    };
    let mut frame = Vec::new();
    let written = match protocol {
        Protocol::Tcp => ip
            .tcp(source.port(), destination.port(), 0, WINDOW)
            .syn()
            .write(&mut frame, &[]),
        Protocol::Udp => ip.udp(source.port(), destination.port()).write(&mut frame, &[]),
    };
    debug_assert!(written.is_ok(), "an empty packet fits and a vector takes it");
    Ok(frame)
}

/// What the program does with a flow's first packet, coming in by interface `ingress_ifindex`, at a time in jiffies, by which records
/// of flows live. Limits are taken as not yet used up.
///
/// # Errors
///
/// As [`first_frame`].
pub fn explain(
    memory: impl Memory,
    (ingress_ifindex, jiffies): (u32, u64),
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Outcome, ExplainError> {
    let frame = first_frame(protocol, source, destination)?;
    let mut host = Host::new(memory, ingress_ifindex);
    host.set_jiffies(jiffies);
    Ok(host.balance(&frame))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use xdp_prog::{abi::Config, verdict::Verdict};

    use super::{ExplainError, explain, first_frame};
    use crate::{
        config::Capacity,
        desired::{Backend, BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Via, Vip, VipKey},
        match_table,
        plan::Planner,
    };

    #[test]
    fn the_answer_names_a_backend_of_the_set_and_is_the_same_every_time() {
        let capacity = Capacity {
            vips: 16,
            backends: 16,
            table_segments: 1,
            ranges: 16,
        };
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(capacity.vips);
        let config = Config {
            match_mask_v4,
            match_mask_v6,
            ..Config::EMPTY
        };
        let mut planner = Planner::new(&capacity, &config, 250);
        let ids = ["a", "b"].map(|name| BackendId(name.into()));
        let set = BackendSet {
            members: ids
                .iter()
                .map(|id| Member {
                    backend: id.clone(),
                    weight: 1,
                })
                .collect(),
            table_slots: None,
        };
        let key = VipKey {
            address: [203, 0, 113, 10].into(),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let desired = Desired {
            vips: [(key, Vip::new(set.into()))].into(),
            backends: BTreeMap::from([
                (
                    ids[0].clone(),
                    Backend {
                        address: [10, 0, 0, 1].into(),
                    },
                ),
                (
                    ids[1].clone(),
                    Backend {
                        address: [10, 0, 0, 2].into(),
                    },
                ),
            ]),
            ..Desired::default()
        };
        let via = Via {
            ifindex: 1,
            port: 0,
            destination_mac: [2; 6],
            source_mac: [4; 6],
            source: [10, 0, 0, 100].into(),
            mtu: 1500,
            tags: None,
        };
        let hops: NextHops = ids.iter().map(|id| (id.clone(), NextHop::Via(via))).collect();
        planner.plan(&desired, &hops).unwrap();

        let mut seen = BTreeMap::new();
        for port in 1000..1400 {
            let ask = || {
                let source = ([198, 51, 100, 7], port).into();
                explain(
                    planner.image().view(&config),
                    (1, 1),
                    Protocol::Tcp,
                    source,
                    ([203, 0, 113, 10], 80).into(),
                )
                .unwrap()
            };
            let outcome = ask();
            assert_eq!(outcome.verdict, Verdict::ForwardTx);
            assert_eq!(outcome, ask());
            let choice = outcome.choice.unwrap();
            *seen
                .entry(planner.backend_at(choice.backend).unwrap().clone())
                .or_insert(0) += 1;
        }
        assert!(ids.iter().all(|id| seen[id] > 120), "{seen:?}");
        let elsewhere = ([203, 0, 113, 10], 81).into();
        let source = ([198, 51, 100, 7], 1).into();
        let outcome = explain(planner.image().view(&config), (1, 1), Protocol::Tcp, source, elsewhere).unwrap();
        assert_eq!(outcome.verdict, Verdict::SlowUnservedPort);
    }

    #[test]
    fn families_do_not_mix() {
        let error = first_frame(
            Protocol::Udp,
            "1.2.3.4:1".parse().unwrap(),
            "[2001:db8::1]:53".parse().unwrap(),
        );
        assert!(matches!(error, Err(ExplainError::MixedFamilies(..))));
    }
}
