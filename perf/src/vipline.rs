//! The daemon that is measured: the real one, built beside this program.

use anyhow::{Context as _, Result, ensure};

/// Its path.
///
/// # Errors
///
/// When it is not there.
pub(crate) fn vipline() -> Result<String> {
    let path = std::env::current_exe()?.with_file_name("vipline");
    ensure!(
        path.exists(),
        "{} is not there: `cargo build --release -p lb` makes it",
        path.display()
    );
    let path = path.into_os_string().into_string().ok();
    path.context("the path of this program is not UTF-8")
}
