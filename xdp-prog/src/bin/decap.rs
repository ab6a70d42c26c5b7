//! The worker node's XDP program. All logic is in the library; here it meets its maps.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
    use xdp_prog::{decap, kernel::action};

    xdp_prog::program!();

    /// Takes the outer header off and hands the packet to the kernel.
    #[xdp(frags)]
    pub(crate) fn vipline_decap(ctx: XdpContext) -> u32 {
        let mut machine = Machine::new(ctx);
        let verdict = decap::run(&mut machine);
        Machine::count(verdict);
        action(verdict, xdp_action::XDP_DROP)
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
