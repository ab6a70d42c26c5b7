//! What becomes of a flow record that is looked at: the daemon sweeps the flow table by this, a part at a time.
//!
//! Never touches a table, and never knows a clock: a record, and a time that the caller says.

use xdp_prog::abi::{FlowLives, FlowState, FlowWord};

/// How old, in ticks, a swept record says it is: older than any record lives, and far from where ages wrap.
const AGE: u32 = 1 << 21;
/// Ages between which a swept record may stay as it is.
const AGES: std::ops::Range<i64> = 1 << 20..1 << 22;

/// A record, looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nobody's.
    Free,
    /// A flow that lives at this backend.
    Flow(u16),
    /// A client that is remembered.
    Client,
    /// It is over: this shall stand there instead, and if the record counted, its backend has one open flow less.
    Over(FlowWord),
}

/// Looks at a record; `now` in ticks.
pub fn look(record: FlowWord, now: u32, lives: FlowLives) -> Look {
    let is_swept = record.state() == FlowState::Swept as u64;
    if record.0 == 0 || is_swept && AGES.contains(&record.age(now)) {
        Look::Free
    } else if is_swept || record.is_expired(now, lives) {
        // Without a fingerprint it is nobody's; never 0, which would say that nobody went on to the second bucket.
        Look::Over(FlowWord::new(0, 0, FlowState::Swept, now.wrapping_sub(AGE)))
    } else if record.state() == FlowState::Client as u64 {
        Look::Client
    } else {
        Look::Flow(record.backend())
    }
}

#[cfg(test)]
mod tests {
    use xdp_prog::abi::{FlowLives, FlowState, FlowWord};

    use super::{Look, look};

    const LIVES: FlowLives = FlowLives::new(256, 30_000, 480, 480);

    #[test]
    fn what_was_swept_is_free_for_ever_if_it_is_looked_at_now_and_then() {
        let mut word = FlowWord::new(0x123 << 44, 7, FlowState::Datagram, 5).marked(FlowState::SCHEDULED);
        assert_eq!(look(word, 480, LIVES), Look::Flow(7));
        assert_eq!(word.counts(), 1);
        // Twice round the 24 bits of a tick, at a look each day.
        for now in (1000..1 << 25).step_by(86_400 * 4) {
            if let Look::Over(swept) = look(word, now, LIVES) {
                word = swept;
            }
            assert_eq!(
                (word.state(), word.backend(), word.counts()),
                (FlowState::Swept as u64, 0, 0)
            );
            assert_eq!(look(word, now, LIVES), Look::Free);
            assert!(word.is_expired(now, LIVES), "a packet may have it");
        }
    }

    #[test]
    fn clients_live_as_long_as_they_were_given() {
        let timeout = 100_000;
        let tick = 50_u32
            .wrapping_add(timeout)
            .wrapping_sub(LIVES.of(FlowState::Client as u64));
        let word = FlowWord::new(0x123 << 44, 7, FlowState::Client, tick);
        assert_eq!(look(word, 50 + timeout, LIVES), Look::Client);
        assert!(matches!(look(word, 51 + timeout, LIVES), Look::Over(_)));
    }
}
