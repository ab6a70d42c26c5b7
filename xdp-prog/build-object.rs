//! Builds this package's eBPF programs from another crate's build script.
//!
//! Included by `#[path]` from `lb/build.rs` and `lb/lab/build.rs`, so that a plain `cargo build` is never stale and one
//! toolchain serves both halves. All callers share one target directory (`target/bpf`): cargo's own lock serialises them and
//! `core` is built once.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// Builds the named bins of `xdp-prog` and copies each to `$OUT_DIR/<bin>`.
///
/// # Errors
///
/// When cargo or `bpf-linker` is missing or the program does not compile; the message says what to run.
pub(crate) fn build(bins: &[&str]) -> Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?);
    let root = manifest
        .ancestors()
        .find(|dir| dir.join("xdp-prog/Cargo.toml").exists())
        .context("no xdp-prog/ above this crate")?
        .to_path_buf();
    let out_dir = PathBuf::from(env::var("OUT_DIR").context("OUT_DIR")?);
    for input in [
        "xdp-prog/src",
        "xdp-prog/Cargo.toml",
        "xdp-prog/build-object.rs",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }

    // OUT_DIR is <target>/<profile>/build/<crate>-<hash>/out: the shared directory sits beside the profiles.
    let target_dir = out_dir
        .ancestors()
        .nth(4)
        .map_or_else(|| out_dir.join("bpf"), |target| target.join("bpf"));
    let endian = env::var("CARGO_CFG_TARGET_ENDIAN").context("CARGO_CFG_TARGET_ENDIAN")?;
    let triple = match endian.as_str() {
        "little" => "bpfel-unknown-none",
        "big" => "bpfeb-unknown-none",
        other => bail!("CARGO_CFG_TARGET_ENDIAN={other}: not an endianness that eBPF knows"),
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH")?;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
    ]
    .join("\u{1f}");

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&root)
        .args([
            "build",
            "--package",
            "xdp-prog",
            "--release",
            "--locked",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", triple, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_TERM_COLOR", "never");
    // What the outer cargo set for the host build must not leak into the inner one (clippy and miri wrap rustc).
    for key in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_MAKEFLAGS",
        "MAKEFLAGS",
    ] {
        cargo.env_remove(key);
    }
    for bin in bins {
        cargo.args(["--bin", bin]);
    }
    let output = cargo.output().with_context(|| format!("cannot run {cargo:?}"))?;
    if !output.status.success() {
        bail!(
            "building the eBPF object failed ({}); if bpf-linker or rust-src is missing, run `make setup`\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for bin in bins {
        copy(&target_dir.join(triple).join("release").join(bin), &out_dir.join(bin))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
