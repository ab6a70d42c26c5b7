//! Configuration files that are right: what they become. What is wrong with the others is in `config_corpus.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{net::IpAddr, path::PathBuf};

use lb_core::{
    config::{
        AttachMode, Capacity, Encap, L2Config, LbConfig, NodeConfig, Problem, Protection, Seed, SlowPathConfig,
        Warning, parse_seed,
        reload::{self, Loaded, ProgramChange, Refusal, Reload},
    },
    desired::{BackendId, Limits, Protocol, Rate, TooBig, VipKey},
    slow::Kind,
};
use xdp_prog::abi::feature;

const SEED: &str = "3d1f6c20a45b9e87c0ffee1234567890abcdef00112233445566778899aabbcc";

/// The smallest file, and what a test adds to it.
fn lb(rest: &str) -> LbConfig {
    let vips = if rest.contains("vips:") { "" } else { "vips: []\n" };
    let yaml = format!("interfaces: [eth0]\nseed: \"{SEED}\"\n{vips}{rest}");
    LbConfig::parse(&yaml).unwrap_or_else(|errors| panic!("{errors}\n---\n{yaml}"))
}

/// What is on unless a file says otherwise.
const DEFAULT_FEATURES: u64 =
    feature::DROP_MARTIANS | feature::DROP_SOURCE_IS_VIP | feature::SLOW_PATH | feature::TRANSIT;

fn node(rest: &str) -> NodeConfig {
    NodeConfig::parse(rest).unwrap_or_else(|errors| panic!("{errors}"))
}

fn vip(address: &str, protocol: Protocol, port: u16) -> VipKey {
    VipKey {
        address: address.parse().unwrap(),
        protocol,
        port,
    }
}

#[test]
fn the_smallest_file_has_safe_defaults() {
    let config = lb("");
    assert_eq!(config.interfaces.len(), 1);
    assert_eq!(
        (&*config.interfaces[0].name, config.interfaces[0].mode),
        ("eth0", AttachMode::Auto)
    );
    assert_eq!(
        config.encap,
        Encap::Node {
            source_v4: None,
            source_v6: None
        }
    );
    assert_eq!(
        config.protection,
        Protection {
            drop_martians: true,
            drop_source_is_vip: true
        }
    );
    assert_eq!(
        config.capacity,
        Capacity {
            vips: 16_384,
            backends: 4096,
            table_segments: 64,
            ranges: 16_384
        }
    );
    assert_eq!(config.control_socket, PathBuf::from("/run/vipline/lb.sock"));
    assert_eq!(config.metrics_listen, None, "nothing listens unless it is asked to");
    assert_eq!(config.desired, Default::default());
    assert_eq!(config.slow_path, SlowPathConfig::default());
    assert_eq!(config.l2, L2Config::default());
    assert_eq!(config.features(), DEFAULT_FEATURES);
    assert_eq!(config.warnings(), []);
}

#[test]
fn a_vip_with_a_named_set_and_one_with_an_inline_list_share_what_is_equal() {
    let config = lb("
backend_sets:
  web: {members: [{name: b, address: 10.0.0.2}, {name: a, address: 10.0.0.1, weight: 7}]}
vips:
  - {address: 203.0.113.1, protocol: tcp, port: 80, backends: web}
  - {address: 203.0.113.1, protocol: udp, port: 80, backends: [{name: a, address: 10.0.0.1, weight: 7}, {name: b, address: 10.0.0.2}]}
");
    let desired = &config.desired;
    let tcp = &desired.vips[&vip("203.0.113.1", Protocol::Tcp, 80)];
    let udp = &desired.vips[&vip("203.0.113.1", Protocol::Udp, 80)];
    assert!(std::sync::Arc::ptr_eq(&tcp.set, &udp.set));
    let members: Vec<_> = tcp
        .set
        .members
        .iter()
        .map(|m| (m.backend.to_string(), m.weight))
        .collect();
    assert_eq!(members, [("a".to_owned(), 7), ("b".to_owned(), 1)]);
    assert_eq!(tcp.set.table_slots, None);
    assert_eq!(
        desired.backends[&BackendId("b".into())].address,
        IpAddr::from([10, 0, 0, 2])
    );
}

#[test]
fn options_of_a_vip_are_typed() {
    let config = lb("
vips:
  - address: 2001:db8::1
    protocol: tcp
    port: 443
    mode: DsrIpip
    table_slots: 512
    backends: [{name: a, address: '2001:db8:f::1'}]
    allowed_sources: [198.51.100.0/24, 192.0.2.1, '2001:db8:5::/48', 192.0.2.1/32]
    limits: {packets_per_second_per_cpu: 1000, syns_per_second_per_cpu: 50, syns_burst: 200}
    too_big: answer
    clamp_mss: true
    affinity: client_ip
  - {address: 2001:db8::1, protocol: tcp, port: 80, affinity: none, backends: []}
");
    let vip = &config.desired.vips[&vip("2001:db8::1", Protocol::Tcp, 443)];
    assert_eq!(vip.set.table_slots, Some(512));
    let packets = Some(Rate {
        per_second: 1000,
        burst: 1000,
    });
    assert_eq!(
        vip.limits,
        Limits {
            packets,
            syns: Some(Rate {
                per_second: 50,
                burst: 200
            })
        }
    );
    let allowed: Vec<String> = vip
        .allowed_sources
        .iter()
        .flat_map(|nets| nets.iter())
        .map(ToString::to_string)
        .collect();
    assert_eq!(allowed, ["192.0.2.1/32", "198.51.100.0/24", "2001:db8:5::/48"]);
    assert_eq!(
        (vip.too_big, vip.clamp_mss, vip.client_affinity),
        (TooBig::Answer, true, true)
    );
    let used = feature::LIMITS | feature::SOURCE_RANGES | feature::CLAMP_MSS | feature::AFFINITY;
    assert_eq!(config.features(), used | DEFAULT_FEATURES);
    assert!(!config.desired.vips[&self::vip("2001:db8::1", Protocol::Tcp, 80)].client_affinity);
}

#[test]
fn every_feature_comes_from_what_is_used() {
    let off = "protection: {drop_martians: false, drop_source_is_vip: false}\nslow_path: {enabled: false}\n\
               transit: {enabled: false}";
    let features = |rest: &str| lb(&format!("{off}\n{rest}")).features();
    assert_eq!(features(""), 0);
    assert_eq!(
        features("encap: {source: prefix, prefix_v4: 100.64.0.0/24}"),
        feature::SOURCE_PREFIX
    );
    assert_eq!(
        features("tunnel: {sources: [192.0.2.9], vip_prefixes: [203.0.113.0/24]}"),
        feature::DECAP
    );
    assert_eq!(
        lb("protection: {drop_martians: false, denied_sources: [192.0.2.0/24]}").features(),
        feature::DENIED_SOURCES | feature::DROP_SOURCE_IS_VIP | feature::SLOW_PATH | feature::TRANSIT
    );
    let two = format!("interfaces: [eth0, {{name: eth1, mode: generic}}]\nseed: {SEED}\nvips: []\n{off}");
    let two = LbConfig::parse(&two).unwrap();
    assert_eq!(two.features(), feature::REDIRECT);
    assert_eq!(
        two.warnings(),
        [Warning::GenericMode {
            interface: "eth1".into()
        }]
    );
}

#[test]
fn a_vip_without_backends_is_allowed_when_it_says_so_and_is_warned_of() {
    let config = lb("
vips:
  - {address: 203.0.113.1, protocol: tcp, port: 80, backends: []}
  - {address: 203.0.113.1, protocol: tcp, port: 81, backends: [{name: a, address: 10.0.0.1, weight: 0}]}
backend_sets: {idle: {members: []}}
");
    assert_eq!(
        config.warnings(),
        [
            Warning::UnusedSet {
                name: "idle".to_owned()
            },
            Warning::NoBackend {
                vip: vip("203.0.113.1", Protocol::Tcp, 80)
            },
            Warning::NoBackend {
                vip: vip("203.0.113.1", Protocol::Tcp, 81)
            },
        ]
    );
}

#[test]
fn the_seed_is_never_printed() {
    let config = lb("");
    let printed = format!("{config:?}");
    assert!(
        !printed.contains("3d1f6c20") && !printed.contains(&format!("{}", 0x3d1f_6c20_a45b_9e87_u64)),
        "{printed}"
    );
    assert_eq!(config.seed, Seed::Inline(parse_seed(SEED).unwrap()));
    let file = LbConfig::parse("interfaces: [eth0]\nseed_file: /etc/vipline/seed\nvips: []").unwrap();
    assert_eq!(file.seed, Seed::File("/etc/vipline/seed".into()));
}

#[test]
fn aliases_work_within_reason() {
    let config = lb("
vips:
  - {address: 203.0.113.1, protocol: tcp, port: 80, backends: &web [{name: a, address: 10.0.0.1}]}
  - {address: 203.0.113.1, protocol: tcp, port: 81, backends: *web}
");
    assert_eq!(config.desired.vips.len(), 2);
}

#[test]
fn bfd_of_a_peer_that_shall_keep_routes_is_warned_of() {
    let peers = "peers: [{address: 10.0.0.1, asn: 65001, name: tor1, bfd: {}}, {address: 10.0.0.2, asn: 65001}]";
    let with = |more: &str| {
        let text = format!(
            "interfaces: [eth0]\nseed_file: /etc/vipline/seed\nvips: []\nbgp: {{local_asn: 65000, {more}{peers}}}\n"
        );
        LbConfig::parse(&text)
            .unwrap_or_else(|errors| panic!("{errors}"))
            .warnings()
    };
    assert_eq!(with(""), []);
    let peer = "tor1".into();
    assert_eq!(
        with("graceful_restart: {}, "),
        [Warning::BfdEndsGracefulRestart { peer }]
    );
}

#[test]
fn a_node_checks_source_and_destination_unless_told_otherwise() {
    let config = node("{interfaces: [eth0], lb_sources: [192.0.2.10], vip_prefixes: [203.0.113.0/24]}");
    assert!(config.check_source && config.check_destination && config.blackhole_unclaimed);
    assert_eq!(config.warnings(), []);
    assert_eq!(config.control_socket, PathBuf::from("/run/vipline/node.sock"));
    let tunnel = config.tunnel();
    assert_eq!(tunnel.sources, ["192.0.2.10/32".parse().unwrap()]);
    assert_eq!(tunnel.vip_prefixes, ["203.0.113.0/24".parse().unwrap()]);
    assert!(tunnel.locals.is_empty() && tunnel.denied_inner_sources.is_empty());
}

#[test]
fn a_check_that_is_off_takes_everything_and_is_said_loudly() {
    let config =
        node("{interfaces: [eth0], check_source: false, check_destination: false, blackhole_unclaimed: false}");
    let everything = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    assert_eq!(config.tunnel().sources, everything);
    assert_eq!(config.tunnel().vip_prefixes, everything);
    let off = [
        Warning::SourceUnchecked,
        Warning::DestinationUnchecked,
        Warning::UnclaimedMayLoop,
    ];
    assert_eq!(config.warnings(), off);
}

const ONE_VIP: &str =
    "vips: [{address: 203.0.113.1, protocol: tcp, port: 80, backends: [{name: a, address: 10.0.0.1}]}]";

fn decide(old: (&LbConfig, &str), new: (&LbConfig, &str)) -> Reload {
    let (old_seed, new_seed) = (parse_seed(old.1).unwrap(), parse_seed(new.1).unwrap());
    reload::decide(
        Loaded {
            config: old.0,
            seed: &old_seed,
        },
        Loaded {
            config: new.0,
            seed: &new_seed,
        },
    )
}

#[test]
fn vips_and_backends_change_live() {
    let (old, new) = (
        lb(ONE_VIP),
        lb(&ONE_VIP.replace("10.0.0.1", "10.0.0.9").replace("80", "81")),
    );
    assert_eq!(decide((&old, SEED), (&new, SEED)), Reload::Apply);
    assert_eq!(decide((&old, SEED), (&old, SEED)), Reload::Apply);
}

#[test]
fn a_feature_that_comes_or_goes_replaces_the_program() {
    let limited = ONE_VIP.replace("port: 80", "port: 80, limits: {packets_per_second_per_cpu: 10}");
    let (plain, limited) = (lb(ONE_VIP), lb(&limited));
    let why = vec![ProgramChange::Features {
        on: feature::LIMITS,
        off: 0,
    }];
    assert_eq!(why[0].to_string(), "features change: +limits");
    assert_eq!(decide((&plain, SEED), (&limited, SEED)), Reload::ReplaceProgram { why });
    let why = vec![ProgramChange::Features {
        on: 0,
        off: feature::LIMITS,
    }];
    assert_eq!(decide((&limited, SEED), (&plain, SEED)), Reload::ReplaceProgram { why });
}

#[test]
fn a_longer_source_prefix_replaces_the_program_and_another_one_does_not() {
    let prefix = |network: &str| lb(&format!("encap: {{source: prefix, prefix_v4: {network}}}"));
    let (old, longer, other) = (
        prefix("100.64.0.0/24"),
        prefix("100.64.0.0/25"),
        prefix("100.64.1.0/24"),
    );
    let why = vec![ProgramChange::SourceMask];
    assert_eq!(decide((&old, SEED), (&longer, SEED)), Reload::ReplaceProgram { why });
    assert_eq!(decide((&old, SEED), (&other, SEED)), Reload::Apply);
}

#[test]
fn more_room_replaces_the_program() {
    let (old, new) = (lb(ONE_VIP), lb(&format!("{ONE_VIP}\ncapacity: {{vips: 1}}")));
    let why = vec![ProgramChange::Capacity];
    assert_eq!(decide((&old, SEED), (&new, SEED)), Reload::ReplaceProgram { why });
}

#[test]
fn a_new_seed_is_refused_while_there_are_vips() {
    let (empty, full) = (lb(""), lb(ONE_VIP));
    let other = SEED.replace('3', "4");
    let refused = Reload::Refuse {
        why: vec![Refusal::SeedWithVips],
    };
    assert_eq!(decide((&full, SEED), (&full, &other)), refused);
    assert_eq!(decide((&full, SEED), (&empty, &other)), refused);
    let why = vec![ProgramChange::Seed];
    assert_eq!(decide((&empty, SEED), (&full, &other)), Reload::ReplaceProgram { why });
}

#[test]
fn what_needs_a_restart_is_refused_all_at_once() {
    let old = lb(ONE_VIP);
    let mut new = lb(&format!("{ONE_VIP}\ncapacity: {{vips: 1}}\ncontrol_socket: /tmp/other"));
    new.interfaces[0].mode = AttachMode::Native;
    assert_eq!(old.differs_fixed(&new), ["interfaces", "control_socket"]);
    let why = old
        .differs_fixed(&new)
        .into_iter()
        .map(|key| Refusal::NeedsRestart { key })
        .collect();
    assert_eq!(decide((&old, SEED), (&new, SEED)), Reload::Refuse { why });
}

#[test]
fn the_examples_are_right_and_nothing_in_them_needs_a_warning() {
    let lb =
        LbConfig::parse(include_str!("../../../deploy/examples/lb.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(lb.desired.vips.len(), 3);
    assert_eq!(lb.warnings(), []);
    let node = NodeConfig::parse(include_str!("../../../deploy/examples/node.yaml"))
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(node.warnings(), []);
}

const REFERENCE: &str = include_str!("../../../docs/configuration.md");

/// The YAML blocks of the reference that begin with this line.
fn documented(first_line: &str) -> Vec<&'static str> {
    let blocks = REFERENCE
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.starts_with(first_line)).collect()
}

#[test]
fn the_annotated_files_of_the_reference_are_right() {
    let [lb] = documented("# An LB node.\n")[..] else {
        panic!("one annotated LB file")
    };
    let config = LbConfig::parse(lb).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.desired.vips.len(), 4);
    // What it calls a default is one.
    let bare = LbConfig::parse("interfaces: [eth0]\nseed_file: /etc/vipline/seed\nvips: []").unwrap();
    assert_eq!((config.capacity, config.protection), (bare.capacity, bare.protection));
    assert_eq!((config.control_socket, config.seed), (bare.control_socket, bare.seed));
    let unpinned = SlowPathConfig {
        cpus: Vec::new(),
        ..config.slow_path
    };
    assert_eq!(unpinned, bare.slow_path);
    assert!(config.l2.owns([203, 0, 113, 10].into()));
    let [node] = documented("# A worker node.\n")[..] else {
        panic!("one annotated node file")
    };
    let node = NodeConfig::parse(node).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(node.control_socket, PathBuf::from(lb_core::config::DEFAULT_NODE_SOCKET));
    assert_eq!(node.warnings(), []);
}

/// Every key is asked for by the reader, so an unknown key's error knows them all.
#[test]
fn metrics_listen_where_the_file_says_with_a_cluster_too() {
    for (text, address) in [
        ("127.0.0.1:9430", "127.0.0.1:9430"),
        ("'[::]:9430'", "[::]:9430"),
        ("'[2001:db8::1]:65535'", "[2001:db8::1]:65535"),
    ] {
        let key = format!("metrics: {{ listen: {text} }}\n");
        assert_eq!(lb(&key).metrics_listen, Some(address.parse().unwrap()));
        let own = LbConfig::parse_kube(&key).unwrap();
        assert_eq!(own.metrics_listen, Some(address.parse().unwrap()));
        assert_eq!(lb(&key).differs_fixed(&lb("")), [""; 0], "a reload takes it over");
    }
    for wrong in [
        "'9430'",
        "localhost:9430",
        "127.0.0.1:0",
        "127.0.0.1",
        "':9430'",
        "'::1:70000'",
    ] {
        let yaml = format!("metrics: {{ listen: {wrong} }}\n");
        let error = LbConfig::parse_kube(&yaml).unwrap_err().errors.remove(0);
        assert_eq!(error.path, "metrics.listen", "{wrong}");
        assert!(
            matches!(error.problem, Problem::NotASocketAddress { .. }),
            "{wrong}: {error}"
        );
    }
}

#[test]
fn every_key_is_in_the_reference() {
    let x = "{nobody: 1}";
    let kinds = Kind::ALL.map(|kind| format!("{}: {x}", kind.name())).join(", ");
    let slow_path = format!("{{nobody: 1, limits: {{nobody: 1, {kinds}}}, fragments: {x}, hold: {x}}}");
    let lb = format!(
        "{{nobody: 1, interfaces: [{x}], encap: {x}, protection: {x}, capacity: {x}, tunnel: {x}, l2: {x}, metrics: {x}, slow_path: {slow_path}, transit: {x}, \
         health: {x}, backend_sets: {{web: {{nobody: 1, health: {x}}}}}, \
         vips: [{{nobody: 1, limits: {x}, health: {x}, backends: [{x}]}}]}}"
    );
    let errors = [LbConfig::parse(&lb).unwrap_err(), NodeConfig::parse(x).unwrap_err()];
    let mut places = 0;
    for problem in errors
        .iter()
        .flat_map(|errors| &errors.errors)
        .map(|error| &error.problem)
    {
        if let Problem::UnknownKey { known, .. } = problem {
            places += 1;
            for key in known {
                assert!(
                    REFERENCE.contains(&format!("`{key}`")),
                    "{key} is not in docs/configuration.md"
                );
            }
        }
    }
    assert_eq!(
        places, 29,
        "places where keys stand: 28 in an LB node's file, one in a worker node's"
    );
}

#[test]
fn with_a_cluster_a_file_has_this_nodes_own_settings_and_nothing_else() {
    let config = LbConfig::parse_kube("{}").unwrap();
    assert_eq!(config, LbConfig::kube());
    assert_eq!((config.interfaces.len(), config.capacity), (0, Capacity::KUBE));
    let text = "
interfaces: [eth1]
l2: { owned: [203.0.113.0/24] }
capacity: { ranges: 128 }
tunnel: { denied_inner_sources: [10.0.0.0/8] }
protection: { denied_sources: [198.51.100.0/24] }
";
    let config = LbConfig::parse_kube(text).unwrap();
    assert_eq!(&*config.interfaces[0].name, "eth1");
    assert_eq!(
        (config.capacity.ranges, config.capacity.vips),
        (128, Capacity::KUBE.vips)
    );
    let tunnel = config.desired.tunnel.unwrap();
    assert_eq!((tunnel.sources.len(), tunnel.denied_inner_sources.len()), (0, 1));

    let refused = |text: &str| {
        let errors = LbConfig::parse_kube(text).unwrap_err();
        let errors = errors.errors.into_iter();
        errors
            .map(|error| (error.path, matches!(error.problem, Problem::FromCluster { .. })))
            .collect::<Vec<_>>()
    };
    let text = "
seed: abc
vips: []
tunnel: { sources: [10.0.0.1], vip_prefixes: [203.0.113.0/24] }
backend_sets: {}
seed_file: /x
";
    let paths = [
        "seed",
        "vips",
        "tunnel.sources",
        "tunnel.vip_prefixes",
        "backend_sets",
        "seed_file",
    ];
    assert_eq!(refused(text), paths.map(|path| (path.to_owned(), true)));
    assert_eq!(refused("interfaces: []"), [("interfaces".to_owned(), false)]);
    assert_eq!(refused("vipz: []"), [("vipz".to_owned(), false)]);
    // Without a cluster nothing of this is a file.
    assert!(LbConfig::parse("{}").is_err());
}

#[test]
fn with_a_cluster_a_workers_file_has_no_sources_and_no_prefixes() {
    assert_eq!(NodeConfig::parse_kube("{}").unwrap(), NodeConfig::kube());
    let config = NodeConfig::parse_kube("{check_source: false, denied_inner_sources: [10.0.0.0/8]}").unwrap();
    assert!(!config.check_source && config.check_destination && config.blackhole_unclaimed);
    let errors = NodeConfig::parse_kube("{lb_sources: [10.0.0.1], vip_prefixes: [203.0.113.0/24]}").unwrap_err();
    assert_eq!(errors.errors.len(), 2);
}

#[test]
fn features_that_were_in_use_stay_on_when_they_are_kept() {
    let config = LbConfig {
        kept_features: feature::SOURCE_RANGES,
        ..LbConfig::kube()
    };
    assert_eq!(config.features(), LbConfig::kube().features() | feature::SOURCE_RANGES);
}
