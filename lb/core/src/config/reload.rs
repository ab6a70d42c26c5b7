//! What a new configuration means for a running LB node.
//!
//! Never touches anything: a pure decision from old and new. Nothing is applied by halves: whatever is refused keeps the whole
//! old state.

use thiserror::Error;
use xdp_prog::abi::feature;

use super::{LbConfig, SeedKey};

/// A configuration with its seed at hand: that of `seed_file` is not in the file.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    /// The configuration.
    pub config: &'a LbConfig,
    /// Its seed, read.
    pub seed: &'a SeedKey,
}

/// What to do with a new configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Plan writes from the old tables to the new ones and hand the slow path its new book; the program stays. Workers of the slow
    /// path stay, too, unless [`LbConfig::slow_path_restarts`] names a key.
    Apply,
    /// Load the program again with maps of its own, fill those, and put it in place through the links: no packet is lost. Its slow
    /// path's sockets are its own, too.
    ReplaceProgram {
        /// What is fixed in a loaded program and changes. Not empty.
        why: Vec<ProgramChange>,
    },
    /// Keep the old state and say why.
    Refuse {
        /// Everything that stands in the way. Not empty.
        why: Vec<Refusal>,
    },
}

/// Something that is constant in a loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProgramChange {
    /// Parts of the program come alive or become dead code.
    #[error("features change: {}", feature_names(*.on, *.off))]
    Features {
        /// [`feature`] bits that come on.
        on: u64,
        /// [`feature`] bits that go off.
        off: u64,
    },
    /// The bits of the outer source that carry the flow hash.
    #[error("the outer source's prefix length changes")]
    SourceMask,
    /// Room in the maps, which a new program brings anew.
    #[error("`capacity` changes")]
    Capacity,
    /// Room in the flow table: what was recorded is forgotten.
    #[error("`transit.flow_records` changes")]
    FlowRecords,
    /// A new seed, while there was no VIP whose flows it could move, or as was asked for.
    #[error("the seed changes")]
    Seed,
    /// Where packets may leave: only at a start.
    #[error("`interfaces` changes")]
    Interfaces,
    /// Something that no configuration says: only after an upgrade.
    #[error("the program's constants change")]
    Constants,
}

/// Why a new configuration cannot be taken live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Every flow would move to another backend, at another time on each LB node.
    #[error(
        "the seed changed while there are VIPs: every connection would break; put the old seed back, or restart with --new-seed"
    )]
    SeedWithVips,
    /// As [`Self::SeedWithVips`], at a start that finds VIPs being served.
    #[error(
        "the seed is another than that of the VIPs which are being served: every connection would break; put the old seed back, or \
         start with --new-seed. The data plane goes on as it is"
    )]
    SeedAtStart,
    /// A key that is fixed for the life of the process.
    #[error("`{key}` changed, which needs a restart; put the old value back, or restart")]
    NeedsRestart {
        /// The key.
        key: &'static str,
    },
}

/// Decides. Two equal configurations give [`Reload::Apply`], whose plan is empty.
pub fn decide(old: Loaded<'_>, new: Loaded<'_>) -> Reload {
    let seed_changed = old.seed != new.seed;
    let mut refusals = Vec::new();
    refusals.extend((seed_changed && !old.config.desired.vips.is_empty()).then_some(Refusal::SeedWithVips));
    let fixed = old.config.differs_fixed(new.config);
    refusals.extend(fixed.into_iter().map(|key| Refusal::NeedsRestart { key }));
    if !refusals.is_empty() {
        return Reload::Refuse { why: refusals };
    }

    let mut changes = Vec::new();
    let (before, after) = (old.config.features(), new.config.features());
    let features = ProgramChange::Features {
        on: after & !before,
        off: before & !after,
    };
    changes.extend((before != after).then_some(features));
    let masks_differ = old.config.encap.source_masks() != new.config.encap.source_masks();
    changes.extend(masks_differ.then_some(ProgramChange::SourceMask));
    changes.extend((old.config.capacity != new.config.capacity).then_some(ProgramChange::Capacity));
    let records_differ = old.config.transit.flow_mask() != new.config.transit.flow_mask();
    changes.extend((before == after && records_differ).then_some(ProgramChange::FlowRecords));
    changes.extend(seed_changed.then_some(ProgramChange::Seed));
    if changes.is_empty() {
        Reload::Apply
    } else {
        Reload::ReplaceProgram { why: changes }
    }
}

/// `+limits -redirect`.
fn feature_names(on: u64, off: u64) -> String {
    let named = |bits: u64, sign| {
        feature::NAMES
            .into_iter()
            .filter(move |(bit, _)| bits & bit != 0)
            .map(move |(_, name)| format!("{sign}{name}"))
    };
    named(on, '+').chain(named(off, '-')).collect::<Vec<_>>().join(", ")
}
