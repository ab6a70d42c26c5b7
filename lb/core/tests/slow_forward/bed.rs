//! An engine over real tables. VIPs 203.0.113.10 and 2001:db8::10: TCP 80 (clamped), TCP 81 (too big: answer), UDP 53, UDP 54
//! (nobody serves), UDP 55 (client affinity). Backends: `a` by IPv4, `b` by IPv6, `c` out of another interface, `d` with tags of its own; the outer source
//! carries the flow hash. [`DENIED`] are on the deny-list.

use std::{collections::BTreeMap, net::IpAddr, sync::atomic::AtomicU64};

use lb_core::{
    config::{Capacity, Protection},
    desired::{
        Backend, BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, TooBig, Via, Vip, VipKey,
        VlanTags,
    },
    health::Overlay,
    match_table,
    plan::Planner,
    slow::{Book, Bounds, Common, Decide, Engine, EngineSettings, FragmentBounds, Input, Outcome, Output, Tables},
};
use xdp_prog::{
    abi::{BackendIndex, BackendLine, Config, feature},
    host::{self, Host, View},
    verdict::Verdict,
};

pub(crate) const IFINDEX: u32 = 3;
pub(crate) const OTHER_IFINDEX: u32 = 9;
pub(crate) const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
pub(crate) const CLIENTS: [&str; 2] = ["198.51.100.7", "2001:db8:c::7"];
/// On the deny-list.
pub(crate) const DENIED: [&str; 2] = ["198.51.100.66", "2001:db8:66::1"];
pub(crate) const TIMEOUT_NS: u64 = 5_000_000_000;

pub(crate) struct Bed {
    config: Config,
    planner: Planner,
    book: Book,
    pub(crate) common: Common,
    pub(crate) engine: Engine,
    pub(crate) now_ns: u64,
    /// `FLOWS`, of one bucket.
    flows: Vec<AtomicU64>,
    /// `FLOW_MARKS`.
    flow_marks: [AtomicU64; 1],
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with(1500, FragmentBounds::default())
    }

    pub(crate) fn with(mtu: u16, fragments: FragmentBounds) -> Self {
        let capacity = Capacity {
            vips: 16,
            backends: 16,
            table_segments: 1,
            ranges: 16,
        };
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(capacity.vips);
        let config = Config {
            features: feature::SLOW_PATH
                | feature::REDIRECT
                | feature::SOURCE_PREFIX
                | feature::CLAMP_MSS
                | feature::AFFINITY
                | feature::DENIED_SOURCES,
            seed: [1, 2, 3, 4],
            match_mask_v4,
            match_mask_v6,
            source_mask_v4: u64::from(u32::from_ne_bytes([0, 0, 0, 0xff])),
            source_mask_v6: u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            ..Config::EMPTY
        };
        let mut planner = Planner::new(&capacity, &config, 250);
        let (desired, hops) = desired(mtu);
        planner.plan(&desired, &hops).unwrap();
        let bounds = Bounds {
            replies_per_source: 1000,
            fragments,
            ..Bounds::default()
        };
        let settings = EngineSettings {
            ifindex: IFINDEX,
            mac: [2, 0, 0, 0, 0, 0x0a],
            announces: false,
        };
        Self {
            config,
            planner,
            book: Book::new(&desired, &hops, &Overlay::default(), Protection::default(), &[]),
            common: Common::new(bounds, 1),
            engine: Engine::new(settings),
            now_ns: 0,
            flows: (0..8).map(|_| AtomicU64::new(0)).collect(),
            flow_marks: Default::default(),
        }
    }

    /// With slots in transit: backend `a` has left the set.
    pub(crate) fn in_transit() -> Self {
        let mut bed = Self::new();
        bed.config.features |= feature::TRANSIT;
        let capacity = Capacity {
            vips: 16,
            backends: 16,
            table_segments: 1,
            ranges: 16,
        };
        bed.planner = Planner::new(&capacity, &bed.config, 250);
        let (mut desired, hops) = desired(1500);
        bed.planner.plan(&desired, &hops).unwrap();
        for vip in desired.vips.values_mut() {
            let mut set = BackendSet::clone(&vip.set);
            set.members.retain(|member| &*member.backend.0 != "a");
            vip.set = set.into();
        }
        bed.planner.plan(&desired, &hops).unwrap();
        assert!(bed.planner.is_in_transit());
        bed
    }

    /// The name of a backend.
    pub(crate) fn name(&self, backend: BackendIndex) -> &str {
        &self.planner.backend_at(backend).unwrap().0
    }

    pub(crate) fn step(&mut self, verdict: Verdict, frame: &[u8]) -> Output {
        self.step_asking(verdict, frame, |_, outcome| outcome, |line| line).0
    }

    /// As `step`; what the fast path says passes through `said`, with how often it was asked before, and lines through `lines`. Also
    /// gives what the fast path was told of limits.
    pub(crate) fn step_asking(
        &mut self,
        verdict: Verdict,
        frame: &[u8],
        said: fn(usize, host::Outcome) -> host::Outcome,
        lines: fn(BackendLine) -> BackendLine,
    ) -> (Output, Vec<bool>) {
        let mut out = Output::default();
        let mut asked = Asked {
            host: Host::new(
                view(&self.planner, &self.config, (&self.flows, &self.flow_marks)),
                IFINDEX,
            ),
            said,
            lines,
            admitted: Vec::new(),
        };
        let mut tables = Tables {
            book: &self.book,
            common: &self.common,
            decide: &mut asked,
        };
        self.engine
            .step(self.now_ns, Input { verdict, frame }, &mut tables, &mut out);
        (out, asked.admitted)
    }

    /// What comes of waiting.
    pub(crate) fn wait(&mut self, ns: u64) -> Output {
        self.now_ns += ns;
        let mut out = Output::default();
        let mut tables = Tables {
            book: &self.book,
            common: &self.common,
            decide: &mut Host::new(
                view(&self.planner, &self.config, (&self.flows, &self.flow_marks)),
                IFINDEX,
            ),
        };
        self.engine.turn(self.now_ns, &mut tables, &mut out);
        out
    }

    /// What the program itself does with a frame.
    pub(crate) fn fast(&self, frame: &[u8]) -> host::Outcome {
        Host::new(
            view(&self.planner, &self.config, (&self.flows, &self.flow_marks)),
            IFINDEX,
        )
        .balance(frame)
    }
}

/// What the fast path reads.
fn view<'a>(
    planner: &'a Planner,
    config: &'a Config,
    (flows, flow_marks): (&'a [AtomicU64], &'a [AtomicU64]),
) -> View<'a> {
    View {
        flows,
        flow_marks,
        ..planner.image().view(config)
    }
}

/// The fast path, with somebody listening.
struct Asked<'a> {
    host: Host<View<'a>>,
    said: fn(usize, host::Outcome) -> host::Outcome,
    lines: fn(BackendLine) -> BackendLine,
    admitted: Vec<bool>,
}

impl Decide for Asked<'_> {
    fn balance(&mut self, frame: &[u8], admitted: bool) -> host::Outcome {
        self.admitted.push(admitted);
        (self.said)(
            self.admitted.len() - 1,
            Decide::balance(&mut self.host, frame, admitted),
        )
    }

    fn line(&self, backend: BackendIndex) -> Option<BackendLine> {
        Decide::line(&self.host, backend).map(self.lines)
    }
}

/// Packets of all kinds that had this outcome.
pub(crate) fn counted(out: &Output, outcome: Outcome) -> u64 {
    let of_outcome = out.counts.iter().filter(|(_, other, _)| *other == outcome);
    of_outcome.map(|(_, _, count)| count).sum()
}

fn desired(mtu: u16) -> (Desired, NextHops) {
    let id = |name: &str| BackendId(name.into());
    let names = ["a", "b", "c", "d"];
    let set = std::sync::Arc::new(BackendSet {
        members: names
            .map(|name| Member {
                backend: id(name),
                weight: 1,
            })
            .into(),
        table_slots: None,
    });
    let mut vips = BTreeMap::new();
    for address in VIPS {
        for (protocol, port) in [
            (Protocol::Tcp, 80),
            (Protocol::Tcp, 81),
            (Protocol::Udp, 53),
            (Protocol::Udp, 55),
        ] {
            let mut vip = Vip::new(set.clone());
            vip.clamp_mss = port == 80;
            vip.client_affinity = port == 55;
            if port == 81 {
                vip.too_big = TooBig::Answer;
            }
            let address = address.parse().unwrap();
            vips.insert(
                VipKey {
                    address,
                    protocol,
                    port,
                },
                vip,
            );
        }
    }
    let via = |name: &str| {
        let v6 = name == "b";
        let source: IpAddr = if v6 { "2001:db8:e::" } else { "10.9.9.0" }.parse().unwrap();
        NextHop::Via(Via {
            ifindex: if name == "c" { OTHER_IFINDEX } else { IFINDEX },
            port: u8::from(name == "c"),
            destination_mac: [4, 0, 0, 0, 0, name.as_bytes()[0]],
            source_mac: [2, 0, 0, 0, 0, 0x0a],
            source,
            mtu,
            tags: (name == "d").then_some(VlanTags::One(77)),
        })
    };
    let address = |name: &str| if name == "b" { "fd00::1" } else { "10.0.0.1" }.parse().unwrap();
    let backends = names.map(|name| (id(name), Backend { address: address(name) })).into();
    let desired = Desired {
        vips,
        backends,
        denied_sources: [DENIED.map(|address| address.parse::<IpAddr>().unwrap().into())].concat(),
        ..Desired::default()
    };
    (desired, names.map(|name| (id(name), via(name))).into())
}

/// Numbers that follow from a case's (`SplitMix64`).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub(crate) fn octets(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The Internet checksum (RFC 1071, 4.1).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let pairs = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Ethernet with these tags.
pub(crate) fn link(tags: &[u16], v6: bool) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 0x0a, 2, 0, 0, 0, 0, 0xc1];
    for tag in tags {
        bytes.extend([0x81, 0]);
        bytes.extend(tag.to_be_bytes());
    }
    bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    bytes
}

/// An IPv4 packet; `place` is flags and offset, `id` the identification.
pub(crate) fn ipv4(
    ends: [&str; 2],
    tos: u8,
    id: u16,
    place: u16,
    protocol: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut ip = vec![0x40 | (header_len / 4) as u8, tos];
    ip.extend(((header_len + payload.len()) as u16).to_be_bytes());
    ip.extend(id.to_be_bytes());
    ip.extend(place.to_be_bytes());
    ip.extend([61, protocol, 0, 0]);
    ip.extend(octets(ends[0]));
    ip.extend(octets(ends[1]));
    ip.extend(options);
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    ip.extend(payload);
    ip
}

/// An IPv6 packet; `next` is the protocol of what begins with `payload`.
pub(crate) fn ipv6(ends: [&str; 2], class: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = (0x6000_0000 | u32::from(class) << 20).to_be_bytes().to_vec();
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 61]);
    ip.extend(octets(ends[0]));
    ip.extend(octets(ends[1]));
    ip.extend(payload);
    ip
}

/// A TCP segment (ACK) or a UDP datagram without a checksum.
pub(crate) fn transport(protocol: u8, ports: [u16; 2], data: &[u8]) -> Vec<u8> {
    let mut bytes = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    if protocol == 6 {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    } else {
        bytes.extend(((8 + data.len()) as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.extend(data);
    bytes
}

/// A frame that went out, taken apart: tags' TCIs, outer header, inner packet.
pub(crate) fn apart(frame: &[u8]) -> (Vec<u16>, &[u8], &[u8]) {
    let mut at = 12;
    let mut tags = Vec::new();
    while frame[at..at + 2] == [0x81, 0] {
        tags.push(u16::from_be_bytes([frame[at + 2], frame[at + 3]]));
        at += 4;
    }
    let outer_len = if frame[at..at + 2] == [8, 0] { 20 } else { 40 };
    let (outer, inner) = frame[at + 2..].split_at(outer_len);
    if outer_len == 20 {
        assert_eq!(checksum(outer), 0, "outer checksum");
        assert_eq!(
            usize::from(u16::from_be_bytes([outer[2], outer[3]])),
            20 + inner.len(),
            "outer length"
        );
    } else {
        assert_eq!(
            usize::from(u16::from_be_bytes([outer[4], outer[5]])),
            inner.len(),
            "outer length"
        );
    }
    (tags, outer, inner)
}
