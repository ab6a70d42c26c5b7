//! One check of one backend.

use std::time::Duration;

use lb_core::health::{Failure, Fsm, Health, MAX_STRIKES, State, Timing};
use proptest::prelude::*;

use crate::world::{SECOND, ms};

const TIMING: Timing = Timing {
    interval_ms: 1000,
    timeout_ms: 500,
    rise: 2,
    fall: 3,
    damping_ms: 5000,
    dead_after_ms: 10_000,
    startup_ms: 0,
};

/// A step each second; the states after each.
fn states(fsm: &mut Fsm, timing: &Timing, from: u64, results: &[Result<(), Failure>]) -> Vec<State> {
    let step = |(at, result): (u64, &Result<(), Failure>)| {
        fsm.step(*result, SECOND * at as u32, timing);
        fsm.state()
    };
    (from..).zip(results).map(step).collect()
}

const OK: Result<(), Failure> = Ok(());
const SILENT: Result<(), Failure> = Err(Failure::NoConnection);
const REFUSED: Result<(), Failure> = Err(Failure::Refused);
use State::{Dead, Healthy, Unhealthy, Unknown};

#[test]
fn so_many_failures_in_a_row_make_it_unhealthy_and_so_many_successes_healthy() {
    let mut fsm = Fsm::new(Duration::ZERO);
    let results = [
        OK, REFUSED, REFUSED, OK, REFUSED, REFUSED, REFUSED, OK, REFUSED, OK, OK, OK, OK, OK,
    ];
    let expected = [
        Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Unhealthy, Unhealthy, Unhealthy,
        // Two successes, and the damping has not passed; after five seconds it has.
        Unhealthy, Healthy, Healthy, Healthy,
    ];
    assert_eq!(states(&mut fsm, &TIMING, 1, &results), expected);
    assert_eq!(fsm.since(), 12 * SECOND);
    assert_eq!(fsm.last_failure(), None);
}

#[test]
fn without_any_word_it_is_eligible_until_the_first_success_or_until_failures_count() {
    let mut fsm = Fsm::new(Duration::ZERO);
    assert_eq!(
        states(&mut fsm, &TIMING, 1, &[REFUSED; 3]),
        [Unknown, Unknown, Unhealthy]
    );
    let startup = Timing {
        startup_ms: 30_000,
        ..TIMING
    };
    let mut fsm = Fsm::new(Duration::ZERO);
    let long = states(&mut fsm, &startup, 1, &[REFUSED; 30]);
    assert_eq!((&long[..29], long[29]), (&[Unknown; 29][..], Unhealthy));
    // Once it was well, the start is over.
    let mut fsm = Fsm::new(Duration::ZERO);
    assert_eq!(
        states(&mut fsm, &startup, 1, &[OK, REFUSED, REFUSED, REFUSED]),
        [Healthy, Healthy, Healthy, Unhealthy]
    );
}

#[test]
fn only_silence_that_lasts_is_death() {
    let fallen = |results: &[Result<(), Failure>]| {
        let mut fsm = Fsm::new(Duration::ZERO);
        states(&mut fsm, &TIMING, 1, &[OK]);
        states(&mut fsm, &TIMING, 2, results)
    };
    let silent = fallen(&[SILENT; 14]);
    assert_eq!(
        (silent[1], silent[2], silent[11], silent[12]),
        (Healthy, Unhealthy, Unhealthy, Dead)
    );
    // Whoever answers lives, whatever the answer is.
    assert_eq!(fallen(&[REFUSED; 100])[99], Unhealthy);
    let mut answers_once = [SILENT; 20];
    answers_once[10] = REFUSED;
    assert_eq!(fallen(&answers_once)[19], Unhealthy);
    answers_once[10] = OK;
    assert_eq!(fallen(&answers_once)[19], Unhealthy);
    assert_eq!(
        fallen(&[Err(Failure::NoSynAck); 100])[99],
        Unhealthy,
        "the node may be well"
    );
    // The kernel's word is enough by itself.
    assert_eq!(fallen(&[Err(Failure::NeighbourFailed)]), [Dead]);
    // And back.
    let mut fsm = Fsm::new(Duration::ZERO);
    states(&mut fsm, &TIMING, 1, &[SILENT; 30]);
    assert_eq!(fsm.state(), Dead);
    assert_eq!(states(&mut fsm, &TIMING, 40, &[OK, OK]), [Dead, Healthy]);
}

#[test]
fn time_alone_changes_nothing() {
    let mut fsm = Fsm::new(Duration::ZERO);
    states(&mut fsm, &TIMING, 1, &[OK, SILENT, SILENT, SILENT]);
    assert_eq!(fsm.state(), Unhealthy);
    // Nobody asked for an hour; the first outcome after that speaks for itself.
    assert_eq!(states(&mut fsm, &TIMING, 3600, &[OK]), [Unhealthy]);
    assert_eq!(
        states(&mut fsm, &TIMING, 3601, &[SILENT]),
        [Unhealthy],
        "silent again, for a moment"
    );
}

#[test]
fn who_keeps_falling_comes_back_more_and_more_slowly_and_is_forgiven_in_time() {
    let quick = Timing {
        rise: 1,
        fall: 1,
        damping_ms: 1000,
        ..TIMING
    };
    let mut fsm = Fsm::new(Duration::ZERO);
    fsm.step(OK, Duration::ZERO, &quick);
    let mut now = Duration::ZERO;
    // Falls as soon as it is back.
    let mut outages = Vec::new();
    let mut fall = |fsm: &mut Fsm, now: &mut Duration| {
        while fsm.state() != Unhealthy {
            *now += ms(100);
            fsm.step(REFUSED, *now, &quick);
        }
        let fell = *now;
        while fsm.state() != Healthy {
            *now += ms(100);
            fsm.step(OK, *now, &quick);
        }
        outages.push((*now - fell).as_millis());
    };
    (0..7).for_each(|_| fall(&mut fsm, &mut now));
    now += 11 * SECOND;
    fall(&mut fsm, &mut now);
    assert_eq!(outages, [1000, 2000, 4000, 8000, 16_000, 16_000, 16_000, 1000]);
    assert_eq!(16_000, 1000 << MAX_STRIKES);
}

fn timings() -> impl Strategy<Value = Timing> {
    let counts = (1..5u16, 1..5u16);
    let times = (0..20_000u32, 0..30_000u32, prop_oneof![Just(0), Just(30_000u32)]);
    (counts, times).prop_map(|((rise, fall), (damping_ms, dead_after_ms, startup_ms))| Timing {
        rise,
        fall,
        damping_ms,
        dead_after_ms,
        startup_ms,
        ..TIMING
    })
}

fn results() -> impl Strategy<Value = Result<(), Failure>> {
    prop_oneof![
        4 => Just(OK),
        3 => Just(SILENT),
        2 => Just(REFUSED),
        1 => Just(Err(Failure::Status(503))),
        1 => Just(Err(Failure::NeighbourFailed)),
        1 => Just(Err(Failure::NoSynAck)),
    ]
}

/// Outcomes with the time between them; runs of one kind are likely.
fn histories() -> impl Strategy<Value = Vec<(Result<(), Failure>, u64)>> {
    let run = (results(), 1..12usize, prop_oneof![0..20u64, 0..3000u64, 0..40_000u64]);
    let repeat = |(result, count, gap)| vec![(result, gap); count];
    proptest::collection::vec(run.prop_map(repeat), 0..40).prop_map(|runs| runs.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_sequence_of_outcomes_changes_its_health_faster_than_the_damping(timing in timings(), history in histories()) {
        let (mut now, mut fsm, mut last) = (Duration::ZERO, Fsm::new(Duration::ZERO), None::<Duration>);
        let mut health = fsm.state().health();
        for (result, gap) in history {
            now += ms(gap);
            let change = fsm.step(result, now, &timing);
            let after = fsm.state().health();
            prop_assert_eq!(change.is_some_and(|change| change.is_of_health()), after != health);
            if after != health {
                if let Some(last) = last {
                    prop_assert!(now - last >= ms(timing.damping_ms.into()), "after {:?}", now - last);
                }
                last = Some(now);
            }
            health = after;
        }
    }

    #[test]
    fn it_falls_only_after_so_many_failures_rises_only_after_so_many_successes_and_dies_only_in_silence(
        timing in timings(),
        history in histories(),
    ) {
        let (mut now, mut fsm) = (Duration::ZERO, Fsm::new(Duration::ZERO));
        let (mut run, mut silent): (Vec<Result<(), Failure>>, Option<Duration>) = (Vec::new(), None);
        for (result, gap) in history {
            now += ms(gap);
            if run.last().is_some_and(|last| last.is_ok() != result.is_ok()) {
                run.clear();
            }
            run.push(result);
            let is_silent = result.is_err_and(Failure::is_silence);
            silent = is_silent.then(|| silent.unwrap_or(now));
            let confirmed = result == Err(Failure::NeighbourFailed);
            if let Some(change) = fsm.step(result, now, &timing) {
                match change.to {
                    Healthy if change.from == Unknown => prop_assert!(result.is_ok()),
                    Healthy => prop_assert!(result.is_ok() && run.len() >= timing.rise.into()),
                    Unhealthy => prop_assert!(result.is_err() && run.len() >= timing.fall.into()),
                    Dead => prop_assert!(
                        confirmed || now - silent.unwrap() >= ms(timing.dead_after_ms.into()) && is_silent
                    ),
                    Unknown => prop_assert!(false, "nobody forgets"),
                }
            }
        }
    }

    #[test]
    fn whatever_was_before_what_lasts_is_seen_in_the_end(timing in timings(), history in histories(), well in any::<bool>()) {
        let (mut now, mut fsm) = (Duration::ZERO, Fsm::new(Duration::ZERO));
        for (result, gap) in history {
            now += ms(gap);
            fsm.step(result, now, &timing);
        }
        // Longer than the longest damping, the start and the wait for death together.
        let end = now + ms(20_000 << MAX_STRIKES) + 100 * SECOND;
        while now < end {
            now += SECOND;
            fsm.step(if well { OK } else { SILENT }, now, &timing);
        }
        prop_assert_eq!(fsm.state().health(), if well { Health::Eligible } else { Health::Dead });
    }
}
