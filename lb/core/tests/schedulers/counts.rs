//! Schedulers that count open flows, and the counts.

use std::collections::BTreeMap;

use lb_core::{
    desired::{Protocol, Vip},
    schedule::Scheduler,
};
use proptest::prelude::*;

use crate::bed::{ACK, Bed, FIN, RST, SYN, client, key, set, web};

fn vip(scheduler: Scheduler, weights: &[u16]) -> Vip {
    Vip {
        scheduler,
        ..Vip::new(set(weights))
    }
}

/// Whether `chosen` is as good as any: the model of IPVS's `ip_vs_wlc.c`, `ip_vs_lc.c`, `ip_vs_sed.c` and `ip_vs_nq.c`, with open
/// flows for `activeconns`.
fn is_least(scheduler: Scheduler, open: &[u64], weights: &[u16], chosen: usize) -> bool {
    let load = |number: usize| {
        let (open, weight) = (open[number], u64::from(weights[number]));
        match scheduler {
            Scheduler::LeastConnections => (open, 1),
            Scheduler::WeightedLeastConnections => (open, weight),
            Scheduler::NeverQueue if open == 0 => (0, weight),
            _ => (open + 1, weight),
        }
    };
    let (chosen_load, chosen_weight) = load(chosen);
    weights[chosen] > 0
        && (0..weights.len()).filter(|number| weights[*number] > 0).all(|number| {
            let (load, weight) = load(number);
            chosen_load * weight <= load * chosen_weight
        })
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    proptest::sample::select(vec![
        Scheduler::LeastConnections,
        Scheduler::WeightedLeastConnections,
        Scheduler::ShortestExpectedDelay,
        Scheduler::NeverQueue,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// With up to as many candidates as are compared, each new flow goes to who has the least to do, whoever closed meanwhile.
    #[test]
    fn each_new_flow_goes_to_the_least_loaded(
        scheduler in scheduler(),
        weights in proptest::collection::vec(0_u16..9, 2..33).prop_filter("somebody", |weights| weights.iter().any(|w| *w > 0)),
        events in proptest::collection::vec((0_u8..3, any::<u16>()), 1..250),
    ) {
        let mut bed = Bed::new(1 << 14, [(web(), vip(scheduler, &weights))]);
        let mut open = vec![0; weights.len()];
        let mut living: Vec<(u32, usize)> = Vec::new();
        for (number, (kind, which)) in (0..).zip(events) {
            if kind == 0 && !living.is_empty() {
                let (flow, backend) = living.swap_remove(usize::from(which) % living.len());
                prop_assert_eq!(bed.send(client(flow), web(), if which % 2 == 0 { FIN } else { RST }, 103), Some(backend));
                open[backend] -= 1;
            } else {
                let backend = bed.open(client(number), web());
                prop_assert!(is_least(scheduler, &open, &weights, backend), "{} of {:?}, weights {:?}", backend, open, weights);
                open[backend] += 1;
                living.push((number, backend));
            }
        }
        prop_assert_eq!(bed.unrecorded, [0; 4]);
    }

    /// Whatever comes, in whatever order, with a full table, with time passing and sweeps in between: what is counted is what the
    /// records say.
    #[test]
    fn counts_never_leak(
        events in proptest::collection::vec((0_u8..9, 0_u32..1500, any::<u32>()), 1..900),
    ) {
        let udp = key("203.0.113.1", Protocol::Udp, 80);
        let remembers = Vip { affinity_timeout_s: Some(60), ..vip(Scheduler::NeverQueue, &[1; 3]) };
        let plain = key("203.0.113.2", Protocol::Tcp, 80);
        let mut bed = Bed::new(1024, [
            (web(), remembers),
            (udp, vip(Scheduler::LeastConnections, &[1; 3])),
            (plain, vip(Scheduler::Maglev, &[1; 3])),
        ]);
        for (kind, number, what) in events {
            let to = if number % 5 == 0 { plain } else { web() };
            match kind {
                0 => drop(bed.send(client(number), to, SYN, what % 4)),
                1 | 2 => drop((bed.send(client(number), to, SYN, 100), bed.send(client(number), to, ACK, 101))),
                3 => drop(bed.send(client(number), to, ACK, 102)),
                4 => drop(bed.send(client(number), to, FIN, 103)),
                5 => drop(bed.send(client(number), to, RST, 104)),
                6 => drop(bed.send(client(number), udp, 0, 0)),
                7 => bed.pass(what % 40),
                _ if what % 4 == 0 => {
                    let weights = [1, (what >> 8) as u16 % 2, 1, (what >> 9) as u16 % 2];
                    for vip in bed.desired.vips.values_mut() {
                        vip.set = set(&weights);
                    }
                    bed.plan();
                }
                _ => bed.sweep(),
            }
            let (counted, recorded) = bed.open_flows();
            prop_assert_eq!(counted, recorded);
        }
        // All are silent for longer than any lives: nothing is open.
        bed.pass(1100);
        bed.sweep();
        let (counted, recorded) = bed.open_flows();
        prop_assert_eq!(&counted, &recorded);
        prop_assert_eq!(counted.iter().sum::<u64>(), 0);
    }
}

#[test]
fn weighted_least_connections_follows_an_imbalance() {
    let weights = [1, 1, 2];
    let mut bed = Bed::new(1 << 14, [(web(), vip(Scheduler::WeightedLeastConnections, &weights))]);
    let placed: Vec<usize> = (0..400).map(|number| bed.open(client(number), web())).collect();
    assert_eq!([0, 1, 2].map(|number| bed.open_at(number)), [100, 100, 200]);
    // Those of the first stay, the others close: new ones make up for it, until all are as loaded again.
    for (number, backend) in (0..).zip(&placed) {
        if *backend != 0 {
            bed.send(client(number), web(), FIN, 102);
        }
    }
    let mut later = BTreeMap::<usize, u32>::new();
    for number in 1000..1300 {
        *later.entry(bed.open(client(number), web())).or_default() += 1;
    }
    assert_eq!(later, BTreeMap::from([(1, 100), (2, 200)]));
    assert_eq!([0, 1, 2].map(|number| bed.open_at(number)), [100, 100, 200]);
}

/// More candidates than are compared for one flow: nobody is left out, and nobody has much more than another.
#[test]
fn many_candidates_are_balanced_too() {
    let mut bed = Bed::new(1 << 16, [(web(), vip(Scheduler::LeastConnections, &[1; 150]))]);
    let mut living: Vec<(u32, usize)> = Vec::new();
    for number in 0..9000_u32 {
        let backend = bed.open(client(number), web());
        living.push((number, backend));
        // Flows of a third of the members last ten times as long as the others'.
        if number % 2 == 1 {
            let at = (number.wrapping_mul(0x9e37_79b1) >> 8) as usize % living.len();
            if !living[at].1.is_multiple_of(3) || number % 20 == 1 {
                let (flow, _) = living.swap_remove(at);
                bed.send(client(flow), web(), FIN, 102);
            }
        }
    }
    let open: Vec<u64> = (0..150).map(|number| bed.open_at(number)).collect();
    let (least, most) = (open.iter().min().unwrap(), open.iter().max().unwrap());
    assert!(most - least <= 4, "{least} to {most}: {open:?}");
}
