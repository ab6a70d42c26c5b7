//! Waiting until no packet that is being handled now can still see what was there before.
//!
//! An XDP program runs inside an RCU read-side critical section: the driver's NAPI poll runs it with bottom halves
//! disabled, and since Linux 4.20 RCU's one flavour waits for such regions too (Documentation/RCU/checklist.rst, 7).
//! `membarrier(MEMBARRIER_CMD_GLOBAL)` is synchronize_rcu() (kernel/sched/membarrier.c), so when it returns, every
//! packet that had begun is done. It never waits for packets that begin later: those see the new state.
//!
//! Two corners. With one CPU online the call returns at once, rightly: this thread runs, so no bottom half does
//! (PREEMPT_RT, where that does not hold, takes the other way on purpose of its operator: `nohz_full`). With
//! `nohz_full` CPUs the kernel does not offer the command, and a write to a map of maps does the same wait.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    DatapathError,
    advice::{Advice, Capability},
    syscall,
};

// include/uapi/linux/membarrier.h
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for one grace period and says how long it took: 10 to 50 ms, normally.
///
/// # Errors
///
/// Those of the two system calls.
///
/// # Minimum kernel version
///
/// 4.20.
pub fn grace_period() -> Result<Duration, DatapathError> {
    let start = Instant::now();
    let waited = membarrier().or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => syscall::write_map_of_maps(),
        Some(_) | None => Err(error),
    });
    waited.map(|()| start.elapsed()).map_err(|source| {
        let advice = Advice::for_call(&source, &[Capability::Bpf], None);
        DatapathError::Grace { source, advice }
    })
}

fn membarrier() -> io::Result<()> {
    // SAFETY: membarrier takes no pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{membarrier, syscall};

    #[test]
    fn both_ways_are_offered_here_and_wait() {
        for wait in [membarrier, syscall::write_map_of_maps] {
            let start = Instant::now();
            match wait() {
                Ok(()) => assert!(
                    start.elapsed() < Duration::from_secs(5),
                    "a grace period is milliseconds"
                ),
                // Not root, or `nohz_full`: each way has a machine that it does not work on.
                Err(error) => assert!(
                    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL)),
                    "{error}"
                ),
            }
        }
    }
}
