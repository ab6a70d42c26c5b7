//! The orders that the design names, one by one.

use std::net::IpAddr;

use lb_core::{
    config::Capacity,
    desired::{Desired, Limits, NextHop, NextHops, Rate, TooBig, Tunnel, Via, VlanTags},
    match_table::masks_for,
    plan::{FeatureUse, MapId, Plan, PlanError, Planner, RangesOf, Summary, Write, features, rates},
};
use xdp_prog::abi::{BackendIndex, Config, SetRef, VipIndex, feature, setting};

use crate::{
    meaning,
    world::{CAPACITY, address, config, desired, id, key, planner, resolved, set, via},
};

const A: &str = "203.0.113.1";
const B: &str = "203.0.113.2";

/// Maps with room for everything, entries that stand where they fall.
fn roomy() -> Planner {
    let capacity = Capacity {
        vips: 100,
        backends: 100,
        table_segments: 4,
        ranges: 4096,
    };
    let (match_mask_v4, match_mask_v6) = masks_for(capacity.vips);
    Planner::new(
        &capacity,
        &Config {
            match_mask_v4,
            match_mask_v6,
            ..config(1)
        },
        250,
    )
}

fn plan(planner: &mut Planner, desired: &Desired) -> Plan {
    planner.plan(desired, &resolved(desired)).unwrap()
}

/// The writes without those to slot memory, as (map, word) or what else they are.
fn outline(plan: &Plan) -> Vec<String> {
    let write = |write: &Write| match write {
        Write::AddSegment(_) => "segment".to_owned(),
        Write::Store { map, word, value, .. } => format!("{map}.{word}{}", if *value == 0 { "=0" } else { "" }),
        Write::Fill { map, .. } => format!("fill {map}"),
        Write::Grace => "grace".to_owned(),
        Write::ZeroVipCounter(VipIndex(index)) => format!("zero vip {index}"),
        Write::ZeroBackendCounter(BackendIndex(index)) => format!("zero backend {index}"),
        Write::ZeroLimits(VipIndex(index)) => format!("zero limits {index}"),
        Write::ForgetDatagrams(backends) => format!("forget datagrams {backends:?}"),
    };
    plan.writes.iter().map(write).collect()
}

fn stores_to(plan: &Plan, map: MapId) -> usize {
    plan.writes
        .iter()
        .filter(|write| matches!(write, Write::Store { map: other, .. } if *other == map))
        .count()
}

#[test]
fn a_vip_is_published_last() {
    let mut desired = desired(&[(key("2001:db8:f::1", 80), &set(&[("a", 1)]))]);
    desired.vips.first_entry().unwrap().get_mut().limits.syns = Some(Rate {
        per_second: 100,
        burst: 10,
    });
    desired.backends.insert(
        id("a"),
        lb_core::desired::Backend {
            address: address("192.0.2.1"),
        },
    );
    let outline = outline(&plan(&mut roomy(), &desired));
    let words = [
        "zero backend 1",
        "BACKENDS.1",
        "BACKENDS.2",
        "BACKENDS.3",
        "BACKENDS.4",
        "BACKENDS.5",
        "BACKENDS.0",
    ];
    assert_eq!(outline[..7], words);
    assert_eq!(
        outline[7..11],
        ["zero vip 0", "zero limits 0", "segment", "fill LOOKUP_TABLES"]
    );
    assert_eq!(outline[11..13], ["VIP_OPTIONS.3", "VIP_OPTIONS.2"]);
    // Meta, then the key, its tail last; then the same for the address entry.
    let way = |way: u32| [3, 0, 1, 2].map(|word| format!("VIPS_V6.{}", way * 4 + word)).to_vec();
    assert!([way(0), way(1)].contains(&outline[13..17].to_vec()), "{outline:?}");
    // The address entry's meta is 0, which stands there already.
    assert!([&way(0)[1..], &way(1)[1..]].contains(&&outline[17..]), "{outline:?}");
}

#[test]
fn a_retarget_is_one_store() {
    let mut planner = roomy();
    let (one, other) = (set(&[("a", 1), ("b", 1)]), set(&[("a", 1), ("b", 2)]));
    let before = desired(&[(key(A, 80), &one), (key(B, 80), &one)]);
    assert_eq!(plan(&mut planner, &before).summary.tables_built, 1);
    let after = desired(&[(key(A, 80), &other), (key(B, 80), &other)]);
    let plan = plan(&mut planner, &after);
    assert_eq!(outline(&plan)[0], "fill LOOKUP_TABLES");
    assert_eq!((plan.writes.len(), stores_to(&plan, MapId::VipsV4)), (4, 2));
    assert_eq!(plan.writes[3], Write::Grace);
    let Summary {
        vips_retargeted,
        tables_built,
        slots_moved,
        ..
    } = plan.summary;
    assert_eq!((vips_retargeted, tables_built), (2, 1));
    // From half and half to a third and two thirds: at least a sixth moves, and few more.
    assert!((42..=60).contains(&slots_moved), "{slots_moved}");
}

#[test]
fn mss_clamping_comes_and_goes_by_one_store() {
    let mut planner = roomy();
    let one = set(&[("a", 1)]);
    let plain = desired(&[(key(A, 80), &one), (key(B, 80), &one)]);
    plan(&mut planner, &plain);
    let mut clamped = plain.clone();
    clamped.vips.get_mut(&key(B, 80)).unwrap().clamp_mss = true;
    for desired in [&clamped, &plain] {
        let plan = plan(&mut planner, desired);
        assert_eq!((plan.writes.len(), stores_to(&plan, MapId::VipsV4)), (1, 1));
        assert_eq!(plan.summary, Summary::default());
    }
    // What the slow path alone reads is none of the maps' business.
    let mut answered = plain.clone();
    answered.vips.get_mut(&key(B, 80)).unwrap().too_big = TooBig::Answer;
    assert_eq!(plan(&mut planner, &answered), Plan::default());
}

#[test]
fn client_affinity_comes_and_goes_by_one_store_and_moves_no_slot() {
    let mut planner = roomy();
    let one = set(&[("a", 1), ("b", 1)]);
    let plain = desired(&[(key(A, 80), &one), (key(B, 80), &one)]);
    plan(&mut planner, &plain);
    let mut sticky = plain.clone();
    sticky.vips.get_mut(&key(B, 80)).unwrap().client_affinity = true;
    for desired in [&sticky, &plain] {
        let plan = plan(&mut planner, desired);
        assert_eq!((plan.writes.len(), stores_to(&plan, MapId::VipsV4)), (1, 1));
        assert_eq!(plan.summary, Summary::default());
    }
}

#[test]
fn equal_sets_share_a_table_however_they_were_made() {
    let mut planner = roomy();
    let sets = [
        set(&[("a", 1), ("b", 1)]),
        set(&[("a", 1), ("b", 1)]),
        set(&[("a", 3), ("b", 3), ("c", 0)]),
    ];
    let desired = desired(&[(key(A, 80), &sets[0]), (key(A, 443), &sets[1]), (key(B, 80), &sets[2])]);
    let plan = plan(&mut planner, &desired);
    // The second is the same set; the third is another one with the same slots.
    assert_eq!((plan.summary.tables_built, plan.summary.tables_shared), (1, 1));
    let infos: Vec<_> = planner.vips().collect();
    assert!(
        infos
            .iter()
            .all(|info| info.table == infos[0].table && info.shared_by == 3)
    );
    assert_eq!(planner.shares(infos[0].table), [(id("a"), 128), (id("b"), 128)].into());
    assert_eq!((planner.tables(), planner.usage().table_units), (1, 2));
}

#[test]
fn a_removed_vip_is_found_no_more_before_anything_else_happens() {
    let mut planner = roomy();
    plan(&mut planner, &desired(&[(key(A, 80), &set(&[("a", 1)]))]));
    let plan = planner.plan(&Desired::default(), &NextHops::new()).unwrap();
    let outline = outline(&plan);
    assert!(
        outline[..2]
            .iter()
            .all(|write| write.starts_with("VIPS_V4.") && write.ends_with("=0")),
        "{outline:?}"
    );
    assert_eq!(outline[2], "grace");
    // The backend's line goes last; packets that had its table are gone by then.
    assert_eq!(outline[3], "BACKENDS.0=0");
    assert!(
        outline[4..].iter().all(|write| write.starts_with("BACKENDS.")),
        "{outline:?}"
    );
}

#[test]
fn a_new_mac_address_is_one_store() {
    let mut planner = roomy();
    let desired = desired(&[(key(A, 80), &set(&[("a", 1)]))]);
    plan(&mut planner, &desired);
    let moved = Via {
        destination_mac: [2, 0, 0, 0, 0, 9],
        ..via()
    };
    let plan = planner.plan_hops(&[(id("a"), NextHop::Via(moved))].into());
    assert_eq!(outline(&plan), ["BACKENDS.1"]);
    assert_eq!(
        plan.summary,
        Summary {
            lines_changed: 1,
            ..Summary::default()
        }
    );
}

#[test]
fn losing_a_next_hop_is_one_store_and_so_is_its_return() {
    let mut planner = roomy();
    let desired = desired(&[(key(A, 80), &set(&[("a", 1)]))]);
    plan(&mut planner, &desired);
    assert_eq!(outline(&planner.plan_hops(&NextHops::new())), ["BACKENDS.0=0"]);
    assert_eq!(outline(&planner.plan_hops(&resolved(&desired))), ["BACKENDS.0"]);
    assert_eq!(
        outline(&planner.plan_hops(&[(id("a"), NextHop::Local)].into())),
        ["BACKENDS.0"]
    );
}

#[test]
fn an_outer_header_changes_only_while_nobody_uses_it() {
    let mut planner = roomy();
    let desired = desired(&[(key(A, 80), &set(&[("a", 1), ("b", 1)]))]);
    plan(&mut planner, &desired);
    let moved = NextHop::Via(Via {
        source: address("198.51.100.2"),
        ..via()
    });
    let plan = planner.plan_hops(&[(id("a"), moved.clone()), (id("b"), moved)].into());
    // Both lines wait for the same grace period. (The header's second and third words hold the source and the sum.)
    let line = ["BACKENDS.4", "BACKENDS.5", "BACKENDS.0"];
    let expected = [&["BACKENDS.0=0", "BACKENDS.0=0", "grace"][..], &line, &line].concat();
    assert_eq!(outline(&plan), expected);
}

#[test]
fn a_header_that_packets_may_still_use_waits_even_if_the_line_is_unresolved() {
    let mut planner = roomy();
    let desired = desired(&[(key(A, 80), &set(&[("a", 1)]))]);
    plan(&mut planner, &desired);
    assert_eq!(outline(&planner.plan_hops(&NextHops::new())), ["BACKENDS.0=0"]);
    let moved = Via {
        source: address("198.51.100.2"),
        ..via()
    };
    let plan = planner.plan_hops(&[(id("a"), NextHop::Via(moved))].into());
    assert_eq!(outline(&plan), ["grace", "BACKENDS.4", "BACKENDS.5", "BACKENDS.0"]);
}

#[test]
fn another_interface_or_other_tags_never_mix_with_the_old_mac_address() {
    let elsewhere = Via {
        ifindex: 4,
        port: 1,
        destination_mac: [2, 0, 0, 0, 9, 9],
        ..via()
    };
    let tagged = Via {
        tags: Some(VlanTags::One(5)),
        ..via()
    };
    for moved in [elsewhere, tagged] {
        let mut planner = roomy();
        plan(&mut planner, &desired(&[(key(A, 80), &set(&[("a", 1)]))]));
        let plan = planner.plan_hops(&[(id("a"), NextHop::Via(moved))].into());
        assert_eq!(outline(&plan), ["BACKENDS.0=0", "grace", "BACKENDS.1", "BACKENDS.0"]);
    }
}

#[test]
fn protection_is_there_before_the_entry_says_so_and_freed_after_it_does_not() {
    let mut planner = roomy();
    let mut desired = desired(&[(key(A, 80), &set(&[("a", 1)]))]);
    plan(&mut planner, &desired);
    let vip = desired.vips.first_entry().unwrap().into_mut();
    vip.allowed_sources = Some(vec!["10.0.0.0/8".parse().unwrap()].into());
    let on = outline(&plan(&mut planner, &desired));
    assert_eq!(on[..2], ["fill RANGES", "VIP_OPTIONS.4"]);
    assert!(on.len() == 3 && on[2].starts_with("VIPS_V4."), "{on:?}");

    let vip = desired.vips.first_entry().unwrap().into_mut();
    vip.allowed_sources = Some(vec!["10.0.0.0/9".parse().unwrap()].into());
    assert_eq!(
        outline(&plan(&mut planner, &desired)),
        ["fill RANGES", "VIP_OPTIONS.4", "grace"]
    );

    desired.vips.first_entry().unwrap().into_mut().allowed_sources = None;
    let off = outline(&plan(&mut planner, &desired));
    assert!(off[0].starts_with("VIPS_V4."), "{off:?}");
    assert_eq!(off[1..], ["grace", "VIP_OPTIONS.4=0"]);
    assert_eq!(planner.usage().ranges, 0);
}

#[test]
fn tunnels_open_last_and_close_first() {
    let mut planner = roomy();
    let cidrs = |text: &str| vec![text.parse().unwrap()];
    let tunnel = Tunnel {
        sources: cidrs("198.51.100.0/24"),
        vip_prefixes: cidrs("203.0.113.0/24"),
        locals: [address("198.51.100.7")].into(),
        denied_inner_sources: cidrs("10.0.0.0/8"),
    };
    let settings = |plan: &Plan| -> Vec<(u32, bool)> {
        let setting = |write: &Write| match write {
            Write::Store {
                map: MapId::Settings,
                index,
                value,
                ..
            } => Some((*index, SetRef(*value).is_present())),
            _ => None,
        };
        plan.writes.iter().filter_map(setting).collect()
    };
    let open = Desired {
        tunnel: Some(tunnel),
        ..Desired::default()
    };
    let on = settings(&plan(&mut planner, &open));
    assert_eq!((on.len(), on[3]), (4, (setting::TUNNEL_LOCALS, true)));
    let off = settings(&plan(&mut planner, &Desired::default()));
    assert_eq!((off.len(), off[0]), (4, (setting::TUNNEL_LOCALS, false)));
}

#[test]
fn positions_of_what_left_are_zeroed_before_they_are_used_again() {
    let capacity = Capacity {
        vips: 1,
        backends: 2,
        ..CAPACITY
    };
    let mut planner = Planner::new(&capacity, &config(1), 250);
    plan(&mut planner, &desired(&[(key(A, 80), &set(&[("a", 1)]))]));
    let replaced = desired(&[(key(B, 80), &set(&[("b", 1)]))]);
    let plan = plan(&mut planner, &replaced);
    let outline = outline(&plan);
    let grace = outline.iter().position(|write| write == "grace").unwrap();
    let zeroed = outline.iter().position(|write| write == "zero vip 0").unwrap();
    let published = outline.iter().rposition(|write| write.starts_with("VIPS_V4.")).unwrap();
    assert!(grace < zeroed && zeroed < published, "{outline:?}");
    assert_eq!(planner.backend_index(&id("b")), Some(BackendIndex(2)));
    meaning::check(&planner, &replaced, &resolved(&replaced));
}

#[test]
fn tables_only_grow_while_the_daemon_runs() {
    let mut planner = roomy();
    let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
    let members: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let slots = |planner: &Planner| planner.vip(&key(A, 80)).unwrap().table.slots;
    for (count, expected) in [(3, 256), (40, 4096), (3, 4096), (0, 256), (3, 4096)] {
        plan(&mut planner, &desired(&[(key(A, 80), &set(&members[..count]))]));
        assert_eq!(slots(&planner), expected, "{count} backends");
    }
}

#[test]
fn slot_memory_that_the_plan_itself_frees_is_used_again_after_a_grace_period() {
    let mut planner = Planner::new(
        &Capacity {
            backends: 100,
            ..CAPACITY
        },
        &config(1),
        250,
    );
    // Seven of the largest tables fit beside the empty one; six VIPs change one after another.
    let sized = |names: &[(&str, u16)]| {
        let mut set = (*set(names)).clone();
        set.table_slots = Some(65_536);
        std::sync::Arc::new(set)
    };
    let keys: Vec<_> = (1..=6).map(|port| key(A, port)).collect();
    let weights = |offset: u16| -> Vec<_> {
        (1..=6u16)
            .map(|weight| sized(&[("a", weight + offset), ("b", 20)]))
            .collect()
    };
    for offset in [0, 30] {
        let sets = weights(offset);
        let desired = desired(&keys.iter().copied().zip(&sets).collect::<Vec<_>>());
        let plan = plan(&mut planner, &desired);
        assert_eq!(plan.summary.tables_built, 6);
        // With room for one table more, each retarget makes room for the next, after a grace period.
        assert_eq!(
            plan.writes.iter().filter(|write| **write == Write::Grace).count() > 1,
            offset > 0
        );
        meaning::check(&planner, &desired, &resolved(&desired));
    }
}

#[test]
fn an_entry_stays_where_it_was_until_nobody_can_miss_both() {
    // Find, by trying, keys whose insertion moves a published entry.
    let found = (0..2000).find_map(|salt| {
        let mut planner = planner(salt);
        let mut vips = Vec::new();
        let set = set(&[("a", 1)]);
        (1..=13u16).find_map(|port| {
            vips.push((key(A, port), &set));
            let desired = desired(&vips);
            let plan = planner.plan(&desired, &resolved(&desired)).ok()?;
            let cleared = |write: &Write| {
                matches!(
                    write,
                    Write::Store {
                        map: MapId::VipsV4,
                        value: 0,
                        ..
                    }
                )
            };
            plan.writes.iter().any(cleared).then_some(plan)
        })
    });
    let plan = found.expect("some insertion moves an entry");
    let outline: Vec<String> = outline(&plan)
        .into_iter()
        .skip_while(|write| !write.starts_with("VIPS"))
        .collect();
    let cleared = outline.iter().position(|write| write.ends_with("=0")).unwrap();
    // The copy is there and nobody can have missed it; then the original goes, and its place is not used before nobody reads it.
    assert!(cleared >= 2 && outline[cleared - 1] == "grace", "{outline:?}");
    let word = outline[cleared].trim_end_matches("=0");
    let after = &outline[cleared + 1..];
    let used = after
        .iter()
        .position(|write| write == word)
        .expect("the new entry takes the place");
    assert!(after[..used].iter().any(|write| write == "grace"), "{outline:?}");
}

#[test]
fn what_does_not_fit_is_named() {
    let set = set(&[("a", 1), ("b", 1)]);
    let two = desired(&[(key(A, 80), &set), (key(B, 80), &set)]);
    let fails = |capacity: Capacity, desired: &Desired| {
        let mut planner = Planner::new(&capacity, &config(1), 250);
        planner.plan(desired, &resolved(desired)).unwrap_err()
    };
    assert_eq!(
        fails(Capacity { vips: 1, ..CAPACITY }, &two),
        PlanError::TooManyVips {
            vip: key(B, 80),
            capacity: 1
        }
    );
    let error = fails(
        Capacity {
            backends: 1,
            ..CAPACITY
        },
        &two,
    );
    assert_eq!(
        error,
        PlanError::TooManyBackends {
            backend: id("b"),
            capacity: 1
        }
    );

    let mut unknown = two.clone();
    unknown.backends.remove(&id("b"));
    assert_eq!(
        fails(CAPACITY, &unknown),
        PlanError::UnknownBackend {
            vip: key(A, 80),
            backend: id("b")
        }
    );
    assert_eq!(unknown.vips.len(), 2);

    let mut limited = two.clone();
    limited.vips.get_mut(&key(B, 80)).unwrap().limits = Limits {
        packets: Some(Rate {
            per_second: 1,
            burst: 1,
        }),
        syns: None,
    };
    let mut planner = Planner::new(
        &CAPACITY,
        &Config {
            features: 0,
            ..config(1)
        },
        250,
    );
    let what = FeatureUse::Limits(key(B, 80));
    assert_eq!(
        planner.plan(&limited, &resolved(&limited)),
        Err(PlanError::FeatureOff {
            what,
            feature: feature::LIMITS
        })
    );
    assert_eq!(features(&limited), feature::LIMITS);
    let mut clamped = two.clone();
    clamped.vips.get_mut(&key(B, 80)).unwrap().clamp_mss = true;
    let error = planner.plan(&clamped, &resolved(&clamped)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MSS clamping of tcp 203.0.113.2:80: the loaded program has this off (0x200)"
    );
    assert_eq!(features(&clamped), feature::CLAMP_MSS);
    let mut sticky = two.clone();
    sticky.vips.get_mut(&key(B, 80)).unwrap().client_affinity = true;
    let error = planner.plan(&sticky, &resolved(&sticky)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "client affinity of tcp 203.0.113.2:80: the loaded program has this off (0x800)"
    );
    assert_eq!(features(&sticky), feature::AFFINITY);

    let many = (0..2000u32).map(|number| ipnet::IpNet::new(IpAddr::from((number * 2).to_be_bytes()), 32).unwrap());
    let denied = Desired {
        denied_sources: many.collect(),
        ..Desired::default()
    };
    let of = RangesOf::Setting(setting::DENIED_SOURCES);
    assert_eq!(fails(CAPACITY, &denied), PlanError::TooManyRanges { of, ranges: 2000 });
    assert_eq!(of.to_string(), "denied sources");
}

#[test]
fn a_backend_that_a_set_still_names_cannot_leave() {
    let mut planner = roomy();
    let mut desired = desired(&[(key(A, 80), &set(&[("a", 1), ("b", 1)]))]);
    plan(&mut planner, &desired);
    desired.backends.remove(&id("b"));
    let error = planner.plan(&desired, &resolved(&desired)).unwrap_err();
    assert_eq!(
        error,
        PlanError::UnknownBackend {
            vip: key(A, 80),
            backend: id("b")
        }
    );
}

#[test]
fn rates_are_per_jiffy_and_never_round_to_no_limit() {
    assert_eq!(rates(None, 250), (0, 0));
    assert_eq!(
        rates(
            Some(Rate {
                per_second: 1000,
                burst: 50
            }),
            250
        ),
        (4 << 16, 50 << 16)
    );
    assert_eq!(
        rates(
            Some(Rate {
                per_second: 1,
                burst: 1
            }),
            1_000_000
        ),
        (1, 1 << 16)
    );
    let most = Rate {
        per_second: u32::MAX,
        burst: u32::MAX,
    };
    assert_eq!(
        rates(Some(most), 100),
        (u64::from(u32::MAX) * 65_536 / 100, u64::from(u32::MAX) << 16)
    );
}
