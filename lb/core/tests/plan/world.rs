//! Small random worlds: few enough addresses, backends and lists that states overlap in every way.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_core::{
    config::Capacity,
    desired::{
        Backend, BackendId, BackendSet, Desired, Limits, Member, NextHop, NextHops, Protocol, Rate, Tunnel, Via, Vip,
        VipKey, VlanTags,
    },
    plan::Planner,
    schedule::Scheduler,
};
use proptest::prelude::*;
use xdp_prog::abi::{Config, feature};

pub(crate) const CAPACITY: Capacity = Capacity {
    vips: 24,
    backends: 8,
    table_segments: 1,
    ranges: 64,
};

/// Everything on but what needs interfaces and sockets; match tables so small that entries move.
pub(crate) fn config(salt: u64) -> Config {
    Config {
        features: feature::LIMITS
            | feature::SOURCE_RANGES
            | feature::DENIED_SOURCES
            | feature::DECAP
            | feature::CLAMP_MSS
            | feature::AFFINITY
            | feature::SCHEDULERS,
        seed: [1, 2, 3, 4],
        match_salt: salt,
        match_mask_v4: 3,
        match_mask_v6: 7,
        ..Config::EMPTY
    }
}

pub(crate) fn planner(salt: u64) -> Planner {
    Planner::new(&CAPACITY, &config(salt), 250)
}

pub(crate) fn id(name: impl AsRef<str>) -> BackendId {
    BackendId(Arc::from(name.as_ref()))
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn key(address: &str, port: u16) -> VipKey {
    VipKey {
        address: self::address(address),
        protocol: Protocol::Tcp,
        port,
    }
}

pub(crate) fn set(members: &[(&str, u16)]) -> Arc<BackendSet> {
    let members = members
        .iter()
        .map(|(name, weight)| Member {
            backend: id(name),
            weight: *weight,
        })
        .collect();
    Arc::new(BackendSet {
        members,
        table_slots: None,
    })
}

pub(crate) fn vip(set: &Arc<BackendSet>) -> Vip {
    Vip::new(set.clone())
}

/// VIPs with plain options, and every backend that they name at 192.0.2.x.
pub(crate) fn desired(vips: &[(VipKey, &Arc<BackendSet>)]) -> Desired {
    let mut desired = Desired::default();
    for (key, set) in vips {
        desired.vips.insert(*key, vip(set));
        for (member, number) in set.members.iter().zip(1..) {
            let last = member.backend.0.bytes().last().map_or(number, |byte| byte & 0x1f);
            let backend = Backend {
                address: IpAddr::from([192, 0, 2, last]),
            };
            desired.backends.insert(member.backend.clone(), backend);
        }
    }
    desired
}

pub(crate) fn via() -> Via {
    Via {
        ifindex: 3,
        port: 0,
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        source: address("198.51.100.1"),
        mtu: 1500,
        tags: None,
    }
}

pub(crate) fn resolved(desired: &Desired) -> NextHops {
    desired
        .backends
        .keys()
        .map(|id| (id.clone(), NextHop::Via(via())))
        .collect()
}

fn cidrs() -> impl Strategy<Value = Vec<IpNet>> {
    let some = [
        "10.0.0.0/8",
        "192.168.0.0/16",
        "2001:db8::/32",
        "172.16.0.0/12",
        "0.0.0.0/0",
    ];
    proptest::sample::subsequence(some.to_vec(), 0..=some.len())
        .prop_map(|texts| texts.into_iter().map(|text| text.parse().unwrap()).collect())
}

fn sets() -> impl Strategy<Value = Arc<BackendSet>> {
    let members = proptest::collection::btree_map(0..6u8, 0..4u16, 0..6);
    (members, prop_oneof![3 => Just(None), 1 => Just(Some(512))]).prop_map(|(members, table_slots)| {
        let member = |(number, weight)| Member {
            backend: id(format!("n{number}")),
            weight,
        };
        Arc::new(BackendSet {
            members: members.into_iter().map(member).collect(),
            table_slots,
        })
    })
}

fn rates() -> impl Strategy<Value = Option<Rate>> {
    let rate = |(per_second, burst)| Rate { per_second, burst };
    prop_oneof![2 => Just(None), 1 => (1..1000u32, 1..100u32).prop_map(rate).prop_map(Some)]
}

fn keys() -> impl Strategy<Value = VipKey> {
    let addresses = [
        "203.0.113.1",
        "203.0.113.2",
        "203.0.113.3",
        "2001:db8:f::1",
        "2001:db8:f::2",
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (
        proptest::sample::select(addresses.to_vec()),
        protocol,
        prop_oneof![Just(80), Just(443), Just(53)],
    )
        .prop_map(|(text, protocol, port)| VipKey {
            address: address(text),
            protocol,
            port,
        })
}

fn vips() -> impl Strategy<Value = Vip> {
    let allowed = prop_oneof![2 => Just(None), 1 => cidrs().prop_map(Some)];
    let flags = (any::<bool>(), any::<bool>());
    let scheduler = prop_oneof![1 => Just(Scheduler::Maglev), 1 => proptest::sample::select(Scheduler::ALL.to_vec())];
    let timeout = prop_oneof![3 => Just(None), 1 => (1..1000u32).prop_map(Some)];
    let state = (scheduler, timeout);
    (sets(), rates(), rates(), allowed, flags, state).prop_map(|(set, packets, syns, allowed, flags, state)| Vip {
        limits: Limits { packets, syns },
        allowed_sources: allowed.map(Arc::from),
        clamp_mss: flags.0,
        client_affinity: flags.1,
        scheduler: state.0,
        affinity_timeout_s: state.1,
        ..Vip::new(set)
    })
}

fn tunnels() -> impl Strategy<Value = Option<Tunnel>> {
    let tunnel = (cidrs(), cidrs(), cidrs()).prop_map(|(sources, vip_prefixes, denied_inner_sources)| Tunnel {
        sources,
        vip_prefixes,
        locals: BTreeSet::from([address("198.51.100.1")]),
        denied_inner_sources,
    });
    prop_oneof![2 => Just(None), 1 => tunnel.prop_map(Some)]
}

/// A desired state. Sets are drawn once and shared, as a source shares them, or drawn for one VIP alone.
pub(crate) fn states() -> impl Strategy<Value = Desired> {
    let shared = proptest::collection::vec(sets(), 1..3);
    let vips = proptest::collection::btree_map(keys(), (vips(), any::<prop::sample::Index>(), any::<bool>()), 0..12);
    let own = proptest::sample::subsequence(vec!["203.0.113.1", "2001:db8:f::1", "198.51.100.1"], 0..=3);
    let backends = proptest::collection::vec((0..2u8, any::<bool>()), 6);
    (shared, vips, own, cidrs(), tunnels(), backends).prop_map(
        |(shared, vips, own, denied_sources, tunnel, backends)| {
            let choose = |(key, (vip, which, shares)): (VipKey, (Vip, prop::sample::Index, bool))| {
                let set = if shares {
                    shared[which.index(shared.len())].clone()
                } else {
                    vip.set.clone()
                };
                (key, Vip { set, ..vip })
            };
            let vips: BTreeMap<VipKey, Vip> = vips.into_iter().map(choose).collect();
            let named: BTreeSet<BackendId> = vips
                .values()
                .flat_map(|vip| &vip.set.members)
                .map(|member| member.backend.clone())
                .collect();
            let mut all = BTreeMap::new();
            for (number, (variant, always)) in backends.into_iter().enumerate() {
                let id = id(format!("n{number}"));
                if always || named.contains(&id) {
                    // Every other backend is IPv6; an address may change under the same name.
                    let number = number as u8;
                    let address = match number % 2 {
                        0 => IpAddr::from([192, 0, 2, number + 100 * variant]),
                        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, u16::from(variant), u16::from(number)]),
                    };
                    all.insert(id, Backend { address });
                }
            }
            let own_addresses = own.into_iter().map(address).collect();
            Desired {
                vips,
                backends: all,
                departed: BTreeMap::new(),
                gone: BTreeSet::new(),
                denied_sources,
                own_addresses,
                tunnel,
            }
        },
    )
}

fn hop(number: usize) -> impl Strategy<Value = Option<NextHop>> {
    let tags = prop_oneof![
        4 => Just(None),
        1 => Just(Some(VlanTags::Untagged)),
        1 => (1..3u16).prop_map(|tci| Some(VlanTags::One(tci))),
        1 => (1..3u16, 1..3u16, any::<bool>()).prop_map(|(outer, inner, ad)| Some(VlanTags::Two { outer, inner, ad })),
    ];
    let via = (
        1..3u32,
        1..4u8,
        1..3u8,
        1..3u8,
        prop_oneof![Just(1500u16), Just(9000)],
        tags,
    )
        .prop_map(move |(ifindex, to, from, source, mtu, tags)| {
            let source = match number % 2 {
                0 => IpAddr::from([198, 51, 100, source]),
                _ => IpAddr::from([0x2001, 0xdb8, 0xff, 0, 0, 0, 0, u16::from(source)]),
            };
            let destination_mac = [2, 0, 0, 0, 0, to];
            let source_mac = [2, 0, 0, 0, 1, from];
            NextHop::Via(Via {
                ifindex,
                port: ifindex as u8,
                destination_mac,
                source_mac,
                source,
                mtu,
                tags,
            })
        });
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(NextHop::Unresolved)),
        1 => Just(Some(NextHop::Local)),
        6 => via.prop_map(Some),
    ]
}

/// Next hops of all backends that there may be.
pub(crate) fn hops() -> impl Strategy<Value = NextHops> {
    (hop(0), hop(1), hop(2), hop(3), hop(4), hop(5)).prop_map(|(a, b, c, d, e, f)| {
        let hops = [a, b, c, d, e, f].into_iter().enumerate();
        hops.filter_map(|(number, hop)| Some((id(format!("n{number}")), hop?)))
            .collect()
    })
}

/// What happens one after another: a new state with new next hops, or only new next hops.
pub(crate) fn histories() -> impl Strategy<Value = Vec<(Option<Desired>, NextHops)>> {
    proptest::collection::vec((proptest::option::weighted(0.8, states()), hops()), 1..6)
}
