//! What a file may say and should be said loudly all the same.
//!
//! Never stops anything: what must not be is a [`super::Problem`].

use std::sync::Arc;

use thiserror::Error;

use crate::desired::VipKey;

/// Something allowed that is probably not meant, or that costs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Warning {
    /// An interface is asked to attach in generic mode.
    #[error(
        "interface {interface}: generic mode is many times slower than native; it is for tests and drivers without XDP"
    )]
    GenericMode {
        /// Its name.
        interface: Arc<str>,
    },
    /// A VIP whose packets all get the verdict *no backend*.
    #[error("{vip}: no backend with a weight above 0, so nothing is forwarded for it")]
    NoBackend {
        /// The VIP.
        vip: VipKey,
    },
    /// `l2.owned` without any VIP address in it.
    #[error("l2.owned: no VIP address lies in it, so this node answers for none; list the VIPs' network")]
    OwnsNoVip,
    /// `l2.owned` without a slow path.
    #[error("l2.owned: slow_path.enabled is false, so nobody answers ARP or neighbour discovery for it")]
    OwnedUnanswered,
    /// `bfd` of a peer that is to keep routes over a restart.
    #[error(
        "bgp peer {peer}: `bfd` may end what `graceful_restart` shall keep: BIRD drops the routes when BFD goes down, FRR keeps them \
         (docs/bfd.md)"
    )]
    BfdEndsGracefulRestart {
        /// Its name.
        peer: Arc<str>,
    },
    /// A named backend set that no VIP uses.
    #[error("backend set {name}: no VIP uses it")]
    UnusedSet {
        /// Its name.
        name: String,
    },
    /// `check_source` is off.
    #[error("check_source is off: anyone who can reach this node can send it tunnelled packets with any inner source")]
    SourceUnchecked,
    /// `check_destination` is off.
    #[error("check_destination is off: tunnelled packets may go to any address, not only to VIPs")]
    DestinationUnchecked,
    /// `blackhole_unclaimed` is off.
    #[error(
        "blackhole_unclaimed is off: a packet for a VIP that this node does not serve may loop between it and the LB nodes"
    )]
    UnclaimedMayLoop,
}
