//! How long a jiffy is, and how many there have been: limits and the ages of flows count in jiffies, and only user space knows
//! seconds.

use std::{io, mem::MaybeUninit, time::Duration};

use aya::{EbpfLoader, include_bytes_aligned};
use xdp_prog::abi::tick_shift;

use super::{DatapathError, Program};

static CLOCK_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/clock"));

/// The kernel's jiffies, from the monotonic clock: one follows the other (kernel/time/tick-sched.c, `tick_do_update_jiffies64`), at a
/// distance that is the same until the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jiffies {
    hz: u32,
    /// Jiffies when the monotonic clock began.
    offset: u64,
}

impl Jiffies {
    /// Asks the kernel, by a program that returns them.
    ///
    /// # Errors
    ///
    /// Those of loading and running a program.
    pub fn calibrate() -> Result<Self, DatapathError> {
        const OBJECT: &str = "clock";
        let ebpf = EbpfLoader::new()
            .load(CLOCK_OBJECT)
            .map_err(|error| DatapathError::Object {
                object: OBJECT,
                source: Box::new(error),
            })?;
        let program = Program::load(OBJECT, "vipline_clock", ebpf)?;
        let half = |shift: u8| {
            let mut frame = [0; 64];
            frame[0] = shift;
            program.test_run(&frame, 1).map(|run| u64::from(run.retval))
        };
        let hz = jiffies_per_second()?;
        let mut high = half(32)?;
        loop {
            let low = half(0)?;
            let now = monotonic();
            let again = half(32)?;
            if again == high {
                let offset = (high << 32 | low).wrapping_sub(jiffies(now, hz));
                return Ok(Self { hz, offset });
            }
            // The lower half has overflowed between the two.
            high = again;
        }
    }

    /// Jiffies a second.
    pub fn hz(self) -> u32 {
        self.hz
    }

    /// Jiffies at a moment of the monotonic clock, in nanoseconds; never 0, which token buckets take for *never used*.
    pub fn at(self, monotonic_ns: u64) -> u64 {
        jiffies(Duration::from_nanos(monotonic_ns), self.hz)
            .wrapping_add(self.offset)
            .max(1)
    }

    /// Jiffies by now.
    pub fn now(self) -> u64 {
        jiffies(monotonic(), self.hz).wrapping_add(self.offset)
    }

    /// Ticks by now, as the program counts them.
    pub fn ticks(self) -> u32 {
        (self.now() >> tick_shift(self.hz)) as u32
    }
}

fn jiffies(time: Duration, hz: u32) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(hz) / 1_000_000_000).unwrap_or(u64::MAX)
}

fn monotonic() -> Duration {
    let now = nix::time::ClockId::CLOCK_MONOTONIC.now();
    // The clock is always there.
    now.map(Duration::from).unwrap_or_default()
}

/// Jiffies per second (`CONFIG_HZ`) of the running kernel.
///
/// The coarse clocks tick once per jiffy and say so: their resolution is the kernel's `TICK_NSEC`, which is 1/HZ
/// (kernel time/posix-timers.c, `posix_get_coarse_res`). So nothing has to be measured, and no configuration file read.
///
/// # Errors
///
/// clock_getres(2)'s.
pub fn jiffies_per_second() -> Result<u32, DatapathError> {
    let mut resolution = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel writes one timespec to a place that has room for one.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, resolution.as_mut_ptr()) } != 0 {
        return Err(DatapathError::Clock {
            source: io::Error::last_os_error(),
        });
    }
    // SAFETY: the call succeeded, so it has written the value.
    let resolution = unsafe { resolution.assume_init() };
    hertz(resolution.tv_sec, resolution.tv_nsec).ok_or_else(|| DatapathError::Clock {
        source: io::ErrorKind::InvalidData.into(),
    })
}

/// 1/HZ as the kernel rounds it, back to HZ.
fn hertz(seconds: i64, nanoseconds: i64) -> Option<u32> {
    const SECOND: i64 = 1_000_000_000;
    (seconds == 0 && (1..=SECOND).contains(&nanoseconds))
        .then(|| (SECOND + nanoseconds / 2) / nanoseconds)
        .and_then(|hertz| u32::try_from(hertz).ok())
}

#[cfg(test)]
mod tests {
    use super::{Jiffies, hertz, jiffies, jiffies_per_second, monotonic};

    #[test]
    fn every_hz_that_linux_offers_survives_rounding() {
        for hz in [24_u32, 48, 100, 128, 250, 256, 300, 1_000, 1_024] {
            // include/vdso/jiffies.h: TICK_NSEC
            let tick = (1_000_000_000 + i64::from(hz) / 2) / i64::from(hz);
            assert_eq!(hertz(0, tick), Some(hz));
        }
        assert_eq!(hertz(0, 0), None);
        assert_eq!(hertz(1, 0), None);
    }

    #[test]
    fn this_kernel_has_a_plausible_hz() {
        let hz = jiffies_per_second().unwrap();
        assert!((24..=2_000).contains(&hz), "{hz}");
    }

    #[test]
    fn jiffies_are_the_kernels_and_go_on_as_it_says() {
        if !lab::require_root().unwrap() {
            return;
        }
        let clock = Jiffies::calibrate().unwrap();
        let again = Jiffies::calibrate().unwrap();
        assert!(clock.offset.abs_diff(again.offset) <= 1, "{clock:?} {again:?}");
        // INITIAL_JIFFIES: the lower 32 bits overflow five minutes after boot, if they began at 0.
        let five_minutes = 300 * u64::from(clock.hz);
        let expected = u64::from(0_u32.wrapping_sub(five_minutes as u32)) + jiffies(monotonic(), clock.hz);
        let now = clock.at(monotonic().as_nanos() as u64);
        assert!(now.abs_diff(expected) < u64::from(clock.hz), "{now} {expected}");
    }
}
