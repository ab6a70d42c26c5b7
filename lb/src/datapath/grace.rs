//! Waiting until no packet that is being handled now can still see what was there before.
//!
//! An XDP program runs inside an RCU read-side critical section: the driver's NAPI poll runs it with bottom halves disabled,
//! and since Linux 4.20 RCU's one flavour waits for such regions too (Documentation/RCU/whatisRCU.rst: "…disabling of
//! bottom halves, interrupts, or preemption are also RCU read-side critical sections"). `membarrier(MEMBARRIER_CMD_GLOBAL)` is
//! synchronize_rcu() (kernel/sched/membarrier.c), so when it returns, every packet that had begun is done.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{DatapathError, advice::Advice};

// include/uapi/linux/membarrier.h
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for one grace period and says how long it took: some milliseconds, or microseconds on a machine with one CPU online,
/// where the call itself is the barrier.
///
/// # Errors
///
/// membarrier(2)'s: EINVAL on kernels with `nohz_full` CPUs, where the command is not offered.
///
/// # Minimum kernel version
///
/// 4.20 for the meaning, 4.3 for the call.
pub fn grace_period() -> Result<Duration, DatapathError> {
    let start = Instant::now();
    // SAFETY: membarrier takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(start.elapsed());
    }
    let source = io::Error::last_os_error();
    let advice = Advice::for_call(&source, &[], None);
    Err(DatapathError::Grace { source, advice })
}
