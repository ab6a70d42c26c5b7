//! The slow round over all Services.
//!
//! Never hurries: an LB node that leaves changes the condition of every Service, and 10,000 writes at once would be a storm. It looks
//! at many Services a second and lets a few of those be written that have something to write.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};

use super::{room::Room, state};
use crate::{Subject, decide::Next};

/// Between two steps.
const STEP: Duration = Duration::from_millis(250);
/// Services looked at in a step: 10,000 in ten seconds.
const LOOKS: usize = 250;
/// Services handed to the workers in a step: 20 a second.
const WRITES: usize = 5;

/// The same alarm is said so often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The seed's alarm.
#[derive(Default)]
struct Alarm {
    said: Option<(String, Instant)>,
}

impl Alarm {
    fn look(&mut self, room: &Room) {
        let alarm = room.read(|index| state::seed_alarm(&index.seed()));
        room.metrics.seed_lost(alarm.is_some());
        let Some(words) = alarm else {
            self.said = None;
            return;
        };
        let fresh = |(said, when): &(String, Instant)| *said == words && when.elapsed() < SAY_AGAIN;
        if !self.said.as_ref().is_some_and(fresh) {
            tracing::error!("{words}");
            self.said = Some((words, Instant::now()));
        }
    }
}

/// Goes round for ever.
pub(super) async fn run(room: Arc<Room>) {
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    let mut alarm = Alarm::default();
    loop {
        ticks.tick().await;
        alarm.look(&room);
        let keys = room.read(|index| index.refresh(last.as_ref(), LOOKS));
        let mut behind = Vec::new();
        for key in keys {
            let subject = Subject::Service(key.clone());
            last = Some(key);
            if matches!(room.decide(&subject, Timestamp::now()), Next::Do(..)) {
                behind.push(subject);
                if behind.len() == WRITES {
                    break;
                }
            }
        }
        room.queue.add_idle(behind);
    }
}
