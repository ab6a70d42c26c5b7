//! Round robin, and the hashes that are no more than another table.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    desired::{Protocol, Vip},
    schedule::Scheduler,
};

use crate::bed::{ACK, Bed, client, key, set, web};

fn vip(scheduler: Scheduler, weights: &[u16]) -> Vip {
    Vip {
        scheduler,
        ..Vip::new(set(weights))
    }
}

fn shares(bed: &mut Bed, flows: u32) -> BTreeMap<usize, u32> {
    let mut shares = BTreeMap::new();
    for number in 0..flows {
        *shares.entry(bed.open(client(number), web())).or_default() += 1;
    }
    shares
}

#[test]
fn weighted_turns_are_exact_over_a_round_and_even_within_it() {
    let weights = [1, 2, 0, 5];
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::WeightedRoundRobin, &weights))]);
    assert_eq!(shares(&mut bed, 800), BTreeMap::from([(0, 100), (1, 200), (3, 500)]));
    // Any part of a round, too, to within two turns.
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::WeightedRoundRobin, &weights))]);
    let some = shares(&mut bed, 404);
    for (number, exact) in [(0, 50.5), (1, 101.0), (3, 252.5)] {
        assert!((f64::from(some[&number]) - exact).abs() <= 2.0, "{some:?}");
    }
}

#[test]
fn turns_without_weights_are_the_same_for_all_who_take_any() {
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::RoundRobin, &[1, 200, 0, 5]))]);
    assert_eq!(shares(&mut bed, 300), BTreeMap::from([(0, 100), (1, 100), (3, 100)]));
}

#[test]
fn turns_go_on_when_a_member_comes_and_old_flows_stay() {
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::RoundRobin, &[1, 1]))]);
    let placed: Vec<usize> = (0..100).map(|number| bed.open(client(number), web())).collect();
    bed.desired.vips.get_mut(&web()).unwrap().set = set(&[1, 1, 1]);
    bed.plan();
    for (number, backend) in (0..).zip(&placed) {
        assert_eq!(bed.send(client(number), web(), ACK, 500), Some(*backend));
    }
    let mut later = BTreeMap::<usize, u32>::new();
    for number in 1000..1300 {
        *later.entry(bed.open(client(number), web())).or_default() += 1;
    }
    assert_eq!(later, BTreeMap::from([(0, 100), (1, 100), (2, 100)]));
}

#[test]
fn who_leaves_is_kept_while_flows_live_there_and_forgotten_after() {
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::RoundRobin, &[1, 1, 1]))]);
    let placed: Vec<usize> = (0..60).map(|number| bed.open(client(number), web())).collect();
    bed.desired.vips.get_mut(&web()).unwrap().set = set(&[1, 1]);
    bed.plan();
    for (number, backend) in (0..).zip(&placed) {
        assert_eq!(bed.send(client(number), web(), ACK, 500), Some(*backend));
    }
    for number in 1000..1100 {
        assert_ne!(bed.open(client(number), web()), 2);
    }
    // All are silent but one of it, for longer than any slot is in transit.
    let survivor = (0..).zip(&placed).find(|(_, backend)| **backend == 2).unwrap().0;
    bed.slots_are_silent = true;
    for _ in 0..4 {
        bed.pass(600);
        assert_eq!(bed.send(client(survivor), web(), ACK, 600), Some(2));
        bed.sweep();
        bed.plan();
    }
    assert!(bed.planner().has_departed() && !bed.planner().is_in_transit());
    bed.pass(1100);
    bed.sweep();
    bed.plan();
    assert!(!bed.planner().has_departed());
}

#[test]
fn turning_a_scheduler_off_and_on_keeps_connections_where_they_live() {
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::Maglev, &[1, 1, 1]))]);
    let mut living: Vec<usize> = (0..100).map(|number| bed.open(client(number), web())).collect();
    for (round, scheduler) in (1..).zip([
        Scheduler::RoundRobin,
        Scheduler::Maglev,
        Scheduler::LeastConnections,
        Scheduler::RoundRobin,
        Scheduler::DestinationHash,
        Scheduler::Maglev,
    ]) {
        bed.desired.vips.get_mut(&web()).unwrap().scheduler = scheduler;
        bed.plan();
        for (number, backend) in (0..).zip(&living) {
            let went = bed.send(client(number), web(), ACK, 1000 * round);
            assert_eq!(went, Some(*backend), "flow {number}, now {scheduler}, round {round}");
        }
        let first = living.len() as u32;
        living.extend((first..first + 50).map(|number| bed.open(client(number), web())));
    }
    // The transit ends, when all are silent; then slots alone decide again.
    bed.pass(2000);
    bed.plan();
    bed.pass(200);
    bed.plan();
    assert!(!bed.planner().is_in_transit());
    assert!(bed.planner().vips().all(|vip| !vip.table.is_wide));
}

#[test]
fn a_destination_has_one_backend_for_all_and_another_when_that_goes() {
    let ports = [80, 443, 8080].map(|port| key("203.0.113.1", Protocol::Tcp, port));
    let others = [2, 3, 4, 5, 6].map(|last| key(&format!("203.0.113.{last}"), Protocol::Tcp, 80));
    let vips = ports
        .iter()
        .chain(&others)
        .map(|key| (*key, vip(Scheduler::DestinationHash, &[1; 5])));
    let mut bed = Bed::new(4096, vips.collect::<Vec<_>>());
    let mut taken = BTreeSet::new();
    for number in 0..30 {
        for vip in ports {
            taken.insert(bed.send(client(number), vip, ACK, 1).unwrap());
        }
    }
    assert_eq!(taken.len(), 1, "all ports of an address: {taken:?}");
    let first: Vec<usize> = others.map(|vip| bed.send(client(1), vip, ACK, 1).unwrap()).into();
    assert!(
        first.iter().collect::<BTreeSet<_>>().len() > 1,
        "addresses spread: {first:?}"
    );
    assert_eq!(bed.open_flows().1.iter().sum::<u64>(), 0, "nothing is recorded");
    // It is drained: new connections go to one other, old ones stay.
    let gone = *taken.first().unwrap();
    bed.open(client(1000), web());
    let mut weights = [1; 5];
    weights[gone] = 0;
    for vip in bed.desired.vips.values_mut() {
        vip.set = set(&weights);
    }
    bed.plan();
    let mut after = BTreeSet::new();
    for number in 2000..2030 {
        after.insert(bed.open(client(number), web()));
    }
    assert!(after.len() == 1 && !after.contains(&gone), "{after:?}");
    assert_eq!(bed.send(client(1000), web(), ACK, 102), Some(gone));
}

#[test]
fn a_source_has_one_backend_whatever_its_ports() {
    let mut bed = Bed::new(4096, [(web(), vip(Scheduler::SourceHash, &[1; 4]))]);
    let mut all = BTreeSet::new();
    for number in 0..40 {
        let mut source = client(number);
        let backend = bed.open(source, web());
        for port in 1..10 {
            source.set_port(port);
            assert_eq!(bed.open(source, web()), backend);
        }
        all.insert(backend);
    }
    assert_eq!(all.len(), 4);
    assert_eq!(bed.open_flows().1.iter().sum::<u64>(), 0, "nothing is recorded");
}
