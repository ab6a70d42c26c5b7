//! How an LB node gives its VIP addresses away so that nothing of them is lost: at first it is everybody's last choice, then nobody's,
//! then it forwards what still comes, until nothing does.
//!
//! Never knows a protocol. That routers have another way is theirs to know: what still comes when they should have taken it is counted.

use std::time::Duration;

/// How long routers have to find another way while this one is still there (RFC 8326 4.2).
pub const LAST_CHOICE: Duration = Duration::from_secs(1);
/// So long without a packet, and nothing comes any more.
pub const QUIET: Duration = Duration::from_secs(1);
/// Over how long packets are counted for a rate.
const MEASURE: Duration = Duration::from_secs(1);

/// How far a node is that gives its addresses away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Routers are asked to take another way, and segments have one.
    LastChoice,
    /// Nothing is announced; what still comes is forwarded.
    Withdrawn,
    /// It is over.
    Left {
        /// Nothing comes any more; else the patience was over while something did.
        quiet: bool,
    },
}

impl Phase {
    /// As views and metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LastChoice => "last_choice",
            Self::Withdrawn => "withdrawn",
            Self::Left { .. } => "left",
        }
    }
}

/// One such leaving. Times are those of one clock, whichever.
#[derive(Clone, Debug)]
pub struct Leave {
    since: Duration,
    until: Option<Duration>,
    phase: Phase,
    /// When a packet was seen last, by the total that it made.
    heard: (Duration, u64),
    /// Where the rate is counted from.
    mark: (Duration, u64),
    per_second: u64,
}

impl Leave {
    /// Begins now, when `forwarded` packets have been, and waits until `until` at most for the last one.
    pub fn begin(now: Duration, forwarded: u64, until: Option<Duration>) -> Self {
        Self {
            since: now,
            until,
            phase: Phase::LastChoice,
            heard: (now, forwarded),
            mark: (now, forwarded),
            per_second: 0,
        }
    }

    /// Of a node that starts, and had given everything away before: nobody knows a way through it.
    pub fn again(now: Duration, forwarded: u64, until: Option<Duration>) -> Self {
        Self {
            phase: Phase::Withdrawn,
            ..Self::begin(now, forwarded, until)
        }
    }

    /// Waits until another time, and goes on where it has stopped waiting.
    pub fn wait_until(&mut self, until: Option<Duration>) {
        self.until = until;
        if self.phase == (Phase::Left { quiet: false }) {
            self.phase = Phase::Withdrawn;
        }
    }

    /// So many packets have been forwarded by now; how far it is.
    pub fn turn(&mut self, now: Duration, forwarded: u64) -> Phase {
        if forwarded != self.heard.1 {
            self.heard = (now, forwarded);
        }
        let measured = now.saturating_sub(self.mark.0);
        if measured >= MEASURE {
            let packets = forwarded.saturating_sub(self.mark.1);
            let rate = u128::from(packets) * 1_000 / measured.as_millis().max(1);
            self.per_second = u64::try_from(rate).unwrap_or(u64::MAX);
            self.mark = (now, forwarded);
        }
        let is_late = self.until.is_some_and(|until| now >= until);
        self.phase = match self.phase {
            Phase::LastChoice if now.saturating_sub(self.since) < LAST_CHOICE => Phase::LastChoice,
            // What came until now was asked for.
            Phase::LastChoice => {
                self.heard.0 = now;
                Phase::Withdrawn
            }
            Phase::Withdrawn if now.saturating_sub(self.heard.0) >= QUIET => Phase::Left { quiet: true },
            Phase::Withdrawn if is_late => Phase::Left { quiet: false },
            Phase::Withdrawn => Phase::Withdrawn,
            Phase::Left { quiet } => Phase::Left { quiet },
        };
        self.phase
    }

    /// How far it is, as of the last turn.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Packets forwarded in a second, as measured last.
    pub fn per_second(&self) -> u64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Turns every 100 ms with so many packets by then; the phases with the times at which they began.
    fn phases(mut leave: Leave, packets: impl Fn(u64) -> u64, turns: u64) -> Vec<(u64, Phase)> {
        let mut seen = vec![(0, leave.phase())];
        for turn in 1..=turns {
            let phase = leave.turn(ms(turn * 100), packets(turn));
            if seen.last().is_none_or(|(_, last)| *last != phase) {
                seen.push((turn * 100, phase));
            }
        }
        seen
    }

    #[test]
    fn it_is_the_last_choice_first_then_withdrawn_and_left_when_nothing_comes_any_more() {
        let leave = Leave::begin(ms(0), 0, None);
        let until_1500 = |turn: u64| turn.min(15) * 1_000;
        let quiet = Phase::Left { quiet: true };
        assert_eq!(
            phases(leave, until_1500, 40),
            [(0, Phase::LastChoice), (1_000, Phase::Withdrawn), (2_500, quiet)]
        );
        // A node where nothing came anyway is as sure.
        assert_eq!(
            phases(Leave::begin(ms(0), 7, None), |_| 7, 40),
            [(0, Phase::LastChoice), (1_000, Phase::Withdrawn), (2_000, quiet)]
        );
    }

    #[test]
    fn who_is_sent_packets_all_the_same_is_left_when_the_patience_is_over_and_goes_on_with_a_new_one() {
        let mut leave = Leave::begin(ms(0), 0, Some(ms(3_000)));
        let late = Phase::Left { quiet: false };
        assert_eq!(
            phases(leave.clone(), |turn| turn, 60),
            [(0, Phase::LastChoice), (1_000, Phase::Withdrawn), (3_000, late)]
        );
        // Without patience it waits for ever.
        assert_eq!(
            phases(Leave::begin(ms(0), 0, None), |turn| turn, 600),
            [(0, Phase::LastChoice), (1_000, Phase::Withdrawn)]
        );
        for turn in 1..=30 {
            leave.turn(ms(turn * 100), turn * 10);
        }
        assert_eq!((leave.phase(), leave.per_second()), (late, 100));
        leave.wait_until(Some(ms(9_000)));
        assert_eq!(leave.turn(ms(3_100), 310), Phase::Withdrawn);
        assert_eq!(leave.turn(ms(4_100), 310), Phase::Left { quiet: true });
        assert_eq!(leave.per_second(), 9, "10 packets in 1.1 s");
    }

    #[test]
    fn a_node_that_starts_drained_was_nobodys_choice_before() {
        let leave = Leave::again(ms(0), 5, None);
        assert_eq!(
            phases(leave, |_| 5, 20),
            [(0, Phase::Withdrawn), (1_000, Phase::Left { quiet: true })]
        );
    }
}
