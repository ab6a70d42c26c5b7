//! `health` in configuration files: what is probed, and what a set's own word is worth beside that at the top.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use lb_core::{
    config::LbConfig,
    desired::{Protocol, VipKey},
    health::{Check, Checks, HttpProbe, Probe, Statuses, Timing, WhenNone},
};

/// The smallest file, and what a test adds to it.
fn lb(rest: &str) -> LbConfig {
    let seed = "3d1f6c20a45b9e87c0ffee1234567890abcdef00112233445566778899aabbcc";
    let yaml = format!("interfaces: [eth0]\nseed: \"{seed}\"\n{rest}");
    LbConfig::parse(&yaml).unwrap_or_else(|errors| panic!("{errors}\n---\n{yaml}"))
}

fn vip(address: &str, protocol: Protocol, port: u16) -> VipKey {
    VipKey {
        address: address.parse().unwrap(),
        protocol,
        port,
    }
}

#[test]
fn health_of_a_set_is_what_it_says_over_what_the_top_says() {
    let config = lb("
health: { type: http, port: 8080, path: /healthz, interval_ms: 5000, fall: 2, panic_percent: 40 }
backend_sets:
  plain: { members: [{name: a, address: 10.0.0.1}] }
  also_plain: { health: {}, members: [{name: b, address: 10.0.0.2}] }
  own: { health: { type: https, port: 8443, host: 'web.example:8443', status: 200-299, body: ok, timeout_ms: 300 }, members: [] }
  tcp: { health: { type: tcp, when_none: use_all }, members: [] }
  none: { health: { type: none }, members: [] }
vips:
  - {address: 203.0.113.1, protocol: tcp, port: 1, backends: plain}
  - {address: 203.0.113.1, protocol: tcp, port: 2, backends: also_plain}
  - {address: 203.0.113.1, protocol: tcp, port: 3, backends: own}
  - {address: 203.0.113.1, protocol: tcp, port: 4, backends: tcp}
  - {address: 203.0.113.1, protocol: tcp, port: 5, backends: none}
  - {address: 203.0.113.1, protocol: tcp, port: 6, backends: [], health: {status: 204}}
");
    let checks = |port| {
        config.desired.vips[&vip("203.0.113.1", Protocol::Tcp, port)]
            .checks
            .clone()
    };
    let timing = Timing {
        interval_ms: 5000,
        fall: 2,
        ..Timing::default()
    };
    let http = HttpProbe {
        port: 8080,
        tls: false,
        host: None,
        path: "/healthz".into(),
        statuses: Statuses::SUCCESS,
        body: None,
    };
    let expect = |probe, timing| Checks {
        panic_percent: 40,
        ..Checks::new([Check {
            probe,
            timing,
            needs_proof: false,
        }])
    };
    assert_eq!(*checks(1).unwrap(), expect(Probe::Http(http.clone()), timing));
    assert!(
        std::sync::Arc::ptr_eq(&checks(1).unwrap(), &checks(2).unwrap()),
        "equal checks are one"
    );
    let own = HttpProbe {
        port: 8443,
        tls: true,
        host: Some("web.example:8443".into()),
        statuses: Statuses { first: 200, last: 299 },
        body: Some("ok".into()),
        ..http.clone()
    };
    let quick = Timing {
        timeout_ms: 300,
        ..timing
    };
    assert_eq!(*checks(3).unwrap(), expect(Probe::Http(own), quick));
    let all = Checks {
        when_none: WhenNone::UseAll,
        ..expect(Probe::Tcp { port: 8080 }, timing)
    };
    assert_eq!(*checks(4).unwrap(), all);
    assert_eq!(checks(5), None);
    let no_content = HttpProbe {
        statuses: Statuses { first: 204, last: 204 },
        ..http
    };
    assert_eq!(*checks(6).unwrap(), expect(Probe::Http(no_content), timing));
    // Without a word nothing is probed; health alone changes no table.
    assert!(
        lb("vips: [{address: 203.0.113.1, protocol: tcp, port: 1, backends: []}]")
            .desired
            .vips
            .values()
            .all(|vip| vip.checks.is_none())
    );
}
