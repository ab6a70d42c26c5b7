//! What an image means, read as the program reads it and compared with the desired state itself.

use std::net::IpAddr;

use lb_core::{
    desired::{Desired, NextHop, NextHops, Protocol, VipKey},
    maglev, nexthop_line,
    plan::{MapId, Planner, rates},
    ranges::RangeSet,
    schedule::Scheduler,
};
use xdp_prog::{
    abi::{BackendIndex, Candidate, KeyV4, KeyV6, LineMeta, Method, Schedule, SetRef, VipMeta, VipOptions, setting},
    host::View,
};

/// The image of `planner` says exactly what is desired.
pub(crate) fn check(planner: &Planner, desired: &Desired, hops: &NextHops) {
    for (key, vip) in &desired.vips {
        let info = planner.vip(key).expect("the planner knows the VIP");
        let meta = find(&planner.image().view(planner.config()), key).unwrap_or_else(|| panic!("{key} is not found"));
        assert_eq!(meta.vip(), info.index, "{key}");
        assert_eq!(
            (meta.unit(), meta.slots()),
            (info.table.unit, info.table.slots),
            "{key}"
        );
        assert_eq!(info.set, &vip.set, "{key}");
        assert_eq!(meta.has(VipMeta::CLAMP_MSS), vip.clamp_mss, "{key}");
        assert_eq!(meta.has(VipMeta::CLIENT_AFFINITY), vip.hashes_client(), "{key}");
        assert_eq!(info.client_affinity, vip.hashes_client(), "{key}");
        assert_eq!(meta.has(VipMeta::SCHEDULED), vip.is_scheduled(), "{key}");
        assert_eq!(meta.has(VipMeta::RECORDS), vip.is_scheduled(), "{key}");
        check_table(planner, key, desired);
        check_options(planner, desired, key, meta);
        check_schedule(planner, desired, key, meta);
    }
    assert_eq!(planner.vips().count(), desired.vips.len());
    let addresses: std::collections::BTreeSet<IpAddr> = desired.vips.keys().map(|key| key.address).collect();
    let usage = planner.usage();
    assert_eq!(usage.entries, desired.vips.len() + addresses.len());
    assert_eq!(
        (usage.vips, usage.backends),
        (desired.vips.len(), desired.backends.len())
    );
    check_nothing_else_is_found(planner, desired);
    check_backends(planner, desired, hops);
    check_settings(planner, desired);
}

/// What the match table says of a VIP.
fn find(view: &View<'_>, key: &VipKey) -> Option<VipMeta> {
    let (config, protocol) = (view.config, key.protocol.number());
    let meta = match key.address {
        IpAddr::V4(address) => {
            let key = KeyV4::new(address, protocol, key.port);
            let [first, second, third] = key.buckets(config.match_salt, config.match_mask_v4);
            let ways = [first, second, third].map(|bucket| view.vips_v4[bucket as usize]);
            ways.iter()
                .find_map(|bucket| Some(bucket.metas[bucket.keys.iter().position(|other| *other == key.0)?]))
        }
        IpAddr::V6(address) => {
            let key = KeyV6::new(address, protocol, key.port);
            let [first, second, third] = key.buckets(config.match_salt, config.match_mask_v6);
            let ways = [first, second, third].map(|bucket| view.vips_v6[bucket as usize].entries);
            let found = ways
                .iter()
                .flatten()
                .find(|way| (way.high, way.low, way.tail) == (key.high, key.low, key.tail));
            found.map(|way| way.meta)
        }
    };
    meta.map(VipMeta)
}

fn check_table(planner: &Planner, key: &VipKey, desired: &Desired) {
    let info = planner.vip(key).unwrap();
    let set = &desired.vips[key].set;
    let expected: Vec<u16> = if set.members.iter().all(|member| member.weight == 0) {
        vec![0; 256]
    } else {
        match set.table_slots {
            Some(slots) => assert_eq!(info.table.slots, slots),
            None => assert!(info.table.slots >= maglev::default_slots(set.members.len())),
        }
        let index = |position: u16| {
            planner
                .backend_index(&set.members[usize::from(position)].backend)
                .unwrap()
                .0
        };
        maglev::build(&set.members, info.table.slots)
            .into_iter()
            .map(index)
            .collect()
    };
    let words = planner.image().table(info.table.unit, info.table.slots);
    let slots: Vec<u16> = words
        .iter()
        .flat_map(|word| (0..4).map(move |slot| (word >> (16 * slot)) as u16))
        .collect();
    if desired.vips[key].scheduler == Scheduler::DestinationHash {
        assert!(
            expected.contains(&slots[0]) && slots.iter().all(|slot| *slot == slots[0]),
            "{key}: one for all"
        );
        return;
    }
    assert!(slots == expected, "{key}: the table is not its set's");
}

/// Who may take new flows of a VIP with a scheduler, and whose turn is when.
fn check_schedule(planner: &Planner, desired: &Desired, key: &VipKey, meta: VipMeta) {
    let vip = &desired.vips[key];
    let options: [u64; 2] = [5, 6].map(|word| planner.image().load(MapId::VipOptions, meta.vip().0, word));
    if !vip.is_scheduled() {
        assert_eq!(options, [0, 0], "{key}");
        return;
    }
    let schedule = Schedule(options[0]);
    assert_eq!(schedule.method(), vip.scheduler.method() as u64, "{key}");
    let ticks = vip
        .affinity_timeout_s
        .map_or(0, |seconds| (u64::from(seconds) * 250).div_ceil(64));
    assert_eq!(options[1], ticks, "{key}");
    let weight = |weight| if vip.scheduler.is_weighted() { weight } else { 1 };
    let members = vip.set.members.iter().filter(|member| member.weight > 0);
    let mut expected: Vec<(u16, u16)> = members
        .map(|member| (planner.backend_index(&member.backend).unwrap().0, weight(member.weight)))
        .collect();
    expected.sort_unstable();
    let (segment, first) = schedule.unit().place();
    let words = &planner.image().words(MapId::LookupTables, segment)[first as usize..];
    let (candidates, rest) = words.split_at(schedule.candidates() as usize);
    let candidates: Vec<(u16, u16)> = candidates
        .iter()
        .map(|word| (Candidate(*word).backend(), Candidate(*word).weight() as u16))
        .collect();
    assert_eq!(candidates, expected, "{key}");
    let turns = schedule.turns() as usize;
    let slots = rest
        .iter()
        .flat_map(|word| (0..4).map(move |slot| (word >> (16 * slot)) as u16));
    let slots: Vec<u16> = slots.take(turns).collect();
    assert_eq!(
        turns > 0,
        vip.scheduler.method() == Method::Turn && !candidates.is_empty(),
        "{key}"
    );
    let sum: usize = candidates.iter().map(|(_, weight)| usize::from(*weight)).sum();
    for (backend, weight) in candidates.iter().filter(|_| turns > 0) {
        let taken = slots.iter().filter(|slot| *slot == backend).count();
        assert_eq!(taken * sum, usize::from(*weight) * turns, "{key}");
    }
}

fn check_options(planner: &Planner, desired: &Desired, key: &VipKey, meta: VipMeta) {
    let vip = &desired.vips[key];
    let limits = vip.limits;
    let wanted = limits.packets.is_some() || limits.syns.is_some() || vip.allowed_sources.is_some();
    assert_eq!(meta.has(VipMeta::OPTIONS), wanted, "{key}");
    if !wanted {
        return;
    }
    let options: VipOptions = planner.image().view(planner.config()).options[meta.vip().0 as usize];
    // The burst of a rate that is off means nothing.
    let limit = |rate, burst| if rate == 0 { (0, 0) } else { (rate, burst) };
    assert_eq!(
        limit(options.packet_rate, options.packet_burst),
        rates(limits.packets, 250),
        "{key}"
    );
    assert_eq!(
        limit(options.syn_rate, options.syn_burst),
        rates(limits.syns, 250),
        "{key}"
    );
    let allowed = vip.allowed_sources.as_deref().map(RangeSet::from_cidrs);
    check_ranges(planner, options.allowed_sources, allowed);
}

fn check_ranges(planner: &Planner, reference: u64, expected: Option<RangeSet>) {
    let reference = SetRef(reference);
    assert_eq!(reference.is_present(), expected.is_some());
    if let Some(expected) = expected {
        let begin = reference.offset() as usize;
        let view = planner.image().view(planner.config());
        assert_eq!(
            view.ranges[begin..begin + reference.padded_len() as usize],
            expected.padded()
        );
    }
}

fn check_nothing_else_is_found(planner: &Planner, desired: &Desired) {
    let view = planner.image().view(planner.config());
    for text in [
        "203.0.113.1",
        "203.0.113.2",
        "203.0.113.3",
        "2001:db8:f::1",
        "2001:db8:f::2",
    ] {
        for (protocol, port) in [80, 443, 53]
            .into_iter()
            .flat_map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)])
        {
            let key = VipKey {
                address: text.parse().unwrap(),
                protocol,
                port,
            };
            assert_eq!(find(&view, &key).is_some(), desired.vips.contains_key(&key), "{key}");
        }
    }
}

fn check_backends(planner: &Planner, desired: &Desired, hops: &NextHops) {
    for (id, backend) in &desired.backends {
        let index = planner.backend_index(id).unwrap_or_else(|| panic!("{id} has no index"));
        assert_ne!(index, BackendIndex::NONE);
        assert_eq!(planner.backend_at(index), Some(id));
        let line = planner.image().view(planner.config()).backends[usize::from(index.0)];
        match hops.get(id).unwrap_or(&NextHop::Unresolved) {
            NextHop::Unresolved => assert_eq!(line.meta, 0, "{id}"),
            NextHop::Local => assert_eq!(line.meta, LineMeta::LOCAL, "{id}"),
            NextHop::Via(via) => assert_eq!(Some(line), nexthop_line::line_via(backend.address, via), "{id}"),
        }
    }
    assert_eq!(planner.backends().count(), desired.backends.len());
}

fn check_settings(planner: &Planner, desired: &Desired) {
    let tunnel = desired.tunnel.as_ref();
    let denied = (!desired.denied_sources.is_empty()).then(|| RangeSet::from_cidrs(&desired.denied_sources));
    let expected = [
        (setting::DENIED_SOURCES, denied),
        (
            setting::TUNNEL_SOURCES,
            tunnel.map(|tunnel| RangeSet::from_cidrs(&tunnel.sources)),
        ),
        (
            setting::TUNNEL_VIPS,
            tunnel.map(|tunnel| RangeSet::from_cidrs(&tunnel.vip_prefixes)),
        ),
        (
            setting::TUNNEL_LOCALS,
            tunnel.map(|tunnel| RangeSet::from_addresses(tunnel.locals.iter().copied())),
        ),
        (
            setting::TUNNEL_DENIED,
            tunnel.map(|tunnel| RangeSet::from_cidrs(&tunnel.denied_inner_sources)),
        ),
    ];
    for (index, expected) in expected {
        check_ranges(planner, planner.image().load(MapId::Settings, index, 0), expected);
    }
}
