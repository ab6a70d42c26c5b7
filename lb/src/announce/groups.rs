//! Membership of the solicited-node multicast groups of owned IPv6 addresses (RFC 4861, 7.2.1): without it network cards and
//! switches with MLD snooping keep neighbour solicitations from us. Never hears one itself: the slow path does.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, UdpSocket},
};

use lb_core::slow::solicited_node;

/// Groups joined by one socket. The kernel charges each to the socket's option memory (`net.core.optmem_max`, 20 KiB at least).
const GROUPS_PER_SOCKET: usize = 128;

/// A group on an interface.
type Membership = (u32, Ipv6Addr);

/// The memberships of this node; they end with it.
#[derive(Debug, Default)]
pub struct Groups {
    sockets: Vec<(UdpSocket, BTreeSet<Membership>)>,
}

impl Groups {
    /// Makes the memberships those of these addresses on the interfaces with these indices. The first failure is told, and all
    /// others are tried.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and of IPV6_JOIN_GROUP.
    pub fn set(&mut self, interfaces: &[u32], owned: impl Iterator<Item = IpAddr>) -> io::Result<()> {
        let groups: BTreeSet<Ipv6Addr> = owned
            .filter_map(|address| match address {
                IpAddr::V4(_) => None,
                IpAddr::V6(address) => Some(solicited_node(address)),
            })
            .collect();
        let wanted: BTreeSet<Membership> = interfaces
            .iter()
            .flat_map(|interface| groups.iter().map(|group| (*interface, *group)))
            .collect();
        let mut result = Ok(());
        for (socket, joined) in &mut self.sockets {
            joined.retain(|membership @ (interface, group)| {
                let keep = wanted.contains(membership);
                if !keep {
                    // It fails where the interface is gone, and the membership with it.
                    let _ = socket.leave_multicast_v6(group, *interface);
                }
                keep
            });
        }
        let joined: BTreeSet<Membership> = self.sockets.iter().flat_map(|(_, joined)| joined).copied().collect();
        for membership in &wanted - &joined {
            if let Err(error) = self.join(membership) {
                result = result.and(Err(error));
            }
        }
        result
    }

    fn join(&mut self, (interface, group): Membership) -> io::Result<()> {
        let place = match self
            .sockets
            .iter()
            .position(|(_, joined)| joined.len() < GROUPS_PER_SOCKET)
        {
            Some(place) => place,
            None => {
                self.sockets
                    .push((UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?, BTreeSet::new()));
                self.sockets.len() - 1
            }
        };
        if let Some((socket, joined)) = self.sockets.get_mut(place) {
            socket.join_multicast_v6(&group, interface)?;
            joined.insert((interface, group));
        }
        Ok(())
    }
}
