//! The packet logic in the kernel: what both programs bind in the same way. Compiled for eBPF only.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};

use crate::{
    machine::{Frame, opaque},
    verdict::Verdict,
};

/// The packet that the driver handed us.
pub struct KernelFrame {
    /// The program's context.
    pub ctx: XdpContext,
}

// SAFETY: the verifier proves every access against `data` and `data_end`.
unsafe impl Frame for KernelFrame {
    #[inline(always)]
    fn start(&self) -> usize {
        self.ctx.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.ctx.data_end()
    }

    #[inline(always)]
    fn total_len(&self) -> usize {
        // SAFETY: the context is the program's own.
        unsafe { bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) as usize }
    }

    #[inline(always)]
    fn move_start(&mut self, delta: i32) -> bool {
        // SAFETY: the context is the program's own; pointers into the packet are formed anew after this.
        unsafe { bpf_xdp_adjust_head(self.ctx.as_ptr().cast(), delta) == 0 }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }
}

/// What to tell the driver. `slow` is what becomes of packets for the slow path.
#[inline(always)]
pub fn action(verdict: Verdict, slow: u32) -> u32 {
    // Verdicts stand in the order of their fates. Said as a match, this becomes a dozen tests of bits, the commonest case last.
    let verdict = opaque(verdict as u64);
    if verdict == Verdict::ForwardTx as u64 {
        xdp_action::XDP_TX
    } else if verdict >= Verdict::FIRST_DROP as u64 {
        xdp_action::XDP_DROP
    } else if verdict >= Verdict::FIRST_SLOW as u64 {
        slow
    } else if verdict == Verdict::ForwardRedirect as u64 {
        xdp_action::XDP_REDIRECT
    } else {
        // Passed up, or forwarded to this node itself.
        xdp_action::XDP_PASS
    }
}

/// Defines what both programs have: `CONFIG`, `RANGES`, `SETTINGS`, `COUNTERS`, a `Machine` over them, the licence and the
/// panic handler (which nothing reaches: the verifier would refuse the loop).
#[macro_export]
macro_rules! program {
    () => {
        use aya_ebpf::btf_maps::{Array, PerCpuArray};
        use $crate::abi::{self, Config, Range, setting};

        /// `BPF_F_MMAPABLE`.
        const MMAPABLE: usize = 1 << 10;

        /// Frozen by the loader, so constants to the verifier.
        #[unsafe(no_mangle)]
        static CONFIG: Config = Config::EMPTY;
        #[aya_ebpf::macros::btf_map]
        static RANGES: Array<Range, { abi::MAX_RANGES }, MMAPABLE> = Array::new();
        #[aya_ebpf::macros::btf_map]
        static SETTINGS: Array<u64, { setting::COUNT as usize }, MMAPABLE> = Array::new();
        #[aya_ebpf::macros::btf_map]
        static COUNTERS: PerCpuArray<u64, { abi::MAX_VERDICTS }> = PerCpuArray::new();

        struct Machine {
            frame: $crate::kernel::KernelFrame,
            features: u64,
        }

        impl Machine {
            #[inline(always)]
            fn new(ctx: aya_ebpf::programs::XdpContext) -> Self {
                // SAFETY: the configuration lives as long as the program.
                let features = unsafe { $crate::machine::word(&raw const CONFIG.features) };
                Self {
                    frame: $crate::kernel::KernelFrame { ctx },
                    features,
                }
            }

            /// Counts a verdict.
            #[inline(always)]
            fn count(verdict: $crate::verdict::Verdict) {
                if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
                    // SAFETY: this CPU's own value.
                    unsafe { *counter = (*counter).wrapping_add(1) };
                }
            }
        }

        // SAFETY: hands through to `KernelFrame`.
        unsafe impl $crate::machine::Frame for Machine {
            #[inline(always)]
            fn start(&self) -> usize {
                self.frame.start()
            }

            #[inline(always)]
            fn end(&self) -> usize {
                self.frame.end()
            }

            #[inline(always)]
            fn total_len(&self) -> usize {
                self.frame.total_len()
            }

            #[inline(always)]
            fn move_start(&mut self, delta: i32) -> bool {
                self.frame.move_start(delta)
            }

            #[inline(always)]
            fn ingress_ifindex(&self) -> u32 {
                self.frame.ingress_ifindex()
            }
        }

        impl $crate::machine::Constants for Machine {
            #[inline(always)]
            fn config(&self) -> *const Config {
                &raw const CONFIG
            }
        }

        impl $crate::machine::Tables for Machine {
            #[inline(always)]
            fn features(&self) -> u64 {
                self.features
            }

            #[inline(always)]
            fn setting(&self, index: u32) -> Option<*const u64> {
                SETTINGS.get_ptr(index)
            }

            #[inline(always)]
            fn set_contains(&self, set: u64, high: u64, low: u64) -> bool {
                in_set(set, high, low) != 0
            }
        }

        struct RangeMap;

        impl $crate::machine::Ranges for RangeMap {
            #[inline(always)]
            fn range(&self, index: u32) -> Option<*const Range> {
                RANGES.get_ptr(index)
            }
        }

        /// A subprogram of its own: one copy for all features that search, and nothing for those who do not.
        #[inline(never)]
        fn in_set(set: u64, high: u64, low: u64) -> u64 {
            u64::from($crate::ranges::contains(&RangeMap, set, high, low))
        }

        #[panic_handler]
        fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }

        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}
