//! A client's new flows go where its last ones went, for as long as was said.

use lb_core::{
    desired::{Protocol, Vip, VipKey},
    schedule::Scheduler,
};

use crate::bed::{ACK, Bed, FIN, SYN, client, key, set, web};

const TIMEOUT_S: u32 = 300;

fn vip(scheduler: Scheduler, weights: &[u16]) -> Vip {
    Vip {
        scheduler,
        affinity_timeout_s: Some(TIMEOUT_S),
        ..Vip::new(set(weights))
    }
}

fn from(number: u32, port: u16) -> std::net::SocketAddr {
    let mut client = client(number);
    client.set_port(port);
    client
}

#[test]
fn clients_stay_beyond_a_change_of_members_and_until_their_time_is_over() {
    for scheduler in [Scheduler::Maglev, Scheduler::RoundRobin, Scheduler::LeastConnections] {
        let mut bed = Bed::new(1 << 14, [(web(), vip(scheduler, &[1; 4]))]);
        let first: Vec<usize> = (0..200).map(|number| bed.open(from(number, 1000), web())).collect();
        let stays = |bed: &mut Bed, port: u16| {
            let now: Vec<usize> = (0..200).map(|number| bed.open(from(number, port), web())).collect();
            (0..200).filter(|number| now[*number] == first[*number]).count()
        };
        assert_eq!(stays(&mut bed, 1001), 200, "{scheduler}");
        // Twice as many members: by hash, half of the clients would move.
        bed.desired.vips.get_mut(&web()).unwrap().set = set(&[1; 8]);
        bed.plan();
        assert_eq!(stays(&mut bed, 1002), 200, "{scheduler}");
        bed.pass(TIMEOUT_S - 1);
        assert_eq!(stays(&mut bed, 1003), 200, "{scheduler}: just in time");
        bed.pass(TIMEOUT_S - 1);
        assert_eq!(stays(&mut bed, 1004), 200, "{scheduler}: each new flow renews it");
        bed.pass(TIMEOUT_S + 1);
        assert!(stays(&mut bed, 1005) < 150, "{scheduler}: over");
        assert_eq!(bed.unrecorded, [0; 4]);
    }
}

#[test]
fn a_backend_that_takes_no_new_flows_keeps_its_old_ones_and_loses_its_clients() {
    let mut bed = Bed::new(1 << 13, [(web(), vip(Scheduler::Maglev, &[1; 4]))]);
    let first: Vec<usize> = (0..200).map(|number| bed.open(from(number, 1000), web())).collect();
    bed.desired.vips.get_mut(&web()).unwrap().set = set(&[1, 0, 1, 1]);
    bed.plan();
    let mut moved = 0;
    for (number, backend) in (0..).zip(&first) {
        assert_eq!(
            bed.send(from(number, 1000), web(), ACK, 200),
            Some(*backend),
            "the old flow"
        );
        let new = bed.open(from(number, 1001), web());
        assert_eq!(new == *backend, *backend != 1, "client {number}");
        assert_eq!(bed.open(from(number, 1002), web()), new, "and it stays there");
        moved += u32::from(*backend == 1);
    }
    assert!(moved > 20);
}

#[test]
fn a_syn_alone_is_remembered_for_no_longer_than_a_syn() {
    let mut bed = Bed::new(1 << 13, [(web(), vip(Scheduler::RoundRobin, &[1; 4]))]);
    let first = bed.send(from(1, 1000), web(), SYN, 100);
    assert_eq!(
        bed.send(from(1, 1001), web(), SYN, 100),
        first,
        "who dials twice at once has one backend"
    );
    assert_eq!(bed.clients_remembered(), 0);
    bed.pass(70);
    let second = bed.send(from(1, 1002), web(), SYN, 100);
    assert_ne!(second, first, "nobody has answered: it was nobody");
    bed.send(from(1, 1002), web(), ACK, 101);
    assert_eq!(bed.clients_remembered(), 1);
    bed.pass(200);
    assert_eq!(bed.send(from(1, 1003), web(), SYN, 100), second);
}

#[test]
fn an_affinity_is_of_one_vip_and_may_outlive_its_connections() {
    let other = key("203.0.113.1", Protocol::Tcp, 443);
    let vips: [(VipKey, Vip); 2] = [web(), other].map(|key| (key, vip(Scheduler::RoundRobin, &[1; 4])));
    let mut bed = Bed::new(1 << 13, vips);
    let mut apart = 0;
    for number in 0..50 {
        let (here, there) = (bed.open(from(number, 1000), web()), bed.open(from(number, 1000), other));
        apart += u32::from(here != there);
        assert_eq!(bed.send(from(number, 1000), web(), FIN, 102), Some(here));
        assert_eq!(bed.send(from(number, 1000), other, FIN, 102), Some(there));
    }
    assert!(apart > 20, "each port has turns of its own: {apart}");
    bed.pass(200);
    bed.sweep();
    assert_eq!(bed.open_flows().0.iter().sum::<u64>(), 0);
    assert_eq!(bed.clients_remembered(), 100);
    bed.pass(101);
    bed.sweep();
    assert_eq!(bed.clients_remembered(), 0);
}

/// Where nothing more can be remembered, a client goes by its hash, as if its affinity had no timeout.
#[test]
fn without_room_a_client_goes_by_its_hash() {
    let mut bed = Bed::new(1024, [(web(), vip(Scheduler::RoundRobin, &[1; 4]))]);
    for number in 0..2000 {
        bed.open(from(number, 1000), web());
    }
    let [_, _, flows, clients] = bed.unrecorded;
    assert!(flows > 100 && clients > 100, "{flows} {clients}");
    let mut forgotten = 0;
    for number in 3000..3100 {
        let before = bed.unrecorded[3];
        let first = bed.open(from(number, 1), web());
        if bed.unrecorded[3] > before {
            forgotten += 1;
            assert_eq!(bed.open(from(number, 2), web()), first, "client {number}");
        }
    }
    assert!(forgotten > 50, "{forgotten}");
}
