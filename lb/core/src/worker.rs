//! The worker node's tables: four range sets. Never keeps two versions of a set where a packet could see half of each.
//!
//! `RANGES` is used in two halves. A change is written whole into the half that nothing names, then each set's word is turned by
//! one store, and after a grace period the other half is free. In between a packet may meet an old set beside a new one; each
//! is a condition of its own, so what is decapsulated is what one of the two configurations allows in every respect.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use thiserror::Error;
use xdp_prog::abi::{Range, SetRef, setting};

use crate::{
    desired::{BackendSet, Desired, NextHop, NextHops, Tunnel},
    ranges::RangeSet,
};

/// Sets of a worker node.
const SETS: usize = 4;

/// What to write for a [`Tunnel`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerTables {
    /// Ranges, from [`Self::offset`] on; to be written first.
    pub ranges: Vec<Range>,
    /// First entry of the half.
    pub offset: u32,
    /// Words of `SETTINGS`: position and value.
    pub settings: [(u32, u64); SETS],
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the tunnel's lists need {needed} ranges, a half of RANGES has {room}: give larger prefixes")]
pub struct NoRoom {
    /// Ranges needed, padding included.
    pub needed: usize,
    /// Ranges in a half.
    pub room: usize,
}

impl WorkerTables {
    /// Builds the tables for half 0 or 1 of `RANGES`, which has `entries` entries.
    ///
    /// # Errors
    ///
    /// When they do not fit.
    pub fn build(tunnel: &Tunnel, entries: u32, half: u32) -> Result<Self, NoRoom> {
        let room = entries / 2;
        let offset = room * (half & 1);
        let of = |networks: &[IpNet]| RangeSet::from_cidrs(networks);
        let sets = [
            (setting::TUNNEL_SOURCES, of(&tunnel.sources)),
            (setting::TUNNEL_VIPS, of(&tunnel.vip_prefixes)),
            (
                setting::TUNNEL_LOCALS,
                RangeSet::from_addresses(tunnel.locals.iter().copied().collect::<Vec<IpAddr>>()),
            ),
            (setting::TUNNEL_DENIED, of(&tunnel.denied_inner_sources)),
        ];
        let needed: usize = sets.iter().map(|(_, set)| set.padded_len()).sum();
        if needed > room as usize || sets.iter().any(|(_, set)| !set.fits()) {
            return Err(NoRoom {
                needed,
                room: room as usize,
            });
        }
        let mut ranges = Vec::with_capacity(needed);
        let settings = sets.map(|(position, set)| {
            let place = offset + ranges.len() as u32;
            ranges.extend(set.padded());
            (position, SetRef::new(place, set.padded_log2()).0)
        });
        Ok(Self {
            ranges,
            offset,
            settings,
        })
    }
}

/// Destinations that must die on an LB node that is a worker node too when nothing there claims them: whatever it decapsulates,
/// and the VIP addresses of sets in which it is a backend itself. Anything else the program never hands up for a VIP.
pub fn unclaimed_prefixes(desired: &Desired, hops: &NextHops) -> Vec<IpNet> {
    let mut prefixes = desired
        .tunnel
        .as_ref()
        .map(|tunnel| tunnel.vip_prefixes.clone())
        .unwrap_or_default();
    // VIPs that share a set share the answer: a set may have thousands of members.
    let mut known: BTreeMap<*const BackendSet, bool> = BTreeMap::new();
    let mut is_local = |set: &Arc<BackendSet>| {
        let has_local = || {
            let is_local = |id| hops.get(id) == Some(&NextHop::Local);
            set.members.iter().any(|member| is_local(&member.backend))
        };
        *known.entry(Arc::as_ptr(set)).or_insert_with(has_local)
    };
    prefixes.extend(
        desired
            .vips
            .iter()
            .filter(|(_, vip)| is_local(&vip.set))
            .map(|(key, _)| IpNet::from(key.address)),
    );
    IpNet::aggregate(&prefixes)
}

#[cfg(test)]
mod tests {
    use super::{WorkerTables, unclaimed_prefixes};
    use crate::desired::{BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, Tunnel, Vip, VipKey};

    #[test]
    fn only_vips_with_this_node_as_a_backend_die_here_and_neighbours_are_merged() {
        let vip = |host: u8, backend: &str| {
            let key = VipKey {
                address: [203, 0, 113, host].into(),
                protocol: Protocol::Tcp,
                port: 80,
            };
            let members = vec![Member {
                backend: BackendId(backend.into()),
                weight: 1,
            }];
            let set = BackendSet {
                members,
                table_slots: None,
            };
            (key, Vip::new(set.into()))
        };
        let desired = Desired {
            vips: [vip(2, "here"), vip(3, "here"), vip(4, "there")].into(),
            ..Desired::default()
        };
        let hops = NextHops::from([(BackendId("here".into()), NextHop::Local)]);
        assert_eq!(unclaimed_prefixes(&desired, &hops), ["203.0.113.2/31".parse().unwrap()]);
        assert_eq!(unclaimed_prefixes(&desired, &NextHops::new()), []);
        let desired = Desired {
            tunnel: Some(tunnel()),
            ..desired
        };
        assert_eq!(unclaimed_prefixes(&desired, &hops), ["203.0.113.0/24".parse().unwrap()]);
    }

    fn tunnel() -> Tunnel {
        Tunnel {
            sources: vec!["10.0.0.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            vip_prefixes: vec!["203.0.113.0/24".parse().unwrap()],
            locals: ["10.1.0.1".parse().unwrap()].into(),
            denied_inner_sources: vec![],
        }
    }

    #[test]
    fn the_halves_do_not_overlap_and_every_set_lies_inside_its_half() {
        for half in 0..2 {
            let tables = WorkerTables::build(&tunnel(), 64, half).unwrap();
            assert_eq!(tables.offset, 32 * half);
            assert!(tables.ranges.len() <= 32);
            for (_, word) in tables.settings {
                let offset = word as u32;
                assert!((32 * half..32 * (half + 1)).contains(&offset));
            }
        }
    }

    #[test]
    fn too_many_ranges_are_refused_with_the_numbers() {
        let error = WorkerTables::build(&tunnel(), 8, 0).unwrap_err();
        assert!(
            error.to_string().contains("need 5 ranges, a half of RANGES has 4"),
            "{error}"
        );
    }
}
