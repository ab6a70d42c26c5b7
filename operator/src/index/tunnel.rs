//! What worker nodes accept by tunnel.
//!
//! Never takes all sources away: without a single LbNode, those that were published stay, or all workers would shut at once
//! because a list was empty.

use std::net::IpAddr;

use ipnet::IpNet;
use operator_api::{LbNode, TunnelConfig, TunnelConfigSpec};

/// Most outer sources of a TunnelConfig.
const MAX_SOURCES: usize = 1_024;
/// Most VIP prefixes of a TunnelConfig.
const MAX_PREFIXES: usize = 4_096;

/// Why there is no tunnel configuration to write: the one that is published stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelFault {
    /// More outer sources than a TunnelConfig holds.
    #[error(
        "{0} outer sources of LB nodes are more than the {MAX_SOURCES} that a TunnelConfig holds (delete LbNodes that are gone)"
    )]
    TooManySources(usize),
    /// More blocks than a TunnelConfig holds.
    #[error(
        "{0} blocks of VIP addresses are more than the {MAX_PREFIXES} that a TunnelConfig holds (a range FIRST-LAST of a pool \
         counts as all the blocks that it is made of: write pools as blocks)"
    )]
    TooManyPrefixes(usize),
}

/// The configuration from all LB nodes and the blocks of all VIP addresses.
pub(super) fn wanted<'a>(
    lb_nodes: impl Iterator<Item = &'a LbNode>,
    prefixes: &[IpNet],
    published: Option<&TunnelConfig>,
) -> Result<TunnelConfigSpec, TunnelFault> {
    let mut any = false;
    let mut sources = Vec::new();
    for node in lb_nodes {
        any = true;
        sources.extend(node.spec.tunnel_sources.iter().filter_map(|source| block(source)));
    }
    let sources = if any {
        sources.sort_unstable();
        sources.dedup();
        sources.iter().map(IpNet::to_string).collect()
    } else {
        published.map(|tunnel| tunnel.spec.sources.clone()).unwrap_or_default()
    };
    if sources.len() > MAX_SOURCES {
        return Err(TunnelFault::TooManySources(sources.len()));
    }
    if prefixes.len() > MAX_PREFIXES {
        return Err(TunnelFault::TooManyPrefixes(prefixes.len()));
    }
    Ok(TunnelConfigSpec {
        sources,
        vip_prefixes: prefixes.iter().map(IpNet::to_string).collect(),
    })
}

/// A source as a block; an address is a block of one. What is neither an LB node will hear of from its own checks.
fn block(source: &str) -> Option<IpNet> {
    let source = source.trim();
    let block = source
        .parse::<IpNet>()
        .ok()
        .or_else(|| source.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(block.trunc())
}
