//! Time to plan: `cargo run --release -p lb-core --example plan_time`. A measurement, never a test.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "it measures and prints"
)]

use std::{net::IpAddr, sync::Arc, time::Instant};

use lb_core::{
    config::{Capacity, Protection},
    desired::{Backend, BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Via, Vip, VipKey},
    health::{Check, Checks, Health, Overlay},
    match_table::masks_for,
    plan::{Moment, Plan, Planner, Write},
    slow::Book,
};
use xdp_prog::abi::Config;

fn id(number: usize) -> BackendId {
    BackendId(Arc::from(format!("node-{number:04}")))
}

/// `vips` VIPs, of which each `per_set` share a set of 1,000 backends; sets differ in a weight.
fn desired(vips: usize, per_set: usize, heavy: usize) -> Desired {
    let mut desired = Desired::default();
    for number in 0..1000 {
        let address = IpAddr::from([10, 1, (number >> 8) as u8, number as u8]);
        desired.backends.insert(id(number), Backend { address });
    }
    for first in (0..vips).step_by(per_set) {
        let member = |number| Member {
            backend: id(number),
            weight: if number == heavy + first { 2 } else { 1 },
        };
        let set = Arc::new(BackendSet {
            members: (0..1000).map(member).collect(),
            table_slots: None,
        });
        for number in first..first + per_set {
            let address = IpAddr::from([203, 0, (number >> 8) as u8, number as u8]);
            let key = VipKey {
                address,
                protocol: Protocol::Tcp,
                port: 80,
            };
            desired.vips.insert(key, Vip::new(set.clone()));
        }
    }
    desired
}

fn hops(desired: &Desired, mac: u8) -> NextHops {
    let via = Via {
        ifindex: 2,
        port: 0,
        destination_mac: [2, 0, 0, 0, 0, mac],
        source_mac: [2, 0, 0, 0, 1, 0],
        source: IpAddr::from([10, 0, 0, 1]),
        mtu: 1500,
        tags: None,
    };
    desired
        .backends
        .keys()
        .map(|id| (id.clone(), NextHop::Via(via)))
        .collect()
}

fn report(what: &str, plan: impl FnOnce() -> Plan) {
    let begin = Instant::now();
    let plan = plan();
    let took = begin.elapsed();
    let graces = plan.writes.iter().filter(|write| **write == Write::Grace).count();
    println!(
        "{what:45} {took:>12?} {:6} writes, {graces} grace periods",
        plan.writes.len()
    );
}

fn main() {
    let capacity = Capacity {
        table_segments: 256,
        ..Capacity::default()
    };
    let (match_mask_v4, match_mask_v6) = masks_for(capacity.vips);
    let config = Config {
        match_mask_v4,
        match_mask_v6,
        ..Config::EMPTY
    };
    for (vips, per_set) in [(10_000, 10_000), (512, 1)] {
        let mut planner = Planner::new(&capacity, &config, 250);
        println!("{vips} VIPs, {} sets of 1,000 backends", vips / per_set);
        let first = desired(vips, per_set, 0);
        let second = desired(vips, per_set, 1);
        report("first plan", || planner.plan(&first, &hops(&first, 1)).unwrap());
        report("nothing new", || planner.plan(&first, &hops(&first, 1)).unwrap());
        report("nothing new, read again", || {
            planner.plan(&desired(vips, per_set, 0), &hops(&first, 1)).unwrap()
        });
        report("every MAC address changes", || planner.plan_hops(&hops(&first, 2)));
        report("every set changes", || planner.plan(&second, &hops(&first, 2)).unwrap());
        let checks = Arc::new(Checks::new([Check::kube(10256), Check::tunnel()]));
        let mut checked = second.clone();
        for vip in checked.vips.values_mut() {
            vip.checks = Some(Arc::clone(&checks));
        }
        let ill = id(7);
        let overlay = Overlay::of([(&ill, &checks.list[0], Health::Unhealthy)]);
        let moment = Moment {
            overlay: Some(&overlay),
            ..Moment::STILL
        };
        report("a backend falls ill", || {
            planner.plan_at(&checked, &hops(&checked, 2), &moment).unwrap()
        });
        report("and stays so", || {
            planner.plan_at(&checked, &hops(&checked, 2), &moment).unwrap()
        });
        let start = Instant::now();
        let book = Book::new(
            &checked,
            &hops(&checked, 2),
            &overlay,
            Protection::default(),
            &["203.0.0.0/8".parse().unwrap()],
        );
        println!(
            "{:<28} {:>9.2?}, {} addresses",
            "the slow path's book",
            start.elapsed(),
            book.owned().count()
        );
        println!("{:?}\n", planner.usage());
    }
}
