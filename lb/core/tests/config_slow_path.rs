//! The slow path's part of the configuration: what it becomes, what a reload makes of it, what it asks of the fast path.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use lb_core::{
    config::{
        L2Config, LbConfig, MAX_SLOW_RATE, SlowPathConfig, Warning, XskMode, parse_seed,
        reload::{self, Loaded, ProgramChange, Reload},
        xdp_budgets,
    },
    desired::{Rate, TooBig},
    slow::{Bounds, Budgets, FragmentBounds, HoldBounds, Kind},
};
use xdp_prog::{
    abi::feature,
    limit::TOKEN,
    verdict::{Fate, Verdict},
};

const SEED: &str = "3d1f6c20a45b9e87c0ffee1234567890abcdef00112233445566778899aabbcc";
const VIP: &str = "address: 203.0.113.1, protocol: tcp, port: 80, backends: [{name: a, address: 10.0.0.1}]";

/// A file with one VIP; `options` are the VIP's.
fn lb(rest: &str, options: &str) -> LbConfig {
    let yaml = format!("interfaces: [eth0]\nseed: \"{SEED}\"\nvips: [{{{VIP}{options}}}]\n{rest}");
    LbConfig::parse(&yaml).unwrap_or_else(|errors| panic!("{errors}\n---\n{yaml}"))
}

fn decide(old: &LbConfig, new: &LbConfig) -> Reload {
    let seed = &parse_seed(SEED).unwrap();
    reload::decide(Loaded { config: old, seed }, Loaded { config: new, seed })
}

#[test]
fn every_option_is_typed() {
    let config = lb(
        "
slow_path:
  mode: zero_copy
  busy_poll_us: 20
  cpus: [3, 2]
  frames_per_queue: 4096
  replies_per_source_per_second: 7
  limits: {neighbour: {per_second: 10, burst: 20}, reject: {per_second: 30}}
  fragments: {datagrams: 5, bytes: 65536, timeout_ms: 60000}
  hold: {frames: 6, per_backend: 2, timeout_ms: 10}
l2: {owned: [203.0.113.0/24, '2001:db8::1']}
",
        "",
    );
    let limits = Budgets::new(|kind| match kind {
        Kind::Neighbour => Rate {
            per_second: 10,
            burst: 20,
        },
        Kind::Reject => Rate {
            per_second: 30,
            burst: 30,
        },
        other => Budgets::default()[other],
    });
    let expected = SlowPathConfig {
        enabled: true,
        mode: XskMode::ZeroCopy,
        busy_poll_us: 20,
        cpus: vec![3, 2],
        frames_per_queue: 4096,
        replies_per_source: 7,
        limits,
        fragments: FragmentBounds {
            datagrams: 5,
            bytes: 65_536,
            timeout_ms: 60_000,
        },
        hold: HoldBounds {
            frames: 6,
            per_backend: 2,
            timeout_ms: 10,
        },
    };
    assert_eq!(config.slow_path, expected);
    let bounds = Bounds {
        budgets: limits,
        replies_per_source: 7,
        fragments: expected.fragments,
        hold: expected.hold,
    };
    assert_eq!(config.slow_path.bounds(), bounds);
    assert!(config.l2.owns([203, 0, 113, 9].into()) && !config.l2.owns([203, 0, 114, 9].into()));
    assert!(config.l2.owns("2001:db8::1".parse().unwrap()) && !config.l2.owns("2001:db8::2".parse().unwrap()));
}

#[test]
fn what_is_held_for_one_backend_never_exceeds_what_is_held() {
    let hold = |text: &str| lb(&format!("slow_path: {{hold: {text}}}"), "").slow_path.hold;
    assert_eq!(hold("{frames: 16}").per_backend, 16);
    assert_eq!(hold("{frames: 4096}").per_backend, 64);
}

#[test]
fn the_slow_path_can_be_off() {
    let off = lb("slow_path: {enabled: false}", "");
    assert_eq!(off.features() & feature::SLOW_PATH, 0);
    assert_eq!(xdp_budgets(&off.slow_path, 250), []);
}

#[test]
fn ownership_that_does_nothing_is_warned_of() {
    assert_eq!(lb("l2: {owned: [203.0.113.0/24]}", "").warnings(), []);
    let elsewhere = lb("l2: {owned: [198.51.100.0/24, '::/0']}", "");
    assert_eq!(elsewhere.warnings(), [Warning::OwnsNoVip]);
    let off = lb("l2: {owned: [0.0.0.0/0]}\nslow_path: {enabled: false}", "");
    assert_eq!(off.warnings(), [Warning::OwnedUnanswered]);
    assert_eq!(lb("l2: {}", "").l2, L2Config::default());
    assert!(lb("l2: {}", "").l2.probe && !lb("l2: {probe: false}", "").l2.probe);
}

/// What only the slow path's book says changes live, and no worker starts anew.
#[test]
fn limits_bounds_ownership_and_policy_change_live() {
    let old = lb("", "");
    assert_eq!(
        old.desired.vips.values().next().map(|vip| vip.too_big),
        Some(TooBig::Fragment)
    );
    for (rest, options) in [
        ("slow_path: {limits: {echo: {per_second: 1}}}", ""),
        ("slow_path: {replies_per_source_per_second: 1}", ""),
        ("slow_path: {fragments: {datagrams: 1}}", ""),
        ("slow_path: {hold: {frames: 1}}", ""),
        ("l2: {owned: [203.0.113.1]}", ""),
        ("", ", too_big: answer"),
    ] {
        let new = lb(rest, options);
        assert_ne!(old, new, "{rest}{options}");
        for (old, new) in [(&old, &new), (&new, &old)] {
            assert_eq!(decide(old, new), Reload::Apply, "{rest}{options}");
            assert_eq!(old.slow_path_restarts(new), [""; 0], "{rest}{options}");
        }
    }
}

#[test]
fn what_a_socket_is_made_with_starts_the_workers_anew() {
    let old = lb("", "");
    for (rest, key) in [
        ("mode: zero_copy", "slow_path.mode"),
        ("busy_poll_us: 1", "slow_path.busy_poll_us"),
        ("cpus: [0]", "slow_path.cpus"),
        ("frames_per_queue: 256", "slow_path.frames_per_queue"),
    ] {
        let new = lb(&format!("slow_path: {{{rest}}}"), "");
        assert_eq!(decide(&old, &new), Reload::Apply, "{rest}");
        assert_eq!(old.slow_path_restarts(&new), [key]);
        assert_eq!(new.slow_path_restarts(&old), [key]);
        let off = lb(&format!("slow_path: {{enabled: false, {rest}}}"), "");
        assert_eq!(old.slow_path_restarts(&off), [""; 0], "there is nothing to start");
    }
}

#[test]
fn the_first_and_the_last_use_replace_the_program() {
    let (plain, clamped) = (lb("", ""), lb("", ", clamp_mss: true"));
    let sticky = lb("", ", affinity: client_ip");
    let off = lb("slow_path: {enabled: false}", "");
    for (with, without, bit, name) in [
        (&plain, &off, feature::SLOW_PATH, "slow path"),
        (&clamped, &plain, feature::CLAMP_MSS, "MSS clamping"),
        (&sticky, &plain, feature::AFFINITY, "client affinity"),
    ] {
        let (comes, goes) = (
            ProgramChange::Features { on: bit, off: 0 },
            ProgramChange::Features { on: 0, off: bit },
        );
        assert_eq!(comes.to_string(), format!("features change: +{name}"));
        assert_eq!(decide(without, with), Reload::ReplaceProgram { why: vec![comes] });
        assert_eq!(decide(with, without), Reload::ReplaceProgram { why: vec![goes] });
    }
}

/// The fast path lets through what any kind behind a verdict may take, and nothing by default: a burst of 0 would be no limit.
#[test]
fn the_fast_path_hands_over_what_the_kinds_behind_a_verdict_take_together() {
    let config = lb("slow_path: {limits: {neighbour: {per_second: 1, burst: 3}}}", "").slow_path;
    let budgets = xdp_budgets(&config, 250);
    let verdicts: Vec<Verdict> = budgets.iter().map(|(verdict, ..)| *verdict).collect();
    let slow = Verdict::ALL
        .iter()
        .copied()
        .filter(|verdict| verdict.fate() == Fate::Slow);
    assert_eq!(verdicts, slow.collect::<Vec<_>>());
    for (verdict, rate, burst) in &budgets {
        assert!(*rate > 0 && *burst >= TOKEN, "{verdict:?}");
    }
    let of = |wanted| budgets.iter().find(|(verdict, ..)| *verdict == wanted).copied();
    // One a second is less than a token a jiffy, and not none.
    let neighbour = (Verdict::SlowNeighbour, TOKEN / 250, 3 * TOKEN);
    assert_eq!(of(Verdict::SlowNeighbour), Some(neighbour));
    // ICMP may be an echo (5,000) or an error (10,000).
    let icmp = (Verdict::SlowIcmp, 60 * TOKEN, 15_000 * TOKEN);
    assert_eq!(of(Verdict::SlowIcmp), Some(icmp));
}

/// `xdp_prog::limit::take` multiplies up to 2^20 jiffies by a rate and adds what was saved.
#[test]
fn the_largest_budgets_do_not_overflow_the_program() {
    let most = Rate {
        per_second: MAX_SLOW_RATE,
        burst: MAX_SLOW_RATE,
    };
    let config = SlowPathConfig {
        limits: Budgets::new(|_| most),
        ..SlowPathConfig::default()
    };
    for (verdict, rate, burst) in xdp_budgets(&config, 24) {
        let level = rate.checked_mul(1 << 20).and_then(|level| level.checked_add(burst));
        assert!(level.is_some(), "{verdict:?}");
    }
}
