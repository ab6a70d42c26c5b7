//! The live maps for those who run the packet logic in user space: the slow path's workers.
//!
//! Never writes but flow records and the activity of slots, as packets do, and never sees more than a packet does: words, one by one, as they are now. What a plan of map writes says of
//! packets holds for these readers as well, so they have to be waited for where packets are ([`Balancer::on_grace`]).

use std::{fmt, sync::Arc};

use xdp_prog::{
    abi::{BackendLine, BucketV4, BucketV6, Config, FlowBucket, Range, VipOptions},
    host::Memory,
};

use super::{Balancer, Passed, mapped::Reader, slots::Segments};

/// A handle on the live maps of one loaded balancer, for reading: cheap to clone, good in any thread, and good after the
/// [`Balancer`] is gone (it keeps the maps alive; after a take-over, take the new one's).
///
/// [`xdp_prog::host::Host`] runs on it: `Host::new(balancer.live(), ifindex)`.
#[derive(Clone)]
pub struct LiveTables(Arc<Tables>);

pub(crate) struct Tables {
    pub(crate) config: Config,
    pub(crate) vips_v4: Reader<BucketV4>,
    pub(crate) vips_v6: Reader<BucketV6>,
    pub(crate) segments: Segments,
    pub(crate) backends: Reader<BackendLine>,
    pub(crate) options: Reader<VipOptions>,
    pub(crate) ranges: Reader<Range>,
    pub(crate) settings: Reader<u64>,
    pub(crate) flows: Reader<FlowBucket>,
    pub(crate) flow_marks: Reader<u64>,
    pub(crate) open_flows: Reader<u64>,
    pub(crate) turns: Reader<u64>,
    pub(crate) passed: Arc<Passed>,
}

impl LiveTables {
    pub(crate) fn new(tables: Tables) -> Self {
        Self(Arc::new(tables))
    }

    /// Where the slow path counts what it sends to backends.
    pub fn passed(&self) -> &Passed {
        &self.0.passed
    }

    /// What the program was loaded with.
    pub fn constants(&self) -> &Config {
        &self.0.config
    }
}

impl fmt::Debug for LiveTables {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration holds a secret: the seed.
        formatter.debug_struct("LiveTables").finish_non_exhaustive()
    }
}

// SAFETY: all pointers lead into mappings and a configuration that this handle keeps alive, page-aligned, writable mappings of whole
// values; they are written by aligned 8-byte stores alone, flow records and activity as the packet path has it.
unsafe impl Memory for LiveTables {
    fn config(&self) -> *const Config {
        &raw const self.0.config
    }

    fn bucket_v4(&self, index: u32) -> Option<*const BucketV4> {
        self.0.vips_v4.entry(index)
    }

    fn bucket_v6(&self, index: u32) -> Option<*const BucketV6> {
        self.0.vips_v6.entry(index)
    }

    fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64> {
        self.0.segments.get(segment as usize)?.get()?.entry(word)
    }

    fn backend(&self, index: u32) -> Option<*const BackendLine> {
        self.0.backends.entry(index)
    }

    fn options(&self, vip: u32) -> Option<*const VipOptions> {
        self.0.options.entry(vip)
    }

    fn range(&self, index: u32) -> Option<*const Range> {
        self.0.ranges.entry(index)
    }

    fn setting(&self, index: u32) -> Option<*const u64> {
        self.0.settings.entry(index)
    }

    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket> {
        self.0.flows.entry(index).map(<*const FlowBucket>::cast_mut)
    }

    fn flow_marks(&self, word: u32) -> Option<*mut u64> {
        self.0.flow_marks.entry(word).map(<*const u64>::cast_mut)
    }

    fn open_flows(&self, backend: u32) -> Option<*mut u64> {
        self.0.open_flows.entry(backend).map(<*const u64>::cast_mut)
    }

    fn turns(&self, vip: u32) -> Option<*mut u64> {
        self.0.turns.entry(vip).map(<*const u64>::cast_mut)
    }

    fn activity(&self, segment: u32, word: u32) -> Option<*mut u64> {
        self.slot_word(segment, word).map(<*const u64>::cast_mut)
    }
}

impl Balancer {
    /// The live maps, for those who run the packet logic in user space.
    pub fn live(&self) -> LiveTables {
        self.live.clone()
    }

    /// Has every grace period of a plan wait for readers in user space, too: `wait` is called after the one of packets, and
    /// returns when nobody looks any more at what they looked at when it was called. Replaces what was set before.
    pub fn on_grace(&mut self, wait: Box<dyn Fn() + Send + Sync>) {
        self.on_grace = Some(wait);
    }
}
