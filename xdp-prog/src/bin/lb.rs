//! The balancer's XDP program. All logic is in the library; here it meets its maps.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::xdp_action,
        btf_maps::{ArrayOfMaps, DevMap, XskMap},
        helpers::generated::{bpf_jiffies64, bpf_xdp_adjust_meta},
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use xdp_prog::{
        abi::{BackendLine, BucketV4, BucketV6, KeyV4, KeyV6, LimitState, Traffic, VipOptions},
        balance::{
            self,
            matching::{self, Match},
        },
        decap,
        kernel::action,
        machine::{BalancerTables, Constants, Frame as _, MatchTables},
        verdict::Verdict,
    };

    xdp_prog::program!();

    // The loader sets the sizes that depend on the node's capacity; these are the smallest that verify.
    #[btf_map]
    static VIPS_V4: Array<BucketV4, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static VIPS_V6: Array<BucketV6, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static LOOKUP_TABLES: ArrayOfMaps<Array<u64, { abi::SEGMENT_WORDS }, MMAPABLE>, { abi::MAX_SEGMENTS }> =
        ArrayOfMaps::new();
    #[btf_map]
    static BACKENDS: Array<BackendLine, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static VIP_OPTIONS: Array<VipOptions, 1, MMAPABLE> = Array::new();
    #[btf_map]
    static VIP_COUNTERS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
    #[btf_map]
    static BACKEND_COUNTERS: PerCpuArray<Traffic, 1> = PerCpuArray::new();
    #[btf_map]
    static LIMITS: PerCpuArray<LimitState, 1> = PerCpuArray::new();
    #[btf_map]
    static PORTS: DevMap<{ abi::MAX_PORTS }> = DevMap::new();
    #[btf_map]
    static XSKS: XskMap<{ abi::MAX_QUEUES }> = XskMap::new();

    /// Picks a backend and sends the packet there.
    #[xdp(frags)]
    pub(crate) fn vipline_lb(ctx: XdpContext) -> u32 {
        let mut machine = Machine::new(ctx);
        let verdict = balance::run(&mut machine);
        Machine::count(verdict);
        // With the slow path on, its packets have been redirected by the time they are counted.
        let slow_path = machine.features & abi::feature::SLOW_PATH != 0;
        action(
            verdict,
            if slow_path {
                xdp_action::XDP_REDIRECT
            } else {
                xdp_action::XDP_DROP
            },
        )
    }

    struct MatchMaps;

    impl Constants for MatchMaps {
        #[inline(always)]
        fn config(&self) -> *const Config {
            &raw const CONFIG
        }
    }

    macro_rules! match_tables {
        ($($name:ty),+) => {$(
            impl MatchTables for $name {
                #[inline(always)]
                fn bucket_v4(&self, index: u32) -> Option<*const BucketV4> {
                    VIPS_V4.get_ptr(index)
                }

                #[inline(always)]
                fn bucket_v6(&self, index: u32) -> Option<*const BucketV6> {
                    VIPS_V6.get_ptr(index)
                }
            }
        )+};
    }

    match_tables!(Machine, MatchMaps);

    /// A subprogram of its own; a key of 0 is none.
    #[inline(never)]
    fn overflow_v4(key: u64, address: u64) -> u64 {
        let key = if key == 0 { None } else { Some(KeyV4(key)) };
        matching::overflow(&MatchMaps, key, KeyV4(address)).to_word()
    }

    /// A subprogram of its own; a tail of 0 is no key.
    #[inline(never)]
    fn overflow_v6(high: u64, low: u64, tail: u64) -> u64 {
        let key = if tail == 0 {
            None
        } else {
            Some(KeyV6 { high, low, tail })
        };
        matching::overflow(&MatchMaps, key, KeyV6::from_wire(high, low, 0, 0)).to_word()
    }

    /// A subprogram of its own: the worker side, for tunnel packets only.
    #[inline(never)]
    fn decapsulate(ctx: *mut core::ffi::c_void) -> u32 {
        decap::run(&mut Machine::new(XdpContext::new(ctx.cast()))) as u32
    }

    impl BalancerTables for Machine {
        #[inline(always)]
        fn overflow_v4(&self, key: Option<KeyV4>, address: KeyV4) -> Match {
            Match::from_word(overflow_v4(key.map_or(0, |key| key.0), address.0))
        }

        #[inline(always)]
        fn overflow_v6(&self, key: Option<KeyV6>, address: KeyV6) -> Match {
            Match::from_word(overflow_v6(address.high, address.low, key.map_or(0, |key| key.tail)))
        }

        #[inline(always)]
        fn slot_word(&self, segment: u32, word: u32) -> Option<*const u64> {
            LOOKUP_TABLES
                .get_value_ptr_mut(segment, &word)
                .map(<*mut u64>::cast_const)
        }

        #[inline(always)]
        fn backend(&self, index: u32) -> Option<*const BackendLine> {
            BACKENDS.get_ptr(index)
        }

        #[inline(always)]
        fn options(&self, vip: u32) -> Option<*const VipOptions> {
            VIP_OPTIONS.get_ptr(vip)
        }

        #[inline(always)]
        fn limit_state(&self, vip: u32) -> Option<*mut LimitState> {
            LIMITS.get_ptr_mut(vip)
        }

        #[inline(always)]
        fn vip_traffic(&self, vip: u32) -> Option<*mut Traffic> {
            VIP_COUNTERS.get_ptr_mut(vip)
        }

        #[inline(always)]
        fn backend_traffic(&self, backend: u32) -> Option<*mut Traffic> {
            BACKEND_COUNTERS.get_ptr_mut(backend)
        }

        #[inline(always)]
        fn jiffies(&self) -> u64 {
            // SAFETY: a helper without arguments.
            unsafe { bpf_jiffies64() }
        }

        #[inline(always)]
        fn redirect(&mut self, port: u32) -> bool {
            PORTS.redirect(port, 0).is_ok()
        }

        #[inline(always)]
        fn decapsulate(&mut self) -> Verdict {
            let number = decapsulate(self.frame.ctx.as_ptr());
            Verdict::from_counter(number).unwrap_or(Verdict::DropInternal)
        }

        #[inline(always)]
        fn to_slow_path(&mut self, verdict: Verdict) -> bool {
            // The reason travels in front of the packet: 8 bytes of metadata, the verdict's number in the first.
            // SAFETY: the context is the program's own; the metadata is written inside its bounds.
            unsafe {
                if bpf_xdp_adjust_meta(self.frame.ctx.as_ptr().cast(), -8) == 0 {
                    let meta = self.frame.ctx.metadata();
                    if meta + 8 <= self.frame.start() {
                        xdp_prog::machine::store(meta, verdict as u64);
                    }
                }
            }
            XSKS.redirect(self.frame.ctx.rx_queue_index(), u64::from(xdp_action::XDP_DROP))
                .is_ok()
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
