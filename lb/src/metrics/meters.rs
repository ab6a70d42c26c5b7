//! Counters of a loaded program and what stands at their positions, read beside the daemon's loop.
//!
//! Never tells the traffic of one VIP as another's: where tables change while counters are read, what was read is thrown away.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_core::desired::{BackendId, VipKey};
use xdp_prog::{
    abi::{FlowCounts, Traffic},
    verdict::Verdict,
};

use crate::datapath::{DatapathError, Readings};

/// Most VIPs with series of their own, in the order of address, protocol and port: two series each, together 2 MB of text.
pub const MAX_VIP_SERIES: usize = 10_000;
/// Most backends with series of their own, in the order of names: two series each, together 1 MB of text.
pub const MAX_BACKEND_SERIES: usize = 5_000;

/// What stands at a position of counters.
#[derive(Clone, Debug)]
pub struct Place<T> {
    /// Who.
    pub who: T,
    /// Where.
    pub index: u32,
}

/// Counters of a loaded program.
pub struct Meters {
    /// How to read them.
    pub readings: Arc<Readings>,
    /// Grows before each write to the tables.
    pub changes: Arc<AtomicU64>,
    /// What it was when the places were written down.
    pub seen: u64,
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
    /// What found no room in the flow table.
    pub unrecorded: FlowCounts,
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
            verdicts: self.readings.of_verdicts()?,
            shed: self.readings.of_sheds()?,
            unrecorded: self.readings.of_flows()?,
            vips: Vec::with_capacity(self.vips.len()),
            backends: Vec::with_capacity(self.backends.len()),
            left_out: self.left_out,
        };
        let vip = |place: &Place<VipKey>| (place.who, at(&vips, place.index));
        counted.vips.extend(self.vips.iter().map(vip));
        let backend = |place: &Place<(BackendId, IpAddr)>| {
            let (id, address) = &place.who;
            (id.clone(), *address, at(&backends, place.index))
        };
        counted.backends.extend(self.backends.iter().map(backend));
        Ok(Some(counted))
    }
}

/// Counters up to the last in use.
fn end<T>(places: &[Place<T>]) -> u32 {
    places.iter().map(|place| place.index + 1).max().unwrap_or(0)
}

fn at(counts: &[Traffic], index: u32) -> Traffic {
    counts.get(index as usize).copied().unwrap_or_default()
}
