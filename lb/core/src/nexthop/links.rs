//! May packets leave by an interface, and as what? Never looks at routes or neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Link, Unresolved};
use crate::desired::VlanTags;

/// The interfaces there are, and which of them are ours to send out of.
#[derive(Debug, Default)]
pub(super) struct Links {
    by_index: BTreeMap<u32, Link>,
}

/// How packets leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Egress {
    /// The interface the route names, a VLAN device perhaps: what neighbours are known on.
    pub(super) name: Arc<str>,
    /// Index of the configured interface.
    pub(super) ifindex: u32,
    pub(super) port: u8,
    pub(super) source_mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) tags: Option<VlanTags>,
}

impl Links {
    /// Adds or changes a link; whether that changed anything.
    pub(super) fn insert(&mut self, link: Link) -> bool {
        self.by_index.get(&link.ifindex) != Some(&link) && {
            self.by_index.insert(link.ifindex, link);
            true
        }
    }

    /// Removes a link; whether it was there.
    pub(super) fn remove(&mut self, ifindex: u32) -> bool {
        self.by_index.remove(&ifindex).is_some()
    }

    /// Forgets all but these; whether that changed anything.
    pub(super) fn replace(&mut self, links: Vec<Link>) -> bool {
        let links: BTreeMap<_, _> = links.into_iter().map(|link| (link.ifindex, link)).collect();
        let changed = self.by_index != links;
        self.by_index = links;
        changed
    }

    /// Whether a configured interface is this one or below it.
    pub(super) fn is_egress(&self, ifindex: u32, interfaces: &[Arc<str>]) -> bool {
        self.descend(ifindex).any(|link| interfaces.contains(&link.name))
    }

    /// Which of these are down, have no carrier, or are not there.
    pub(super) fn down(&self, interfaces: &[Arc<str>]) -> BTreeSet<Arc<str>> {
        let is_up = |name: &&Arc<str>| self.by_index.values().any(|link| link.name == **name && link.up);
        interfaces.iter().filter(|name| !is_up(name)).cloned().collect()
    }

    /// How packets leave by the interface that a route names.
    pub(super) fn egress(&self, ifindex: u32, interfaces: &[Arc<str>]) -> Result<Egress, Unresolved> {
        let top = self.by_index.get(&ifindex).ok_or(Unresolved::EgressUnknown(ifindex))?;
        let name = || Arc::clone(&top.name);
        // Innermost tag first: the topmost VLAN device's tag is next to the payload.
        let mut vlans = Vec::new();
        for link in self.descend(ifindex) {
            if !link.up {
                return Err(Unresolved::EgressDown(Arc::clone(&link.name)));
            }
            if let Some(port) = interfaces.iter().position(|name| *name == link.name) {
                return Ok(Egress {
                    name: name(),
                    ifindex: link.ifindex,
                    // The configuration has at most 64 interfaces; what is beyond 256 is nobody's.
                    port: u8::try_from(port).map_err(|_| Unresolved::EgressNotConfigured(name()))?,
                    source_mac: top.mac.ok_or_else(|| Unresolved::EgressNotEthernet(name()))?,
                    mtu: top.mtu,
                    tags: match vlans.as_slice() {
                        [] => self.has_vlans(interfaces).then_some(VlanTags::Untagged),
                        [(id, false)] => Some(VlanTags::One(*id)),
                        [(inner, false), (outer, ad)] => Some(VlanTags::Two {
                            outer: *outer,
                            inner: *inner,
                            ad: *ad,
                        }),
                        [..] => return Err(Unresolved::EgressTags(name())),
                    },
                });
            }
            vlans.extend(link.vlan.map(|vlan| (vlan.id, vlan.ad)));
        }
        Err(Unresolved::EgressNotConfigured(name()))
    }

    /// Whether the kernel knows of VLANs here. Then what it would send untagged goes untagged, whatever tags a packet came with; where it
    /// knows of none, tags are somebody else's (an offload, tc) and stay on.
    fn has_vlans(&self, interfaces: &[Arc<str>]) -> bool {
        self.by_index
            .values()
            .any(|link| link.vlan.is_some() && self.is_egress(link.ifindex, interfaces))
    }

    /// A link, the link below it, and so on. The kernel has no loops, but its messages may be read while it changes.
    fn descend(&self, ifindex: u32) -> impl Iterator<Item = &Link> {
        const MAX_DEPTH: usize = 8; // as many as the kernel nests (MAX_NEST_DEV)
        let top = self.by_index.get(&ifindex);
        std::iter::successors(top, |link| self.by_index.get(&link.vlan?.parent)).take(MAX_DEPTH)
    }
}
