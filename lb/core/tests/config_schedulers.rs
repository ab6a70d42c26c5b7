//! `scheduler` and `affinity` of a VIP, as files have them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use lb_core::{
    config::LbConfig,
    desired::{Protocol, Vip, VipKey},
    schedule::Scheduler,
};
use xdp_prog::abi::feature;

fn file(vip: &str, more: &str) -> String {
    format!(
        "interfaces: [eth0]\nseed: {}\nvips:\n  - {{ address: 203.0.113.1, {vip}, backends: [{{ name: a, address: 192.0.2.1 }}] }}\n{more}",
        "9f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7"
    )
}

fn vip(text: &str) -> (Vip, u64) {
    let config = LbConfig::parse(&file(text, "")).unwrap();
    let key = |(key, _): &(&VipKey, &Vip)| matches!(key.protocol, Protocol::Tcp | Protocol::Udp);
    let (_, vip) = config.desired.vips.iter().find(key).unwrap();
    (
        vip.clone(),
        config.features() & (feature::AFFINITY | feature::SCHEDULERS),
    )
}

fn error(text: &str, more: &str) -> String {
    LbConfig::parse(&file(text, more)).unwrap_err().to_string()
}

#[test]
fn every_scheduler_has_its_name() {
    for scheduler in Scheduler::ALL {
        let (vip, features) = vip(&format!("protocol: tcp, port: 80, scheduler: {scheduler}"));
        assert_eq!(vip.scheduler, scheduler);
        assert_eq!(
            features & feature::SCHEDULERS != 0,
            scheduler.keeps_state(),
            "{scheduler}"
        );
        assert_eq!(
            features & feature::AFFINITY != 0,
            scheduler == Scheduler::SourceHash,
            "{scheduler}"
        );
    }
    let said = error("protocol: tcp, port: 80, scheduler: lblc", "");
    assert!(
        said.contains("vips[0].scheduler") && said.contains("mh, sh, dh, rr, wrr, lc, wlc, sed, nq"),
        "{said}"
    );
}

#[test]
fn an_affinity_is_hashed_or_remembered() {
    let of = |text: &str| {
        let (vip, features) = vip(&format!("protocol: tcp, port: 80{text}"));
        (vip.client_affinity, vip.affinity_timeout_s, features)
    };
    let both = feature::AFFINITY | feature::SCHEDULERS;
    assert_eq!(of(""), (false, None, 0));
    assert_eq!(of(", affinity: none"), (false, None, 0));
    assert_eq!(of(", affinity: client_ip"), (true, None, feature::AFFINITY));
    assert_eq!(of(", affinity: { client_ip: {} }"), (false, Some(10_800), both));
    assert_eq!(
        of(", affinity: { client_ip: { timeout_s: 60 } }"),
        (false, Some(60), both)
    );
    assert_eq!(
        of(", scheduler: nq, affinity: { client_ip: { timeout_s: 60 } }").1,
        Some(60)
    );
    for (text, wrong) in [
        (", affinity: { client_ip: { timeout_s: 0 } }", "0 is not in 1..=86400"),
        (
            ", affinity: { client_ip: { timeout_s: 86401 } }",
            "86401 is not in 1..=86400",
        ),
        (", affinity: { client: {} }", "vips[0].affinity"),
        (", scheduler: rr, affinity: client_ip", "`scheduler: rr` does not"),
    ] {
        let said = error(&format!("protocol: tcp, port: 80{text}"), "");
        assert!(said.contains(wrong), "{text}: {said}");
    }
}

#[test]
fn who_counts_flows_keeps_those_of_datagrams() {
    let of = |text: &str| {
        let (vip, _) = vip(&format!("protocol: udp, {text}"));
        (vip.keeps_datagrams, vip.each_datagram)
    };
    assert_eq!(of("port: 443, scheduler: rr"), (true, false));
    assert_eq!(
        of("port: 53, scheduler: rr"),
        (false, true),
        "each question takes a turn"
    );
    assert_eq!(of("port: 53, scheduler: lc"), (true, false));
    assert_eq!(of("port: 53, affinity: { client_ip: {} }"), (true, false));
    assert_eq!(of("port: 53, scheduler: wrr, keep_datagrams: true"), (true, false));
    let said = error("protocol: udp, port: 53, scheduler: lc, keep_datagrams: false", "");
    assert!(said.contains("vips[0].keep_datagrams"), "{said}");
}

#[test]
fn without_flow_records_only_hashes_are_served() {
    let off = "transit: { enabled: false }\n";
    for served in ["mh", "sh", "dh"] {
        LbConfig::parse(&file(&format!("protocol: tcp, port: 80, scheduler: {served}"), off)).unwrap();
    }
    for refused in ["scheduler: rr", "scheduler: nq", "affinity: { client_ip: {} }"] {
        let said = error(&format!("protocol: tcp, port: 80, {refused}"), off);
        assert!(
            said.contains("`transit.enabled: false` switches those off"),
            "{refused}: {said}"
        );
    }
}
