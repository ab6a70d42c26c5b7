use std::{
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use lb_core::{
    bfd::{Discard, Session, Timers},
    bgp::{Counters as BgpCounters, SessionError, SessionView, State as BgpState, TransportError},
    desired::{BackendId, Protocol, VipKey},
    health::{State, Sums},
    slow::{Counts, Kind as Work, Outcome},
};
use xdp_prog::{
    abi::{FlowCounts, Traffic},
    verdict::Verdict,
};

use super::text;
use crate::{
    metrics::{
        BgpFacts, ConfigFacts, Counted, Facts, FlowFacts, HealthFacts, METRICS, SlowFacts, TableFacts, WorkerFacts,
    },
    source::kube::agent::{Kind, Standing},
};

/// With everything in it.
fn facts() -> Facts {
    let mut counts = Counts::default();
    counts.add(Work::Echo, Outcome::EchoReply);
    counts.add_refused(Work::Fragment, Verdict::DropMartian);
    let mut kube = Standing::default();
    for ms in [2, 30, 200_000] {
        kube.delays.count(Duration::from_millis(ms));
    }
    kube.away.insert(Kind::NodeSets, (Instant::now(), "gone".to_owned()));
    kube.held = Some((4, 6, Instant::now()));
    kube.trouble = Some("too many".to_owned());
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    Facts {
        serving: true,
        draining: Some("withdrawn"),
        started: at(1_000),
        config: ConfigFacts {
            revision: 7,
            applied: at(1_001),
            refused: Some(at(1_002)),
            stale: true,
        },
        tables: Some(TableFacts {
            waiting: 1,
            flows: Some(FlowFacts {
                room: 1024,
                live: Some(77),
            }),
            owned: 2,
            in_use: 1,
            vips: 2,
            resolved: 3,
            unresolved: 1,
            lookup_tables: 1,
        }),
        interfaces: vec![("eth0".to_owned(), "native"), ("eth1".to_owned(), "gone")],
        health: Some(HealthFacts {
            backends: [("a", State::Healthy), ("b", State::Unknown), ("c", State::Dead)]
                .map(|(name, state)| (BackendId(name.into()), state))
                .into(),
            probes: [(("http", "status"), 4)].into(),
            sums: Sums {
                checks: 9,
                unprobed: 8,
                late: Duration::from_millis(70),
                changes: 6,
                ..Sums::default()
            },
            vips_in_panic: 5,
            vips_refused: 0,
        }),
        slow: Some(SlowFacts {
            counts: Box::new(counts),
            workers: vec![WorkerFacts {
                interface: "eth0".to_owned(),
                queue: 3,
                running: false,
                restarts: 5,
            }],
        }),
        bgp: Some(vec![bgp_facts()]),
        bfd_discarded: Some(vec![(Discard::Hops, 26)]),
        kube: Some(kube),
        meters: None,
    }
}

fn bgp_facts() -> BgpFacts {
    let error = SessionError::Transport(TransportError::Refused);
    let counters = BgpCounters {
        sent: 21,
        received: 22,
        routes_ignored: 23,
        malformed: 24,
        flaps: 25,
        ..BgpCounters::default()
    };
    BgpFacts {
        name: "tor1".to_owned(),
        session: SessionView {
            state: BgpState::Active,
            is_held: false,
            since: Duration::from_secs(3),
            connection: None,
            remote: None,
            announced: 0,
            withheld: 0,
            counters,
            last_error: Some((Duration::from_secs(2), error)),
        },
        bfd: Some(Session::new(Timers::default(), 1, 0, Duration::ZERO).view()),
    }
}

fn counted() -> Counted {
    let vip = |address: &str| VipKey {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 443,
    };
    let traffic = |packets| Traffic {
        packets,
        bytes: packets * 100,
    };
    Counted {
        verdicts: vec![(Verdict::ForwardTx, 11), (Verdict::DropMartian, 2)],
        shed: vec![(Verdict::SlowIcmp, 9)],
        unrecorded: FlowCounts {
            syns: 8,
            ..FlowCounts::default()
        },
        vips: vec![(vip("203.0.113.10"), traffic(5)), (vip("2001:db8::1"), traffic(6))],
        backends: vec![(BackendId("w\"1".into()), "10.0.0.1".parse().unwrap(), traffic(11))],
        left_out: (0, 3),
    }
}

#[test]
fn every_metric_is_shown_once_with_its_kind_and_no_other_is() {
    let text = text(facts(), Some(counted())).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let shown: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let meant = METRICS.iter().map(|metric| {
        let name = metric.name();
        let family = name.strip_suffix("_total").unwrap_or(&name);
        format!("{family} {}", metric.shape.kind().as_str())
    });
    assert_eq!(
        shown,
        meant.collect::<Vec<_>>(),
        "in the order in which they are documented"
    );
}

#[test]
fn values_stand_with_their_labels() {
    let text = text(facts(), Some(counted())).unwrap();
    for line in [
        "vipline_serving 1",
        "vipline_draining{phase=\"withdrawn\"} 1",
        "vipline_start_time_seconds 1000",
        "vipline_interface_attached{interface=\"eth0\",mode=\"native\"} 1",
        "vipline_interface_attached{interface=\"eth1\",mode=\"gone\"} 0",
        "vipline_config_revision 7",
        "vipline_config_stale 1",
        "vipline_config_applied_seconds 1001",
        "vipline_config_refused_seconds 1002",
        "vipline_vips 2",
        "vipline_backends{state=\"resolved\"} 3",
        "vipline_backends{state=\"unresolved\"} 1",
        "vipline_health_backends{state=\"healthy\"} 1",
        "vipline_health_backends{state=\"unhealthy\"} 0",
        "vipline_backend_eligible{backend=\"b\"} 1",
        "vipline_backend_eligible{backend=\"c\"} 0",
        "vipline_health_vips{state=\"panic\"} 5",
        "vipline_health_checks{state=\"unprobed\"} 8",
        "vipline_health_late_milliseconds 70",
        "vipline_health_probes_total{probe=\"http\",outcome=\"status\"} 4",
        "vipline_health_changes_total 6",
        "vipline_flow_table_capacity 1024",
        "vipline_flow_table_records 77",
        "vipline_flows_unrecorded_total{kind=\"syns\"} 8",
        "vipline_flows_unrecorded_total{kind=\"clients\"} 0",
        "vipline_packets_total{fate=\"forward\",reason=\"tx\"} 11",
        "vipline_vip_packets_total{address=\"2001:db8::1\",protocol=\"tcp\",port=\"443\"} 6",
        "vipline_vip_bytes_total{address=\"203.0.113.10\",protocol=\"tcp\",port=\"443\"} 500",
        "vipline_backend_packets_total{backend=\"w\\\"1\",address=\"10.0.0.1\"} 11",
        "vipline_backend_bytes_total{backend=\"w\\\"1\",address=\"10.0.0.1\"} 1100",
        "vipline_series_left_out{of=\"backend\"} 3",
        "vipline_slow_path_packets_total{kind=\"echo\",end=\"answered\",outcome=\"echo_reply\"} 1",
        "vipline_slow_path_worker_running{interface=\"eth0\",queue=\"3\"} 0",
        "vipline_slow_path_worker_restarts_total{interface=\"eth0\",queue=\"3\"} 5",
        "vipline_programming_delay_seconds_count 3",
        "vipline_programming_delay_seconds_sum 200.032",
        "vipline_programming_delay_seconds_bucket{le=\"0.0025\"} 1",
        "vipline_programming_delay_seconds_bucket{le=\"0.05\"} 2",
        "vipline_programming_delay_seconds_bucket{le=\"60.0\"} 2",
        "vipline_programming_delay_seconds_bucket{le=\"+Inf\"} 3",
        "vipline_kube_connected 0",
        "vipline_kube_watch_away{resource=\"nodesets\"} 1",
        "vipline_kube_watch_away{resource=\"viptables\"} 0",
        "vipline_kube_held_vips 4",
        "vipline_kube_alarm{alarm=\"seed\"} 0",
        "vipline_kube_alarm{alarm=\"maps\"} 1",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
}

#[test]
fn before_anything_is_served_there_is_nothing_of_tables_and_packets() {
    let waiting = Facts {
        serving: false,
        tables: None,
        interfaces: Vec::new(),
        health: None,
        slow: None,
        kube: Some(Standing {
            failing: Arc::default(),
            ..Standing::default()
        }),
        ..facts()
    };
    let text = text(waiting, None).unwrap();
    assert!(
        text.contains("\nvipline_serving 0\n") && text.contains("\nvipline_kube_connected 0\n"),
        "{text}"
    );
    for absent in [
        "vipline_vips",
        "vipline_packets",
        "vipline_backends",
        "vipline_slow_path",
    ] {
        assert!(!text.contains(absent), "{text}");
    }
}
