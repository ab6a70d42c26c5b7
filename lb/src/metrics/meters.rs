//! Counters of a loaded program and what stands at their positions, read beside the daemon's loop.
//!
//! Never tells the traffic of one VIP as another's: where tables change while counters are read, what was read is thrown away.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_core::desired::{BackendId, VipKey};
use xdp_prog::{abi::Traffic, verdict::Verdict};

use crate::datapath::{DatapathError, Readings};

/// Most VIPs with series of their own, in the order of address, protocol and port: two series each, together 2 MB of text.
pub const MAX_VIP_SERIES: usize = 10_000;
/// Most backends with series of their own, in the order of names: two series each, together 1 MB of text.
pub const MAX_BACKEND_SERIES: usize = 5_000;

/// What stands at a position of counters, and what was counted of it before this program was loaded.
#[derive(Clone, Debug)]
pub struct Place<T> {
    /// Who.
    pub who: T,
    /// Where.
    pub index: u32,
    /// By programs before this one.
    pub before: Traffic,
}

/// Counters of a loaded program.
pub struct Meters {
    /// How to read them.
    pub readings: Arc<Readings>,
    /// Grows before each write to the tables.
    pub changes: Arc<AtomicU64>,
    /// What it was when the places were written down.
    pub seen: u64,
    /// What programs before counted, by verdict.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// What programs before shed, by verdict.
    pub shed: BTreeMap<Verdict, u64>,
    /// At most [`MAX_VIP_SERIES`].
    pub vips: Vec<Place<VipKey>>,
    /// At most [`MAX_BACKEND_SERIES`].
    pub backends: Vec<Place<(BackendId, IpAddr)>>,
    /// VIPs and backends for which there was no place.
    pub left_out: (usize, usize),
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Packets by verdict.
    pub verdicts: Vec<(Verdict, u64)>,
    /// What the slow path's budgets kept from it, by verdict.
    pub shed: Vec<(Verdict, u64)>,
    /// By VIP.
    pub vips: Vec<(VipKey, Traffic)>,
    /// By backend.
    pub backends: Vec<(BackendId, IpAddr, Traffic)>,
    /// VIPs and backends that are left out.
    pub left_out: (usize, usize),
}

impl Meters {
    /// Reads all of them; none where tables changed meanwhile.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn read(&self) -> Result<Option<Counted>, DatapathError> {
        let vips = self.readings.of_vips(end(&self.vips))?;
        let backends = self.readings.of_backends(end(&self.backends))?;
        if self.changes.load(Ordering::SeqCst) != self.seen {
            return Ok(None);
        }
        let mut counted = Counted {
            verdicts: self.readings.verdicts()?,
            shed: self.readings.shed()?,
            vips: Vec::with_capacity(self.vips.len()),
            backends: Vec::with_capacity(self.backends.len()),
            left_out: self.left_out,
        };
        for (counts, before) in [(&mut counted.verdicts, &self.verdicts), (&mut counted.shed, &self.shed)] {
            for (verdict, count) in counts {
                *count += before.get(verdict).copied().unwrap_or_default();
            }
        }
        let vip = |place: &Place<VipKey>| (place.who, together(&vips, place.index, place.before));
        counted.vips.extend(self.vips.iter().map(vip));
        let backend = |place: &Place<(BackendId, IpAddr)>| {
            let (id, address) = &place.who;
            (id.clone(), *address, together(&backends, place.index, place.before))
        };
        counted.backends.extend(self.backends.iter().map(backend));
        Ok(Some(counted))
    }
}

/// Counters up to the last in use.
fn end<T>(places: &[Place<T>]) -> u32 {
    places.iter().map(|place| place.index + 1).max().unwrap_or(0)
}

fn together(counts: &[Traffic], index: u32, before: Traffic) -> Traffic {
    let now = counts.get(index as usize).copied().unwrap_or_default();
    Traffic {
        packets: now.packets + before.packets,
        bytes: now.bytes + before.bytes,
    }
}
