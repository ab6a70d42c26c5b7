//! A small world: one VIP address for each thing that can become of a packet. Never changes; a scene is one moment of it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use lb_core::{
    config::{Capacity, Protection},
    desired::{
        Backend, BackendId, BackendSet, Desired, Limits, Member, NextHop, NextHops, Protocol, Rate, TooBig, Tunnel,
        Via, Vip, VipKey, VlanTags,
    },
    health::Overlay,
    plan::{Image, Planner},
    slow::Book,
};
use xdp_prog::abi::{Config, feature};

/// The interface that packets come in by.
pub(super) const IFINDEX: u32 = 3;
/// Its MAC address.
pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
/// Where backends are sent to.
pub(super) const NEXT_HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
/// Outer sources.
pub(super) const LB_V4: &str = "198.51.100.1";
/// Of IPv6 backends.
pub(super) const LB_V6: &str = "2001:db8:ffff::1";
/// What VIP addresses end in. By their number: plain; answers what does not fit, clamps, IPv6 backend; next hop unknown at first;
/// no backends; also the node's own; backend is this node; limits and source ranges; narrow way; explicit tags.
pub(super) const KINDS: u8 = 9;
/// Moments of the world: some next hops unknown, all known, no VIPs any more.
pub(super) const SCENES: usize = 3;

/// The tables at one moment.
pub(super) struct Scene {
    /// The maps.
    pub(super) image: Image,
    /// What is known beside them.
    pub(super) book: Book,
}

/// All moments.
pub(super) struct World {
    /// Constants of the program.
    pub(super) config: Config,
    /// See [`SCENES`].
    pub(super) scenes: Vec<Scene>,
}

/// Parses an address.
pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A VIP address.
pub(super) fn vip_address(v6: bool, kind: u8) -> IpAddr {
    if v6 {
        IpAddr::from([0x2001, 0xdb8, 0xf, 0, 0, 0, 0, u16::from(kind)])
    } else {
        IpAddr::from([203, 0, 113, kind])
    }
}

/// Made once.
pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

fn via(source: &str, mtu: u16, tags: Option<VlanTags>) -> NextHop {
    NextHop::Via(Via {
        ifindex: IFINDEX + u32::from(mtu == 9000),
        port: 0,
        destination_mac: NEXT_HOP_MAC,
        source_mac: MAC,
        source: address(source),
        mtu,
        tags,
    })
}

/// Address and next hop of each backend.
fn backends() -> [(&'static str, &'static str, NextHop); 7] {
    let tags = VlanTags::Two {
        outer: 7,
        inner: 8,
        ad: true,
    };
    [
        ("four", "192.0.2.1", via(LB_V4, 1500, None)),
        ("here", "198.51.100.1", NextHop::Local),
        ("jumbo", "192.0.2.2", via(LB_V4, 9000, None)),
        ("late", "192.0.2.3", via(LB_V4, 1500, None)),
        ("narrow", "192.0.2.4", via(LB_V4, 600, None)),
        ("six", "2001:db8:2::1", via(LB_V6, 1500, None)),
        ("tagged", "192.0.2.5", via(LB_V4, 1400, Some(tags))),
    ]
}

fn vip(kind: u8) -> Vip {
    let members: &[&str] = match kind {
        1 => &["four", "jumbo", "six"],
        2 => &["six"],
        3 => &["late"],
        4 => &[],
        6 => &["here"],
        8 => &["narrow"],
        9 => &["tagged"],
        _ => &["four"],
    };
    let members = members.iter().map(|name| Member {
        backend: BackendId(Arc::from(*name)),
        weight: 1,
    });
    let mut vip = Vip::new(Arc::new(BackendSet {
        members: members.collect(),
        table_slots: Some(256),
    }));
    if kind == 2 {
        (vip.too_big, vip.clamp_mss) = (TooBig::Answer, true);
    }
    vip.client_affinity = kind == 1;
    if kind == 7 {
        let rate = Some(Rate {
            per_second: 1000,
            burst: 2,
        });
        vip.limits = Limits {
            packets: rate,
            syns: rate,
        };
        let nets = ["192.0.0.0/16", "2001:db8::/32"].map(|network| network.parse().unwrap());
        vip.allowed_sources = Some(Arc::from(nets));
    }
    vip
}

impl World {
    fn new() -> Self {
        let config = Config {
            features: feature::ALL & !(feature::SLOW_PATH | feature::CAPTURE),
            seed: [1, 2, 3, 4],
            match_mask_v4: 31,
            match_mask_v6: 63,
            ..Config::EMPTY
        };
        let capacity = Capacity {
            vips: 64,
            backends: 8,
            table_segments: 1,
            ranges: 64,
        };
        let mut desired = Desired::default();
        for kind in 1..=KINDS {
            for v6 in [false, true] {
                for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
                    let key = VipKey {
                        address: vip_address(v6, kind),
                        protocol,
                        port,
                    };
                    let mut vip = vip(kind);
                    vip.clamp_mss &= protocol == Protocol::Tcp;
                    desired.vips.insert(key, vip);
                }
            }
        }
        desired
            .own_addresses
            .extend([vip_address(false, 5), vip_address(true, 5)]);
        desired.denied_sources = vec!["192.0.66.0/24".parse().unwrap()];
        desired.tunnel = Some(Tunnel {
            sources: vec![
                "198.51.100.0/24".parse().unwrap(),
                "2001:db8:ffff::/48".parse().unwrap(),
            ],
            vip_prefixes: vec!["203.0.113.0/24".parse().unwrap(), "2001:db8:f::/48".parse().unwrap()],
            locals: [address(LB_V4), address(LB_V6)].into(),
            denied_inner_sources: vec!["10.0.0.0/8".parse().unwrap()],
        });
        let mut hops = NextHops::new();
        for (name, address, hop) in backends() {
            let id = BackendId(Arc::from(name));
            let backend = Backend {
                address: self::address(address),
            };
            desired.backends.insert(id.clone(), backend);
            hops.insert(id, hop);
        }
        let known = hops.clone();
        hops.insert(BackendId(Arc::from("late")), NextHop::Unresolved);

        let mut planner = Planner::new(&capacity, &config, 250);
        let book = |desired: &Desired, hops: &NextHops| {
            let owned = ["203.0.113.0/24", "2001:db8:f::/48"].map(|network| network.parse().unwrap());
            Book::new(desired, hops, &Overlay::default(), Protection::default(), &owned)
        };
        let mut scenes = Vec::new();
        planner.plan(&desired, &hops).unwrap();
        scenes.push(Scene {
            image: planner.image().clone(),
            book: book(&desired, &hops),
        });
        planner.plan_hops(&known);
        scenes.push(Scene {
            image: planner.image().clone(),
            book: book(&desired, &known),
        });
        desired.vips = BTreeMap::new();
        planner.plan(&desired, &known).unwrap();
        scenes.push(Scene {
            image: planner.image().clone(),
            book: book(&desired, &known),
        });
        Self { config, scenes }
    }
}
