//! The kernel's jiffies for user space: a program that is run and never attached.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::xdp, programs::XdpContext};

    /// Returns 32 bits of `bpf_jiffies64`, from the bit on that the frame's first byte says.
    #[xdp]
    pub(crate) fn vipline_clock(ctx: XdpContext) -> u32 {
        let start = ctx.data();
        // More than the byte: of `start >= end` the verifier learns nothing.
        if start + 2 > ctx.data_end() {
            return 0;
        }
        // SAFETY: inside the frame, as just compared; a helper without arguments.
        unsafe { (bpf_jiffies64() >> ((start as *const u8).read_volatile() & 63)) as u32 }
    }

    /// Nothing reaches it.
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
