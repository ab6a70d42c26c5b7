//! The test bed's own programs: what veth peers need, and the wrapper that benchmarks run.
//!
//! - `pass`: on a veth interface whose peer transmits by XDP.
//! - `reflect`: back to the sender, as seen.
//! - `vlan_push`, `vlan_pop`: a tc stand-in for a VLAN device, which the kernels we test on do not have.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    mod peer {
        use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

        #[xdp(frags)]
        pub(crate) fn pass(_ctx: XdpContext) -> u32 {
            xdp_action::XDP_PASS
        }

        #[xdp(frags)]
        pub(crate) fn reflect(ctx: XdpContext) -> u32 {
            let macs = ctx.data() as *mut [[u8; 6]; 2];
            if ctx.data() + size_of::<[[u8; 6]; 2]>() > ctx.data_end() {
                return xdp_action::XDP_DROP;
            }
            // SAFETY: the two addresses lie inside the packet, checked above; bytes have no alignment.
            let [destination, source] = unsafe { &mut *macs };
            core::mem::swap(destination, source);
            xdp_action::XDP_TX
        }
    }

    mod vlan {
        use aya_ebpf::{
            Global,
            bindings::{TC_ACT_OK, TC_ACT_SHOT},
            helpers::{bpf_skb_vlan_pop, bpf_skb_vlan_push},
            macros::classifier,
            programs::TcContext,
        };

        /// TPID << 16 | TCI, host order. The outer tag is the only one if `INNER_TAG` is 0.
        #[unsafe(no_mangle)]
        static OUTER_TAG: Global<u32> = Global::new(0);
        #[unsafe(no_mangle)]
        static INNER_TAG: Global<u32> = Global::new(0);

        /// Egress: puts the tags on, inner first. With TX VLAN offload off the kernel writes them into the packet.
        #[classifier]
        pub(crate) fn vlan_push(ctx: TcContext) -> i32 {
            let inner = INNER_TAG.load();
            if inner != 0 && !push(&ctx, inner) {
                return TC_ACT_SHOT;
            }
            if push(&ctx, OUTER_TAG.load()) {
                TC_ACT_OK
            } else {
                TC_ACT_SHOT
            }
        }

        /// Ingress: takes exactly these tags off; what carries others, or none, is dropped.
        #[classifier]
        pub(crate) fn vlan_pop(ctx: TcContext) -> i32 {
            if !pop(&ctx, OUTER_TAG.load()) {
                return TC_ACT_SHOT;
            }
            let inner = INNER_TAG.load();
            if inner != 0 && !pop(&ctx, inner) {
                return TC_ACT_SHOT;
            }
            // SAFETY: `skb` is the context the kernel gave us.
            if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
                TC_ACT_SHOT
            } else {
                TC_ACT_OK
            }
        }

        fn push(ctx: &TcContext, tag: u32) -> bool {
            let (tpid, tci) = ((tag >> 16) as u16, tag as u16);
            // SAFETY: the helper takes the context the kernel gave us.
            unsafe { bpf_skb_vlan_push(ctx.skb.skb, tpid.to_be(), tci) == 0 }
        }

        /// The kernel has moved the outermost tag out of the packet into `vlan_tci` before tc runs, and each pop moves up the next.
        fn pop(ctx: &TcContext, tag: u32) -> bool {
            // SAFETY: `skb` is the context the kernel gave us.
            let (present, proto, tci) = unsafe {
                let skb = &*ctx.skb.skb;
                (skb.vlan_present, skb.vlan_proto, skb.vlan_tci)
            };
            if present == 0 || u32::from((proto as u16).swap_bytes()) != tag >> 16 || tci & 0xfff != tag & 0xfff {
                return false;
            }
            // SAFETY: as above.
            unsafe { bpf_skb_vlan_pop(ctx.skb.skb) == 0 }
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
