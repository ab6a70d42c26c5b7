//! Schedulers and affinity, from a table to its VIPs.

use lb_core::desired::Vip;
use operator_api::Affinity;

use super::*;

fn served(own: Own, scheduler: Scheduler, timeout: Option<u32>, port: VipPort) -> Vip {
    let mut index = Index::new(own);
    index.apply_node_set(workers());
    let table = VipTableSpec {
        scheduler,
        affinity: timeout.map(|client_ip_timeout_seconds| Affinity {
            client_ip_timeout_seconds,
        }),
        ports: vec![port],
        ..spec(&["203.0.113.1"], &[80])
    };
    index.apply_table(object("shop.web", 1, 20, table));
    let snapshot = index.snapshot();
    let vip = snapshot.vips.values().next();
    vip.unwrap_or_else(|| panic!("{:?}", why(&index, "shop.web"))).clone()
}

fn udp(port: u16) -> VipPort {
    VipPort {
        protocol: operator_api::Protocol::Udp,
        ..vip_port(port)
    }
}

#[test]
fn every_scheduler_of_a_table_is_served() {
    for (scheduler, _, short) in Scheduler::NAMED {
        let vip = served(own(), scheduler, None, vip_port(80));
        assert_eq!(vip.scheduler.name(), short);
        assert_eq!((vip.client_affinity, vip.affinity_timeout_s), (false, None));
    }
}

#[test]
fn an_affinity_is_remembered_for_its_timeout() {
    let vip = served(own(), Scheduler::Maglev, Some(600), vip_port(80));
    assert_eq!((vip.client_affinity, vip.affinity_timeout_s), (false, Some(600)));
    // What came past the API server's rules is cut to what there can be.
    let vip = served(own(), Scheduler::Maglev, Some(u32::MAX), vip_port(80));
    assert_eq!(vip.affinity_timeout_s, Some(86_400));
}

#[test]
fn questions_to_dns_take_turns_unless_they_are_counted_or_remembered() {
    let each = |scheduler, timeout, port| served(own(), scheduler, timeout, udp(port)).each_datagram;
    assert!(each(Scheduler::RoundRobin, None, 53));
    assert!(!each(Scheduler::RoundRobin, None, 443));
    assert!(!each(Scheduler::LeastConnections, None, 53));
    assert!(!each(Scheduler::RoundRobin, Some(60), 53));
}

#[test]
fn a_node_without_flow_records_serves_by_hash() {
    let without = || Own {
        keeps_records: false,
        ..own()
    };
    let vip = served(without(), Scheduler::LeastConnections, Some(600), vip_port(80));
    assert!(!vip.is_scheduled() && vip.client_affinity);
    let vip = served(without(), Scheduler::DestinationHash, None, vip_port(80));
    assert_eq!(vip.scheduler.name(), "dh");
}
