//! Neighbours: which MAC address counts, and which entries are kept.

use super::*;

#[test]
fn new_mac_address_of_a_gateway_counts_at_once() {
    let mut world = resolved();
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Stale,
        Some(NEW_MAC),
    )));
    assert_eq!(world.via("b0").destination_mac, NEW_MAC);
}

#[test]
fn state_changes_that_keep_the_mac_address_change_nothing() {
    let mut world = resolved();
    for state in [
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Reachable,
    ] {
        world.tell(Event::Neighbour(neighbour("10.0.0.2", state, Some(GW_MAC))));
    }
    assert_eq!(world.commands, []);
}

#[test]
fn failed_neighbour_is_asked_again_and_recovers() {
    let mut world = resolved();
    world.tell(Event::Neighbour(neighbour("10.0.0.2", NeighbourState::Failed, None)));
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.0.0.2 on eth0 does not answer".into())
    );
    assert_eq!(world.keeps(), [ip("10.0.0.2")], "at once");
    world.pass(SOLICIT_AGAIN * 3);
    assert_eq!(world.keeps().len(), 3, "then once a second");
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Incomplete,
        None,
    )));
    assert_eq!(world.changes(), 0, "being asked is no better than having failed");
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Reachable,
        Some(GW_MAC),
    )));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
}

#[test]
fn neighbour_that_packets_wait_for_is_asked_for_out_of_turn_and_not_all_the_time() {
    let mut world = resolved();
    world.tell(Event::Neighbour(neighbour("10.0.0.2", NeighbourState::Failed, None)));
    assert_eq!(world.keeps().len(), 1, "at once");
    world.pass(HURRY_GAP);
    let waiting = BackendId("b0".into());
    world.resolver.want(&waiting, world.now);
    world.resolver.want(&BackendId("nobody".into()), world.now);
    world.pass(Duration::ZERO);
    assert_eq!(world.keeps().len(), 1, "out of turn");
    world.resolver.want(&waiting, world.now);
    world.pass(Duration::ZERO);
    assert_eq!(world.keeps().len(), 0, "it was asked for just now");
}

#[test]
fn vanished_neighbour_counts_until_the_kernel_had_time_to_find_it_again() {
    let mut world = resolved();
    world.tell(Event::NeighbourGone(ETH0, ip("10.0.0.2")));
    assert_eq!(world.keeps(), [ip("10.0.0.2")]);
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Incomplete,
        None,
    )));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
    world.pass(LINGER);
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.0.0.2 on eth0 is being resolved".into())
    );
}

#[test]
fn deleted_neighbour_counts_although_the_kernel_tells_of_a_failure_first() {
    let mut world = resolved();
    world.resolver.apply(
        Event::Neighbour(neighbour("10.0.0.2", NeighbourState::Failed, None)),
        world.now,
    );
    world.tell(Event::NeighbourGone(ETH0, ip("10.0.0.2")));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
    assert_eq!(world.keeps(), [ip("10.0.0.2")]);
    let mut world = resolved();
    world.tell(Event::Neighbour(neighbour("10.0.0.2", NeighbourState::Failed, None)));
    world.pass(DELETION);
    world.tell(Event::NeighbourGone(ETH0, ip("10.0.0.2")));
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.0.0.2 on eth0 does not answer".into()),
        "a failure collected as garbage"
    );
}

#[test]
fn neighbour_that_was_asked_for_and_never_seen_is_let_go_too() {
    let mut world = World::new();
    world.backends(&[("10.0.0.77", via(None))]);
    let release = Command::Release {
        ifindex: ETH0,
        address: ip("10.0.0.77"),
    };
    world.backends(&[]);
    assert_eq!(world.commands.last(), Some(&release));
    world.pass(Duration::from_secs(60));
    assert_eq!(
        world.commands.iter().filter(|command| **command == release).count(),
        1,
        "once"
    );
}

#[test]
fn entries_of_others_and_permanent_ones_are_used_and_left_alone() {
    for (state, keeper) in [
        (NeighbourState::Permanent, Keeper::Nobody),
        (NeighbourState::Noarp, Keeper::Nobody),
        (NeighbourState::Reachable, Keeper::Other),
    ] {
        let mut world = World::new();
        world.tell(Event::Neighbour(Neighbour {
            keeper,
            ..neighbour("10.0.0.2", state, Some(GW_MAC))
        }));
        world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
        world.pass(Duration::from_secs(60));
        assert_eq!(world.via("b0").destination_mac, GW_MAC);
        assert!(world.keeps().is_empty(), "{state:?} {keeper:?}");
        world.backends(&[]);
        assert!(
            !world
                .commands
                .iter()
                .any(|command| matches!(command, Command::Release { .. }))
        );
    }
}

#[test]
fn neighbour_that_nobody_keeps_is_kept_and_again_where_the_kernel_cannot() {
    let mut world = World::new();
    let learned = neighbour("10.0.0.2", NeighbourState::Stale, Some(GW_MAC));
    world.tell(Event::Neighbour(Neighbour {
        keeper: Keeper::Nobody,
        ..learned
    }));
    world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
    assert_eq!(world.keeps(), [ip("10.0.0.2")]);
    world.pass(KEEP_AGAIN * 4);
    assert_eq!(world.keeps().len(), 4);
    world.tell(Event::Neighbour(learned));
    world.pass(KEEP_AGAIN * 4);
    assert!(world.keeps().is_empty());
}

#[test]
fn neighbour_that_is_not_needed_any_more_is_let_go() {
    let mut world = resolved();
    let release = Command::Release {
        ifindex: ETH0,
        address: ip("10.0.0.2"),
    };
    assert_eq!(world.resolver.stop(), std::slice::from_ref(&release));
    let mut world = resolved();
    world.backends(&[]);
    assert_eq!(world.commands.last(), Some(&release));
}

#[test]
fn entries_that_an_earlier_process_kept_are_taken_over_or_let_go() {
    let mut world = World::new();
    world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
    world.commands.clear();
    world.tell(Event::Snapshot(Snapshot {
        links: vec![link(ETH0, "eth0")],
        addresses: vec![on(ETH0, "10.0.0.1")],
        neighbours: ["10.0.0.2", "10.0.0.3"]
            .map(|address| neighbour(address, NeighbourState::Reachable, Some(GW_MAC)))
            .into(),
    }));
    world.pass(PASS_GAP);
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
    let let_go = Command::Release {
        ifindex: ETH0,
        address: ip("10.0.0.3"),
    };
    assert!(world.commands.contains(&let_go));
    assert!(world.keeps().is_empty(), "what is kept already is not asked for again");
}
