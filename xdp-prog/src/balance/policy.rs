//! Who may send to a VIP, and how much. Each rule is dead code while its feature is off.

use super::is_on;
use crate::{
    abi::{LimitState, VipMeta, VipOptions, feature, setting},
    limit,
    machine::{BalancerTables, Frame, load, word},
    verdict::Verdict,
    wire::{PROTO_TCP, TCP_ACK, TCP_FLAGS, TCP_SYN},
};

/// Admits the packet or says why not. `source` gives the two halves of the source address as numbers; `l4` is where the
/// transport header begins.
#[inline(always)]
pub(super) fn admit<M: Frame + BalancerTables>(
    machine: &mut M,
    meta: VipMeta,
    source: impl Fn() -> [u64; 2],
    protocol: u8,
    l4: usize,
) -> Result<(), Verdict> {
    if is_on::<{ feature::DENIED_SOURCES }>(machine) {
        let [high, low] = source();
        let Some(denied) = machine.setting(setting::DENIED_SOURCES) else {
            return Err(Verdict::DropInternal);
        };
        // SAFETY: a pointer from a map lookup, aligned.
        if machine.set_contains(unsafe { word(denied) }, high, low) {
            return Err(Verdict::DropSourceDenied);
        }
    }
    if !is_on::<{ feature::SOURCE_RANGES | feature::LIMITS }>(machine) || !meta.has(VipMeta::OPTIONS) {
        return Ok(());
    }
    let vip = meta.vip().0;
    let Some(options) = machine.options(vip) else {
        return Err(Verdict::DropInternal);
    };
    if is_on::<{ feature::SOURCE_RANGES }>(machine) {
        // SAFETY: a pointer from a map lookup, aligned.
        let allowed = unsafe { word(&raw const (*options).allowed_sources) };
        let [high, low] = source();
        if allowed != 0 && !machine.set_contains(allowed, high, low) {
            return Err(Verdict::DropSourceNotAllowed);
        }
    }
    if is_on::<{ feature::LIMITS }>(machine) {
        let Some(state) = machine.limit_state(vip) else {
            return Err(Verdict::DropInternal);
        };
        return within_limits(machine, options, state, protocol, l4);
    }
    Ok(())
}

#[inline(always)]
fn within_limits<M: Frame + BalancerTables>(
    machine: &M,
    options: *const VipOptions,
    state: *mut LimitState,
    protocol: u8,
    l4: usize,
) -> Result<(), Verdict> {
    let now = machine.jiffies();
    // SAFETY: pointers from map lookups, aligned; the state is this CPU's own.
    unsafe {
        let rate = word(&raw const (*options).packet_rate);
        if rate != 0 {
            let burst = word(&raw const (*options).packet_burst);
            if !limit::take(
                &mut (*state).packet_tokens,
                &mut (*state).packet_jiffy,
                rate,
                burst,
                now,
            ) {
                return Err(Verdict::DropPacketLimit);
            }
        }
        let rate = word(&raw const (*options).syn_rate);
        if rate != 0 && protocol == PROTO_TCP {
            if l4 + TCP_FLAGS + 1 > machine.end() {
                return Err(Verdict::DropMalformed);
            }
            let flags: u8 = load(l4 + TCP_FLAGS);
            let burst = word(&raw const (*options).syn_burst);
            if flags & (TCP_SYN | TCP_ACK) == TCP_SYN
                && !limit::take(&mut (*state).syn_tokens, &mut (*state).syn_jiffy, rate, burst, now)
            {
                return Err(Verdict::DropSynLimit);
            }
        }
    }
    Ok(())
}
