//! The balancer with tables of a given size, filled by the daemon's own planner.
//!
//! Never measures. Next hops are resolved and lie on the interface that test runs pretend to come from, so that every packet to
//! a VIP is sent.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use ipnet::{IpNet, Ipv4Net};
use lb::datapath::{Balancer, Capacity, Jiffies};
use lb_core::{
    config::TransitConfig,
    desired::{
        Backend, BackendId, BackendSet, Desired, Limits, Member, NextHop, NextHops, Protocol, Rate, Tunnel, Via, Vip,
        VipKey,
    },
    match_table,
    plan::{Moment, Planner},
    schedule::{AFFINITY_S, Scheduler},
};
use xdp_prog::abi::{Config, MAX_SEGMENTS, feature, tick_shift};

use super::wrapper::kind;

/// VIP 0 of IPv4: RFC 2544's benchmarking network.
pub(crate) const VIP_V4: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// Upper half of the VIPs of IPv6: RFC 5180's benchmarking network.
pub(crate) const VIP_V6: u64 = 0x2001_0002_0000_0000;
/// What `vipline run` turns on without being asked.
pub(crate) const DEFAULT_FEATURES: u64 =
    feature::DROP_MARTIANS | feature::DROP_SOURCE_IS_VIP | feature::SLOW_PATH | feature::TRANSIT;
/// All four kinds of packets.
pub(crate) const ALL_KINDS: &[u64] = &[0, kind::UDP, kind::V6, kind::V6 | kind::UDP];

/// Interface of a test run without context: loopback.
const LOOPBACK: u32 = 1;
/// Port of every VIP; the wrapper knows it too.
const PORT: u16 = 80;
/// Address ranges of each list that a feature searches.
const LISTED: u32 = 256;

/// What the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// VIP addresses of each family.
    pub(crate) vips: u32,
    /// A VIP of each of these kinds on every address (bits of [`kind`]).
    pub(crate) kinds: &'static [u64],
    /// Backends of each VIP.
    pub(crate) backends: u32,
    /// Slots of each lookup table.
    pub(crate) slots: usize,
    /// Every VIP has a backend set, so a table, of its own.
    pub(crate) own: bool,
    /// Backends of the VIPs of a family have addresses of the other one: 4in6 and 6in4.
    pub(crate) crossed: bool,
    /// Backends of each VIP that have just been replaced, in percent: so many of the slots are in transit.
    pub(crate) replaced: u32,
    /// How the backends of new flows are chosen.
    pub(crate) scheduler: Scheduler,
    /// Clients are remembered.
    pub(crate) remembers: bool,
    /// Bits of [`feature`].
    pub(crate) features: u64,
}

impl Shape {
    /// VIPs: address, protocol, port.
    pub(crate) fn all_vips(&self) -> u32 {
        self.vips * self.kinds.len() as u32
    }

    /// Lookup tables of each family.
    pub(crate) fn tables(&self) -> u32 {
        if self.own { self.vips } else { 1 }
    }

    /// Loads the balancer and fills its tables.
    pub(crate) fn load(&self) -> Result<Balancer> {
        let desired = self.desired(0);
        let replaced = self.backends * self.replaced / 100;
        let backends = desired.backends.len() as u32;
        let capacity = self.capacity(if replaced == 0 { backends } else { 2 * backends });
        let jiffies = Jiffies::calibrate()?;
        let transit = TransitConfig {
            enabled: self.features & feature::TRANSIT != 0,
            ..TransitConfig::default()
        };
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(capacity.vips);
        let config = Config {
            features: self.features,
            seed: [
                0x8d5a_4c3b_2e1f_9071,
                0x1f83_d9ab_fb41_bd6b,
                0x5be0_cd19_137e_2179,
                0x9b05_688c_2b3e_6c1f,
            ],
            match_mask_v4,
            match_mask_v6,
            source_mask_v4: u64::from(0xfff_u32.to_be()),
            source_mask_v6: 0xffff_ffff_u64.to_be(),
            flow_mask: transit.flow_mask(),
            tick_shift: tick_shift(jiffies.hz()).into(),
            ..Config::EMPTY
        };
        let mut balancer = Balancer::load(&config, &capacity)?;
        let mut planner = Planner::new(&capacity, &config, jiffies.hz());
        let moment = Moment {
            now: jiffies.ticks(),
            timeouts: transit.timeouts(jiffies.hz()),
            lives: transit.lives(jiffies.hz()),
            ..Moment::STILL
        };
        let mut known = hops(&desired)?;
        let plan = planner
            .plan_at(&desired, &known, &moment)
            .context("the tables do not fit")?;
        balancer.apply(&plan.writes)?;
        if replaced > 0 {
            let desired = self.desired(replaced);
            known.extend(hops(&desired)?);
            let plan = planner
                .plan_at(&desired, &known, &moment)
                .context("the tables do not fit")?;
            balancer.apply(&plan.writes)?;
        }
        Ok(balancer)
    }

    /// The daemon's own capacity unless that is too small.
    fn capacity(&self, backends: u32) -> Capacity {
        let default = Capacity::default();
        let wanted = self.tables() as usize * self.slots * 2 / (1 << 20) + 2;
        Capacity {
            vips: default.vips.max(self.all_vips()),
            backends: default.backends.max(backends),
            table_segments: default.table_segments.max(wanted.min(MAX_SEGMENTS) as u32),
            ..default
        }
    }

    /// `replaced` of each set's backends have made room for others.
    fn desired(&self, replaced: u32) -> Desired {
        let on = |feature: u64| self.features & feature != 0;
        let mut desired = Desired::default();
        let plenty = Some(Rate {
            per_second: u32::MAX,
            burst: u32::MAX,
        });
        let limits = Limits {
            packets: plenty,
            syns: plenty,
        };
        let limits = if on(feature::LIMITS) { limits } else { Limits::default() };
        // All clients of the wrapper are in 32.0.0.0/8 and 2001:db8:1::/64.
        let clients: Arc<[IpNet]> = networks(100)
            .chain(
                ["32.0.0.0/8", "2001:db8:1::/64"]
                    .into_iter()
                    .filter_map(|net| net.parse().ok()),
            )
            .collect();
        let allowed_sources = on(feature::SOURCE_RANGES).then_some(clients);
        let mut sets: [Option<Arc<BackendSet>>; 2] = [None, None];
        for vip in 0..self.vips {
            for &kind in self.kinds {
                let v6 = kind & kind::V6 != 0;
                if self.own || sets[usize::from(v6)].is_none() {
                    sets[usize::from(v6)] = Some(self.set(&mut desired, if self.own { vip } else { 0 }, v6, replaced));
                }
                let Some(set) = sets[usize::from(v6)].clone() else {
                    continue;
                };
                let key = VipKey {
                    address: address(vip, v6),
                    protocol: if kind & kind::UDP == 0 {
                        Protocol::Tcp
                    } else {
                        Protocol::Udp
                    },
                    port: PORT,
                };
                let allowed_sources = allowed_sources.clone();
                desired.vips.insert(
                    key,
                    Vip {
                        limits,
                        allowed_sources,
                        clamp_mss: on(feature::CLAMP_MSS) && kind & kind::UDP == 0,
                        client_affinity: on(feature::AFFINITY),
                        scheduler: self.scheduler,
                        affinity_timeout_s: self.remembers.then_some(AFFINITY_S),
                        ..Vip::new(set)
                    },
                );
            }
        }
        if on(feature::DENIED_SOURCES) {
            desired.denied_sources = networks(101).collect();
        }
        if on(feature::DECAP) {
            desired.tunnel = Some(Tunnel {
                sources: networks(102).collect(),
                vip_prefixes: networks(103).collect(),
                locals: BTreeSet::from([Ipv4Addr::new(10, 0, 0, 1).into()]),
                denied_inner_sources: networks(104).collect(),
            });
        }
        desired
    }

    /// The set that begins at backend `first`; its backends are there afterwards.
    fn set(&self, desired: &mut Desired, first: u32, v6: bool, replaced: u32) -> Arc<BackendSet> {
        let outer_v6 = v6 != self.crossed;
        let first = first + replaced;
        let members = (first..first + self.backends).map(|number| {
            let id = BackendId(format!("node-{number:06}-{}", if outer_v6 { "v6" } else { "v4" }).into());
            let address: IpAddr = if outer_v6 {
                Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(number) + 2).into()
            } else {
                Ipv4Addr::from_bits(0x0a01_0000 + number).into()
            };
            desired.backends.insert(id.clone(), Backend { address });
            Member { backend: id, weight: 1 }
        });
        Arc::new(BackendSet {
            members: members.collect(),
            table_slots: Some(self.slots),
        })
    }
}

fn address(vip: u32, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits(u128::from(VIP_V6) << 64 | u128::from(vip)).into()
    } else {
        Ipv4Addr::from_bits(VIP_V4 + vip).into()
    }
}

/// Every second /24 of a /8: ranges that do not merge.
fn networks(first: u8) -> impl Iterator<Item = IpNet> {
    (0..LISTED).filter_map(move |number| {
        let network = Ipv4Addr::from_bits(u32::from(first) << 24 | number << 9);
        Some(Ipv4Net::new(network, 24).ok()?.into())
    })
}

fn hops(desired: &Desired) -> Result<NextHops> {
    let mut hops = NextHops::new();
    for (number, (id, backend)) in (0_u32..).zip(&desired.backends) {
        let [.., high, low] = number.to_be_bytes();
        let source = match backend.address {
            IpAddr::V4(_) => Ipv4Addr::new(10, 0, 0, 1).into(),
            IpAddr::V6(_) => "fd00::1".parse()?,
        };
        let via = Via {
            ifindex: LOOPBACK,
            port: 0,
            destination_mac: [2, 0, 0, 1, high, low],
            source_mac: [2, 0, 0, 0, 0, 1],
            source,
            mtu: 1_500,
            tags: None,
        };
        hops.insert(id.clone(), NextHop::Via(via));
    }
    Ok(hops)
}
