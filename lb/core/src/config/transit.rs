//! `transit`: whether flows are kept where they live when backends change, and for how long.
//!
//! Never per VIP but for datagrams ([`crate::desired::Vip::keeps_datagrams`]): VIPs that share backends share what is known of flows.

use xdp_prog::abi::{FLOW_WAYS, FlowLives, MAX_FLOW_BUCKETS, tick_shift};

use super::read::At;
use crate::{
    plan::{TCP_IDLE_S, TRANSIT_MAX_S, UDP_IDLE_S},
    transit::Timeouts,
};

/// Most [`TransitConfig::flow_records`]: 256 MiB.
pub const MAX_FLOW_RECORDS: u32 = (MAX_FLOW_BUCKETS * FLOW_WAYS) as u32;
/// Fewest [`TransitConfig::flow_records`]: 16 KiB.
pub const MIN_FLOW_RECORDS: u32 = 1024;
/// Longest idle timeout, in seconds: a day.
pub const MAX_IDLE_TIMEOUT_S: u32 = 86_400;
/// Longest transit, in seconds: a week.
pub const MAX_TRANSIT_S: u32 = 7 * 86_400;
/// How long a SYN's record waits for the client's answer, in seconds.
const SYN_S: u32 = 64;
/// How long a connection's record stays after its FIN or RST, in seconds: twice what a segment lives (RFC 9293, 3.4.2).
const CLOSING_S: u32 = 120;

/// `transit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransitConfig {
    /// Off: a change of backends moves the flows of the slots that it moves.
    pub enabled: bool,
    /// Longest silence of a TCP connection that is kept, in seconds, 1 to [`MAX_IDLE_TIMEOUT_S`].
    pub tcp_idle_timeout_s: u32,
    /// Longest silence of a UDP flow that is kept, in seconds, 1 to [`MAX_IDLE_TIMEOUT_S`].
    pub udp_idle_timeout_s: u32,
    /// Longest transit of a slot, in seconds, 1 to [`MAX_TRANSIT_S`].
    pub max_s: u32,
    /// Flows that can be recorded, 16 B each; rounded up to a power of two. [`MIN_FLOW_RECORDS`] to [`MAX_FLOW_RECORDS`].
    pub flow_records: u32,
}

impl Default for TransitConfig {
    /// On; 7,500 s, 120 s, 24 h; 2,097,152 records: 32 MiB.
    fn default() -> Self {
        Self {
            enabled: true,
            tcp_idle_timeout_s: TCP_IDLE_S,
            udp_idle_timeout_s: UDP_IDLE_S,
            max_s: TRANSIT_MAX_S,
            flow_records: 1 << 21,
        }
    }
}

impl TransitConfig {
    /// Buckets of the flow table minus one; a power of two minus one. One bucket while it is off.
    pub const fn flow_mask(&self) -> u64 {
        if self.enabled {
            (self.flow_records as u64).next_power_of_two() / FLOW_WAYS as u64 - 1
        } else {
            0
        }
    }

    /// The timeouts in ticks of a kernel with `hz` jiffies a second.
    pub fn timeouts(&self, hz: u32) -> Timeouts {
        Timeouts {
            tcp_idle: ticks(self.tcp_idle_timeout_s, hz),
            udp_idle: ticks(self.udp_idle_timeout_s, hz),
            transit_max: ticks(self.max_s, hz),
        }
    }

    /// How long records live, for the program.
    pub fn lives(&self, hz: u32) -> FlowLives {
        let Timeouts { tcp_idle, udp_idle, .. } = self.timeouts(hz);
        FlowLives::new(ticks(SYN_S, hz), tcp_idle, ticks(CLOSING_S, hz), udp_idle)
    }
}

/// Seconds in ticks, rounded up.
fn ticks(seconds: u32, hz: u32) -> u32 {
    let ticks = (u64::from(seconds) * u64::from(hz)).div_ceil(1 << tick_shift(hz));
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// `transit`.
pub(super) fn transit(at: &At<'_>) -> Option<TransitConfig> {
    let default = TransitConfig::default();
    at.fields(|fields| {
        let enabled = fields.or("enabled", default.enabled, |at| at.bool());
        let mut seconds = |key, default, most| fields.or(key, default, |at| at.within(1, most));
        let tcp = seconds("tcp_idle_timeout_s", default.tcp_idle_timeout_s, MAX_IDLE_TIMEOUT_S);
        let udp = seconds("udp_idle_timeout_s", default.udp_idle_timeout_s, MAX_IDLE_TIMEOUT_S);
        let max_s = seconds("max_s", default.max_s, MAX_TRANSIT_S);
        let flow_records = fields.or("flow_records", default.flow_records, |at| {
            at.within(MIN_FLOW_RECORDS, MAX_FLOW_RECORDS)
        });
        Some(TransitConfig {
            enabled: enabled?,
            tcp_idle_timeout_s: tcp?,
            udp_idle_timeout_s: udp?,
            max_s: max_s?,
            flow_records: flow_records?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::TransitConfig;

    #[test]
    fn ticks_are_a_quarter_of_a_second_or_up_to_twice_that() {
        let config = TransitConfig::default();
        for hz in [100, 250, 300, 1000] {
            let ticks = config.timeouts(hz).udp_idle;
            assert!((240..=480).contains(&ticks), "{hz}: {ticks}");
            // Never shorter than asked for.
            let shift = xdp_prog::abi::tick_shift(hz);
            assert!(u64::from(ticks) << shift >= 120 * u64::from(hz), "{hz}");
        }
    }

    #[test]
    fn the_flow_table_is_a_power_of_two_of_buckets() {
        let of = |flow_records| {
            TransitConfig {
                flow_records,
                ..TransitConfig::default()
            }
            .flow_mask()
        };
        assert_eq!([of(1024), of(1025), of(1 << 21)], [255, 511, (1 << 19) - 1]);
        let off = TransitConfig {
            enabled: false,
            ..TransitConfig::default()
        };
        assert_eq!(off.flow_mask(), 0);
    }
}
