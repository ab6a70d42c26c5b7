//! May this process build a lab at all?

use anyhow::{Result, bail};
use nix::sched::{CloneFlags, unshare};

/// Checks that this process may make network namespaces and load programs. Every lab test starts with it:
///
/// ```no_run
/// fn main() -> anyhow::Result<()> {
///     if !lab::require_root()? {
///         return Ok(());
///     }
///     // ...
///     Ok(())
/// }
/// ```
///
/// `Ok(true)`: go on. `Ok(false)`: not allowed here; `skipped: needs root` has been written to stderr, and the test returns.
///
/// # Errors
///
/// When not allowed and `REQUIRE_ROOT=1` is set (as CI does): then a skipped test is a failed one.
pub fn require_root() -> Result<bool> {
    // On a thread of its own: the unshare must not move the caller.
    let allowed = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    if matches!(allowed, Ok(Ok(()))) {
        return Ok(true);
    }
    if std::env::var_os("REQUIRE_ROOT").is_some_and(|value| value == "1") {
        bail!("this test needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF), and REQUIRE_ROOT=1 forbids to skip it");
    }
    #[expect(clippy::print_stderr, reason = "what a skipped test says, to whoever ran it")]
    {
        eprintln!("skipped: needs root");
    }
    Ok(false)
}
