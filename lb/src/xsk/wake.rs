//! Waking a worker that sleeps in poll(2). Never carries data: who is woken looks for what there is to do.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A doorbell. Ringing one that has been rung already costs no system call.
#[derive(Debug)]
pub(super) struct Wake {
    event: EventFd,
    rung: AtomicBool,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            rung: AtomicBool::new(false),
        })
    }

    /// After the work has been put where the sleeper finds it.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Only fails when the counter is full: then it is readable, which is what is wanted.
            let _ = self.event.write(1);
        }
    }

    /// Before looking for work. First the counter, then the flag: the other way round, a ring between the two would leave the flag
    /// up on an empty counter, and nobody would ever write it again.
    pub(super) fn clear(&self) {
        let _ = self.event.read();
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// Whether it has been rung. Where it is not, a late write may still wake: clear whatever woke.
    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd as _, sync::atomic::Ordering};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::Wake;

    fn wakes(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(wake.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_bell_wakes_until_it_is_cleared() {
        let wake = Wake::new().unwrap();
        assert!(!wakes(&wake));
        wake.ring();
        wake.ring();
        assert!(wakes(&wake) && wake.is_rung());
        wake.clear();
        assert!(!wakes(&wake) && !wake.is_rung());
        wake.ring();
        assert!(wakes(&wake));
    }

    #[test]
    fn a_write_that_comes_late_wakes_without_the_flag_until_it_is_cleared() {
        let wake = Wake::new().unwrap();
        // The two halves of `ring`, and what the sleeper does in between.
        assert!(!wake.rung.swap(true, Ordering::AcqRel));
        wake.clear();
        wake.event.write(1).unwrap();
        assert!(
            wakes(&wake) && !wake.is_rung(),
            "so the flag alone does not say whether to clear"
        );
        wake.clear();
        assert!(!wakes(&wake));
    }
}
