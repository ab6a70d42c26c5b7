//! The test bed's own programs: what veth peers need, and the wrapper that benchmarks run.
//!
//! - `pass`: on a veth interface whose peer transmits by XDP.
//! - `reflect`: back to the sender, as seen.
//! - `to_xsk`: to AF_XDP sockets as the balancer hands packets to its slow path; without the tables.
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

    mod slow {
        use aya_ebpf::{
            EbpfContext as _,
            bindings::xdp_action,
            btf_maps::XskMap,
            helpers::generated::bpf_xdp_adjust_meta,
            macros::{btf_map, xdp},
            programs::XdpContext,
        };

        /// The first of the two ethertypes for experiments (IEEE 802): a packet for a socket, the verdict's number behind it.
        const TO_XSK: u16 = 0x88b5;
        /// The second: a packet of the fast path, which goes back to its sender.
        const REFLECTED: u16 = 0x88b6;
        /// In place of a verdict's number: no metadata at all.
        const BARE: u8 = 0xff;

        #[btf_map]
        static TEST_XSKS: XskMap<64> = XskMap::new();

        #[repr(C, packed)]
        struct Head {
            macs: [[u8; 6]; 2],
            ethertype: [u8; 2],
            verdict: u8,
        }

        #[xdp(frags)]
        pub(crate) fn to_xsk(ctx: XdpContext) -> u32 {
            if ctx.data() + size_of::<Head>() > ctx.data_end() {
                return xdp_action::XDP_PASS;
            }
            // SAFETY: the head lies inside the packet, checked above; bytes have no alignment.
            let head = unsafe { &mut *(ctx.data() as *mut Head) };
            let (ethertype, verdict) = (u16::from_be_bytes(head.ethertype), head.verdict);
            if ethertype == REFLECTED {
                let [destination, source] = &mut head.macs;
                core::mem::swap(destination, source);
                return xdp_action::XDP_TX;
            }
            if ethertype != TO_XSK {
                return xdp_action::XDP_PASS;
            }
            if verdict != BARE {
                // SAFETY: the context is the program's own; the metadata is written inside its bounds.
                unsafe {
                    if bpf_xdp_adjust_meta(ctx.as_ptr().cast(), -8) != 0 || ctx.metadata() + 8 > ctx.data() {
                        return xdp_action::XDP_ABORTED;
                    }
                    (ctx.metadata() as *mut u64).write(u64::from(verdict));
                }
            }
            match TEST_XSKS.redirect(ctx.rx_queue_index(), u64::from(xdp_action::XDP_DROP)) {
                Ok(_) => xdp_action::XDP_REDIRECT,
                Err(_) => xdp_action::XDP_DROP,
            }
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
