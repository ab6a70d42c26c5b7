//! The benchmark's wrapper: makes the next packet out of nothing and tail-calls what is measured.
//!
//! Never part of what is shipped. The kernel does not reset a packet between the repeats of a test run, so `bench_flows` takes
//! off what the last target put in front, writes all headers anew for the next flow, and jumps. The floors run behind the same
//! wrapper, so that the difference of two durations is the target's own.
//!
//! The wrapper's work is the same for every target: the head is moved in any case (by 0 where nothing was put in front), and the
//! stores are complete before the jump (one locked instruction), or the target's loads would wait for the wrapper's stores in ways
//! that no packet from a network card knows.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
#[path = "bench/params.rs"]
mod params;

#[cfg(target_arch = "bpf")]
mod program {
    use core::arch::asm;

    use aya_ebpf::{
        EbpfContext as _,
        bindings::xdp_action,
        btf_maps::{Array, PerCpuArray, ProgramArray, XskMap},
        helpers::generated::bpf_xdp_adjust_head,
        macros::{btf_map, xdp},
        programs::XdpContext,
    };
    use xdp_prog::machine::{load, store};

    use crate::params::{FLOW_IDS as FLOW_ID_COUNT, FRAME_LEN, Params, TOUCHED_LINES, choice, kind, target};

    #[btf_map]
    static PARAMS: Array<Params, 1> = Array::new();
    #[btf_map]
    static FLOW_IDS: Array<u32, { FLOW_ID_COUNT }> = Array::new();
    /// As large as user space makes it.
    #[btf_map]
    static POLLUTION: Array<[u64; 8], 1> = Array::new();
    #[btf_map]
    static SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();
    #[btf_map]
    static TARGETS: ProgramArray<{ target::COUNT }> = ProgramArray::new();

    #[btf_map]
    static WIRE_XSKS: XskMap<64> = XskMap::new();
    /// By queue: packets so far. One word a cache line, since every queue has a CPU of its own.
    #[btf_map]
    static WIRE_SEEN: Array<[u64; 8], 64> = Array::new();
    /// Drop every so many-eth packet of a queue; 0: none.
    #[btf_map]
    static WIRE_DROP_EVERY: Array<u64, 1> = Array::new();

    /// Makes the next packet and runs the target on it.
    #[xdp(frags)]
    pub(crate) fn bench_flows(ctx: XdpContext) -> u32 {
        let Some(params) = PARAMS.get_ptr_mut(0) else {
            return xdp_action::XDP_ABORTED;
        };
        // SAFETY: a pointer from a map lookup; user space writes only between test runs, and these run on one CPU.
        let params = unsafe { &mut *params };
        let grown = (ctx.data_end() - ctx.data()) as i32 - FRAME_LEN as i32;
        // SAFETY: the context is the program's own; pointers into the packet are formed after this.
        if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), grown) } != 0 {
            return xdp_action::XDP_ABORTED;
        }
        let start = ctx.data();
        if start + FRAME_LEN > ctx.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        let random = next_random(params);
        let Some(flow) = next_flow(params, random) else {
            return xdp_action::XDP_ABORTED;
        };
        if params.pollution_mask != 0 {
            pollute(params.pollution_mask, random);
        }
        let kind = if params.kind == kind::MIXED {
            random >> 62
        } else {
            params.kind
        };
        // SAFETY: `FRAME_LEN` bytes from `start` on are inside the packet.
        unsafe {
            if kind & kind::V6 == 0 {
                write_v4(start, params, flow, kind);
            } else {
                write_v6(start, params, flow, kind);
            }
        }
        // Counts, and completes the stores: on x86 every locked instruction does.
        // SAFETY: an aligned word of the map's value.
        unsafe {
            asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut params.packets, in(reg) 1_u64, options(nostack))
        };
        jump(&ctx, params.target as u32)
    }

    /// One jump instruction per target: with a constant index the JIT makes a direct jump of it. The statements after the calls
    /// differ, or the compiler would merge the calls into one with a variable index.
    #[inline(always)]
    fn jump(ctx: &XdpContext, to: u32) -> u32 {
        // SAFETY: the context is the program's own; a failed jump falls through. The assembly writes to registers that nobody reads.
        unsafe {
            match to {
                target::FLOOR_TX => {
                    TARGETS.tail_call(ctx, target::FLOOR_TX);
                    asm!("{0} = 1", out(reg) _, options(nomem, nostack));
                }
                target::FLOOR_READ => {
                    TARGETS.tail_call(ctx, target::FLOOR_READ);
                    asm!("{0} = 2", out(reg) _, options(nomem, nostack));
                }
                target::FLOOR_WRITE => {
                    TARGETS.tail_call(ctx, target::FLOOR_WRITE);
                    asm!("{0} = 3", out(reg) _, options(nomem, nostack));
                }
                _ => {
                    TARGETS.tail_call(ctx, target::PROGRAM);
                    asm!("{0} = 4", out(reg) _, options(nomem, nostack));
                }
            }
        }
        xdp_action::XDP_ABORTED
    }

    /// xorshift64.
    #[inline(always)]
    fn next_random(params: &mut Params) -> u64 {
        let mut x = params.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        params.random = x;
        x
    }

    #[inline(always)]
    fn next_flow(params: &mut Params, random: u64) -> Option<u64> {
        params.sequence = params.sequence.wrapping_add(params.stride);
        match params.choice {
            choice::RANDOM => Some(random >> 16 & params.flow_mask),
            choice::TABLE => {
                let position = params.sequence as u32 % FLOW_ID_COUNT as u32;
                FLOW_IDS.get(position).map(|id| u64::from(*id))
            }
            choice::SEQUENCE => Some(params.sequence & params.flow_mask),
            _ => None,
        }
    }

    /// Reads random cache lines. The packet is written after this: a network card leaves it in the cache.
    #[inline(always)]
    fn pollute(mask: u64, random: u64) {
        let mut line = random;
        for _ in 0..TOUCHED_LINES {
            line = line
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            if let Some(words) = POLLUTION.get_ptr((line >> 32 & mask) as u32) {
                // SAFETY: a pointer from a map lookup, aligned.
                unsafe { xdp_prog::machine::word(words.cast()) };
            }
        }
    }

    /// The VIP of a flow: always the same, and spread over all of them.
    #[inline(always)]
    fn vip(params: &Params, flow: u64) -> u64 {
        (u64::from((flow as u32).wrapping_mul(0x9e37_79b1)) * params.vips) >> 32
    }

    /// Source and destination port as on the wire: 4,096 ports of each client; the service's is 80.
    #[inline(always)]
    fn ports(flow: u64) -> u32 {
        let source = 0x4000_u16 | (flow & 0xfff) as u16;
        u32::from(source.to_be()) | u32::from(80_u16.to_be()) << 16
    }

    /// Clients: 32.0.0.0/8.
    #[inline(always)]
    unsafe fn write_v4(start: usize, params: &Params, flow: u64, kind: u64) {
        let protocol: u64 = if kind & kind::UDP == 0 { 6 } else { 17 };
        let source = 0x2000_0000_u32 | (flow >> 12 & 0xff_ffff) as u32;
        let destination = (params.vip_v4 + vip(params, flow)) as u32;
        let addresses = u64::from(source.to_be()) | u64::from(destination.to_be()) << 32;
        // SAFETY: the caller's promise.
        unsafe {
            store(start, u64::from_ne_bytes([2, 0, 0, 0, 0, 1, 2, 0]));
            store(start + 8, u64::from_ne_bytes([0, 0, 0, 2, 0x08, 0x00, 0x45, 0]));
            let third = u64::from_ne_bytes([0, (FRAME_LEN - 14) as u8, 0x12, 0x34, 0x40, 0, 64, 0]);
            store(start + 16, third | protocol << 56);
            store(start + 24, 0_u16);
            store(start + 26, addresses);
            write_transport(start + 34, params, flow, kind, (FRAME_LEN - 34) as u64);
        }
    }

    /// Clients: 2001:db8:1::/64.
    #[inline(always)]
    unsafe fn write_v6(start: usize, params: &Params, flow: u64, kind: u64) {
        let protocol: u64 = if kind & kind::UDP == 0 { 6 } else { 17 };
        let source = flow >> 12 | 1 << 40;
        // SAFETY: the caller's promise.
        unsafe {
            store(start, u64::from_ne_bytes([2, 0, 0, 0, 0, 1, 2, 0]));
            store(start + 8, u64::from_ne_bytes([0, 0, 0, 2, 0x86, 0xdd, 0x60, 0]));
            let third = u64::from_ne_bytes([0, 0, 0, (FRAME_LEN - 54) as u8, 0, 64, 0x20, 0x01]);
            store(start + 16, third | protocol << 32);
            // The rest of the source's upper half: 0db8:0001:0000.
            store(start + 24, u32::from_ne_bytes([0x0d, 0xb8, 0, 1]));
            store(start + 28, 0_u16);
            store(start + 30, source.to_be());
            store(start + 38, params.vip_v6.to_be());
            store(start + 46, vip(params, flow).to_be());
            write_transport(start + 54, params, flow, kind, (FRAME_LEN - 54) as u64);
        }
    }

    /// 20 bytes: a TCP header, or a UDP header and payload.
    #[inline(always)]
    unsafe fn write_transport(l4: usize, params: &Params, flow: u64, kind: u64, len: u64) {
        let second = if kind & kind::UDP == 0 { flow << 32 } else { len << 8 };
        // SAFETY: the caller's promise.
        unsafe {
            store(l4, u64::from(ports(flow)) | second << 32);
            store(l4 + 8, 0x50_u64 << 32 | params.tcp_flags << 40);
            store(l4 + 16, 0_u32);
        }
    }

    /// The floor under everything.
    #[xdp(frags)]
    pub(crate) fn floor_tx(_ctx: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// The floor of whoever looks at the headers.
    #[xdp(frags)]
    pub(crate) fn floor_read(ctx: XdpContext) -> u32 {
        read_headers(&ctx)
    }

    /// The floor of whoever encapsulates IPv4 in IPv4.
    #[xdp(frags)]
    pub(crate) fn floor_write(ctx: XdpContext) -> u32 {
        let action = read_headers(&ctx);
        // SAFETY: the context is the program's own; pointers into the packet are formed after this.
        if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -20) } != 0 {
            return xdp_action::XDP_ABORTED;
        }
        let start = ctx.data();
        if start + 34 > ctx.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: 34 bytes from `start` on are inside the packet.
        unsafe {
            store(start, u64::from_ne_bytes([2, 0, 0, 0, 0, 3, 2, 0]));
            store(start + 8, u64::from_ne_bytes([0, 0, 0, 1, 0x08, 0x00, 0x45, 0]));
            store(start + 16, u64::from_ne_bytes([0, 94, 0, 0, 0x40, 0, 64, 4]));
            store(start + 24, u64::from_ne_bytes([0, 0, 10, 0, 0, 1, 10, 0]));
            store(start + 32, u16::from_ne_bytes([0, 2]));
        }
        action
    }

    /// The end of a live packet: counted and dropped.
    #[xdp(frags)]
    pub(crate) fn sink(_ctx: XdpContext) -> u32 {
        if let Some(count) = SUNK.get_ptr_mut(0) {
            // SAFETY: this CPU's own value.
            unsafe { *count = (*count).wrapping_add(1) };
        }
        xdp_action::XDP_DROP
    }

    /// The end of a packet on the wire: IP goes to the queue's socket, all else to the kernel. Loses packets where a test of the
    /// harness wants that.
    #[xdp(frags)]
    pub(crate) fn wire_sink(ctx: XdpContext) -> u32 {
        let start = ctx.data();
        if start + 14 > ctx.data_end() {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: 14 bytes from `start` on are inside the packet.
        let ethertype: u16 = unsafe { load(start + 12) };
        if ethertype != 0x0800_u16.to_be() && ethertype != 0x86dd_u16.to_be() {
            return xdp_action::XDP_PASS;
        }
        let queue = ctx.rx_queue_index();
        let every = WIRE_DROP_EVERY.get(0).copied().unwrap_or(0);
        if every != 0
            && let Some(seen) = WIRE_SEEN.get_ptr_mut(queue)
        {
            // SAFETY: a queue's packets come one after the other.
            let number = unsafe {
                (*seen)[0] = (*seen)[0].wrapping_add(1);
                (*seen)[0]
            };
            if number % every == 0 {
                return xdp_action::XDP_DROP;
            }
        }
        match WIRE_XSKS.redirect(queue, u64::from(xdp_action::XDP_PASS)) {
            Ok(_) => xdp_action::XDP_REDIRECT,
            Err(_) => xdp_action::XDP_PASS,
        }
    }

    /// Reads what a balancer must read of an IPv4 packet.
    #[inline(always)]
    fn read_headers(ctx: &XdpContext) -> u32 {
        let start = ctx.data();
        if start + 42 > ctx.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: 42 bytes from `start` on are inside the packet; the loads are volatile, so they stay.
        unsafe {
            let _ethertype: u16 = load(start + 12);
            let _version: u8 = load(start + 14);
            let _total_len: u16 = load(start + 16);
            let _fragment: u16 = load(start + 20);
            let _protocol: u8 = load(start + 23);
            let _addresses: u64 = load(start + 26);
            let _ports: u32 = load(start + 34);
        }
        xdp_action::XDP_TX
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
