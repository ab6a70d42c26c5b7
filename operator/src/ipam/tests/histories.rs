//! Random histories: Services and pools come, change and go; operators with stale views, both believing they lead, write claims
//! and are killed between any two writes.

use proptest::{
    prelude::{ProptestConfig, Strategy, any, prop, prop_oneof},
    sample::select,
    test_runner::{TestCaseError, TestError, TestRng, TestRunner},
};

use super::{
    cluster::{Cluster, Sabotage, Spec},
    world::{ip, pool, ports, with},
};
use crate::ipam::Family;

const SERVICES: [&str; 5] = ["a/one", "a/two", "a/three", "b/four", "b/five"];
const POOLS: [&str; 3] = ["first", "second", "external"];

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    Wish(usize, Spec),
    Delete(usize),
    Pool(usize, Option<usize>),
    /// One write of an operator for a Service.
    Step(usize, usize),
    /// An operator's watch catches up: with claims, with Services, with pools.
    Sync(usize, u8),
    /// An operator is killed, and lists everything anew.
    Crash(usize),
    /// Claims of Services that are gone.
    Sweep(usize),
}

fn spec() -> impl Strategy<Value = Spec> {
    let families = select(vec![
        (vec![Family::V4], true),
        (vec![Family::V6], true),
        (vec![Family::V4, Family::V6], false),
        (vec![Family::V6, Family::V4], true),
        (vec![], false),
    ]);
    let named = prop::option::weighted(
        0.2,
        select(vec!["10.0.0.1", "10.0.0.3", "10.0.1.0", "fd00::2", "192.0.2.1"]),
    );
    let external = prop::collection::vec(select(vec!["192.0.2.0", "192.0.2.1", "10.0.0.1", "fd00::2"]), 0..3);
    let with_ports = select(vec!["tcp/80", "tcp/443", "tcp/80 tcp/443", "udp/53", "tcp/80 udp/53"]);
    let key = prop::option::weighted(0.4, select(vec!["k1", "k2"]));
    let pool = prop::option::weighted(0.2, select(vec!["first", "second", "absent"]));
    (families, named, external, with_ports, key, pool).prop_map(
        |((families, require_all), named, external, with_ports, key, pool)| Spec {
            families,
            require_all,
            addresses: named.into_iter().map(ip).collect(),
            external: external.into_iter().map(ip).collect(),
            ports: ports(with_ports),
            key: key.map(str::to_owned),
            pool: pool.map(str::to_owned),
        },
    )
}

fn event(operators: usize) -> impl Strategy<Value = Event> {
    let service = 0..SERVICES.len();
    let operator = 0..operators;
    prop_oneof![
        6 => (service.clone(), spec()).prop_map(|(service, spec)| Event::Wish(service, spec)),
        1 => service.clone().prop_map(Event::Delete),
        1 => (0..POOLS.len(), prop::option::weighted(0.9, 0..7_usize)).prop_map(|(pool, how)| Event::Pool(pool, how)),
        40 => (operator.clone(), service).prop_map(|(operator, service)| Event::Step(operator, service)),
        6 => (operator.clone(), any::<u8>()).prop_map(|(operator, what)| Event::Sync(operator, what)),
        1 => operator.clone().prop_map(Event::Crash),
        1 => operator.prop_map(Event::Sweep),
    ]
}

/// Small ones, so that everything is short; a few edits make them overlap, or malformed.
fn edit(cluster: &mut Cluster, index: usize, how: Option<usize>) {
    let name = POOLS[index];
    let Some(how) = how else {
        cluster.pools.delete(name);
        return;
    };
    let addresses: &[&str] = match (index, how) {
        (0, 1) => &["10.0.0.2/31", "fd00::/127"],
        (0, 2) => &["10.0.0.0/29", "fd00::/125"],
        (0, 3) => &["10.0.0.0/30", "rubbish"],
        (0, _) => &["10.0.0.0/30", "fd00::/126"],
        (1, 1) => &["10.0.0.3-10.0.1.1"],
        (1, 2) => &["10.0.1.0/31", "fd01::/127"],
        (1, _) => &["10.0.1.0/31"],
        (_, 1) => &["192.0.2.0/31", "10.0.0.1/32"],
        (_, _) => &["192.0.2.0/30"],
    };
    let age = i64::try_from(index).unwrap();
    cluster.pools.apply(&with(pool(name, age, addresses), |spec| {
        spec.external_ips = index == 2 && how != 6;
        spec.auto_assign = index != 2 && how != 4;
        spec.avoid_buggy_ips = how == 5;
        spec.share_across_namespaces = how == 6;
    }));
}

fn run(operators: usize, sabotage: Sabotage, events: &[Event]) -> Result<(), String> {
    let mut cluster = Cluster::new(operators, sabotage);
    for index in 0..POOLS.len() {
        edit(&mut cluster, index, Some(0));
    }
    cluster.sync_all();
    for event in events {
        match event {
            Event::Wish(service, spec) => cluster.wish(SERVICES[*service], spec),
            Event::Delete(service) => cluster.delete(SERVICES[*service]),
            Event::Pool(pool, how) => edit(&mut cluster, *pool, *how),
            Event::Step(operator, service) => cluster.step(*operator, SERVICES[*service]),
            Event::Sync(operator, what) => cluster.sync(*operator, *what),
            Event::Crash(operator) => cluster.sync(*operator, 7),
            Event::Sweep(operator) => cluster.sweep(*operator),
        }
        cluster.check().map_err(|broken| format!("after {event:?}: {broken}"))?;
    }
    cluster.converge(&SERVICES)?;
    cluster.check_rest()?;
    cluster.check_that_pools_move_nothing(edit)
}

/// Runs random histories, `PROPTEST_CASES` or 256 of them; the outcome is the smallest that breaks a rule.
fn histories(operators: usize, sabotage: Sabotage) -> Result<(), TestError<Vec<Event>>> {
    // Where one must be found, the smallest is not looked for.
    let max_shrink_iters = if sabotage == Sabotage::None { 10_000 } else { 0 };
    let config = ProptestConfig {
        max_shrink_iters,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let events = prop::collection::vec(event(operators), 1..120);
    runner.run(&events, |events| {
        run(operators, sabotage, &events).map_err(TestCaseError::fail)
    })
}

#[test]
fn one_operator_never_lets_two_services_use_one_port_of_an_address_and_converges() {
    if let Err(broken) = histories(1, Sabotage::None) {
        panic!("{broken}");
    }
}

#[test]
fn two_operators_that_both_believe_they_lead_never_give_one_address_twice_and_converge() {
    if let Err(broken) = histories(2, Sabotage::None) {
        panic!("{broken}");
    }
}

#[test]
fn without_versions_the_histories_find_an_address_given_twice() {
    assert!(histories(2, Sabotage::ForgivesVersions).is_err());
}

#[test]
fn with_a_refused_claim_taken_for_granted_the_histories_find_it() {
    assert!(histories(2, Sabotage::IgnoresConflicts).is_err());
}

#[test]
fn with_addresses_released_before_the_table_leaves_them_the_histories_find_it() {
    assert!(histories(1, Sabotage::ReleasesEarly).is_err());
}

#[test]
fn with_tables_written_before_claims_the_histories_find_it() {
    assert!(histories(1, Sabotage::SkipsClaims).is_err());
}
