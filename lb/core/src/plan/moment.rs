//! What a plan must know beside what is desired: the time, and what packets did meanwhile.

use std::{collections::BTreeSet, fmt};

use xdp_prog::abi::{Activity, BackendIndex, FlowLives};

use super::Table;
use crate::{desired::BackendId, health::Overlay, transit::Timeouts};

/// Default of [`Timeouts::tcp_idle`], in seconds: longer than the two hours after which a host asks whether its peer still lives
/// (RFC 1122, 4.2.3.6).
pub const TCP_IDLE_S: u32 = 7_500;
/// Default of [`Timeouts::udp_idle`], in seconds (RFC 4787, REQ-5: two minutes at least).
pub const UDP_IDLE_S: u32 = 120;
/// Default of [`Timeouts::transit_max`], in seconds.
pub const TRANSIT_MAX_S: u32 = 24 * 3_600;

/// When it is, and what packets did to slots in transit.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// Ticks, as the program counts them ([`xdp_prog::abi::tick_shift`]).
    pub now: u32,
    /// The same by the clock by which transits are published: seconds since 1970.
    pub unix_s: u64,
    /// How long flows may be silent, in ticks.
    pub timeouts: Timeouts,
    /// How long records of flows live, for the program.
    pub lives: FlowLives,
    /// Reads what packets noted of a slot of a wide table.
    pub activity: &'a dyn Fn(Table, usize) -> Activity,
    /// Backends at which nothing lives any more: confirmed, not suspected. Those that [`Self::overlay`] says are dead beside.
    pub dead: &'a BTreeSet<BackendId>,
    /// Whether flow records name a backend that nothing desired names any more: it must stay. Only asked while there are VIPs with a
    /// scheduler, whose flows may live at whoever was there.
    pub named: &'a dyn Fn(BackendIndex) -> bool,
    /// Backends that are not eligible, for VIPs with checks; `None`: all are.
    pub overlay: Option<&'a Overlay>,
    /// Since the moment before, a datagram in a learning window found no room in the flow table.
    pub window_too_short: bool,
}

impl fmt::Debug for Moment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            now,
            unix_s,
            timeouts,
            lives,
            activity: _,
            dead,
            named: _,
            overlay,
            window_too_short,
        } = self;
        f.debug_struct("Moment")
            .field("now", now)
            .field("unix_s", unix_s)
            .field("timeouts", timeouts)
            .field("lives", lives)
            .field("dead", dead)
            .field("overlay", overlay)
            .field("window_too_short", window_too_short)
            .finish_non_exhaustive()
    }
}

impl Moment<'static> {
    /// No time has passed, nothing is dead and no packet came: all that a planner without transit must know.
    pub const STILL: Self = Self {
        now: 0,
        unix_s: 0,
        timeouts: Timeouts {
            tcp_idle: 4 * TCP_IDLE_S,
            udp_idle: 4 * UDP_IDLE_S,
            transit_max: 4 * TRANSIT_MAX_S,
        },
        lives: FlowLives::new(256, 4 * TCP_IDLE_S, 480, 4 * UDP_IDLE_S),
        activity: &|_, _| Activity::new(0, 0),
        dead: &BTreeSet::new(),
        named: &|_| false,
        overlay: None,
        window_too_short: false,
    };
}
