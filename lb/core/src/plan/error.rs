//! Why a desired state cannot be reached. Whoever made the state is told what of it does not fit.

use std::fmt;

use xdp_prog::abi::{MAX_SET_RANGES, MAX_TABLE_SLOTS, MIN_TABLE_SLOTS, setting};

use crate::{
    desired::{BackendId, VipKey},
    match_table::Full,
};

/// Whose list of source or destination ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangesOf {
    /// The allowed sources of a VIP.
    Vip(VipKey),
    /// A setting of the node, by position in `SETTINGS`.
    Setting(u32),
}

impl fmt::Display for RangesOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip(vip) => write!(f, "allowed sources of {vip}"),
            Self::Setting(setting::DENIED_SOURCES) => f.write_str("denied sources"),
            Self::Setting(setting::TUNNEL_SOURCES) => f.write_str("tunnel sources"),
            Self::Setting(setting::TUNNEL_VIPS) => f.write_str("tunnel VIP prefixes"),
            Self::Setting(setting::TUNNEL_LOCALS) => f.write_str("tunnel addresses of this node"),
            Self::Setting(setting::TUNNEL_DENIED) => f.write_str("denied inner sources"),
            Self::Setting(other) => write!(f, "setting {other}"),
        }
    }
}

/// Why there is no plan. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A set names a backend that the desired state does not have.
    #[error("{vip}: its backend {backend} is not among the backends")]
    UnknownBackend {
        /// A VIP of the set.
        vip: VipKey,
        /// Who is missing.
        backend: BackendId,
    },
    /// A set's members are not sorted, or one stands there twice.
    #[error("{vip}: backend {backend} is out of order or there twice")]
    MembersNotSorted {
        /// A VIP of the set.
        vip: VipKey,
        /// The first that is out of order.
        backend: BackendId,
    },
    /// A number of slots that no table can have.
    #[error("{vip}: {slots} slots: must be a power of two, {MIN_TABLE_SLOTS} to {MAX_TABLE_SLOTS}")]
    TableSize {
        /// A VIP of the set.
        vip: VipKey,
        /// What was asked for.
        slots: usize,
    },
    /// Fewer slots than backends that need one.
    #[error("{vip}: {slots} slots are too few for {takers} backends")]
    TableTooSmall {
        /// A VIP of the set.
        vip: VipKey,
        /// What was asked for.
        slots: usize,
        /// Members with a weight.
        takers: usize,
    },
    /// More VIPs than the maps were made for.
    #[error("{vip}: no room for more than {capacity} VIPs")]
    TooManyVips {
        /// The first that does not fit.
        vip: VipKey,
        /// What the maps were made for.
        capacity: u32,
    },
    /// More backends, those that go away with this change included, than the maps were made for.
    #[error("backend {backend}: no room for more than {capacity} backends")]
    TooManyBackends {
        /// The first that does not fit.
        backend: BackendId,
        /// What the maps were made for.
        capacity: u32,
    },
    /// No placement of the match table holds this VIP and those before it.
    #[error("{vip}: no room in the match table: {full}")]
    MatchTableFull {
        /// The first VIP that does not fit.
        vip: VipKey,
        /// The proof.
        full: Full,
    },
    /// No room for a lookup table.
    #[error("{vip}: no room for a lookup table of {slots} slots in {segments} segments of slot memory")]
    SlotMemoryFull {
        /// The VIP that needs it.
        vip: VipKey,
        /// Slots of the table.
        slots: usize,
        /// Segments that there may be.
        segments: u32,
    },
    /// One list of ranges is too long for the program's search.
    #[error("{of}: {ranges} ranges after merging, more than {MAX_SET_RANGES}")]
    TooManyRanges {
        /// Whose.
        of: RangesOf,
        /// How many it has.
        ranges: usize,
    },
    /// All lists of ranges together are too long.
    #[error("{of}: no room for {ranges} ranges more among {capacity}")]
    RangesFull {
        /// Whose.
        of: RangesOf,
        /// Ranges that it takes, a power of two.
        ranges: usize,
        /// What the map was made for.
        capacity: u32,
    },
    /// The loaded program was not built for this: it needs a new program, with [`super::features`].
    #[error("{what}: the loaded program has this off ({feature:#x})")]
    FeatureOff {
        /// What asks for it.
        what: FeatureUse,
        /// Bits of [`xdp_prog::abi::feature`] that are missing.
        feature: u64,
    },
}

impl PlanError {
    /// The VIP that it is about, where it is about one.
    pub fn vip(&self) -> Option<VipKey> {
        match self {
            Self::UnknownBackend { vip, .. }
            | Self::MembersNotSorted { vip, .. }
            | Self::TableSize { vip, .. }
            | Self::TableTooSmall { vip, .. }
            | Self::TooManyVips { vip, .. }
            | Self::MatchTableFull { vip, .. }
            | Self::SlotMemoryFull { vip, .. } => Some(*vip),
            Self::TooManyRanges { of, .. } | Self::RangesFull { of, .. } => match of {
                RangesOf::Vip(vip) => Some(*vip),
                RangesOf::Setting(_) => None,
            },
            Self::TooManyBackends { .. } | Self::FeatureOff { .. } => None,
        }
    }
}

/// What needs a feature of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureUse {
    /// Limits of a VIP.
    Limits(VipKey),
    /// Source ranges of a VIP.
    AllowedSources(VipKey),
    /// MSS clamping of a VIP.
    ClampMss(VipKey),
    /// Client affinity of a VIP.
    ClientAffinity(VipKey),
    /// A scheduler of a VIP, or an affinity that is remembered.
    Scheduler(VipKey),
    /// The node's deny-list.
    DeniedSources,
    /// The node's tunnel.
    Tunnel,
}

impl fmt::Display for FeatureUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limits(vip) => write!(f, "limits of {vip}"),
            Self::AllowedSources(vip) => write!(f, "allowed sources of {vip}"),
            Self::ClampMss(vip) => write!(f, "MSS clamping of {vip}"),
            Self::ClientAffinity(vip) => write!(f, "client affinity of {vip}"),
            Self::Scheduler(vip) => write!(f, "the scheduler of {vip}"),
            Self::DeniedSources => f.write_str("denied sources"),
            Self::Tunnel => f.write_str("tunnel"),
        }
    }
}
