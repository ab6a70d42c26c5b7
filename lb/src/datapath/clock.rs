//! How long a jiffy is: limits are token buckets on jiffies, and only user space knows seconds.

use std::{io, mem::MaybeUninit};

use super::DatapathError;

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
    use super::{hertz, jiffies_per_second};

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
}
