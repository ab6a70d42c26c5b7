//! Configuration files, from text to types: what comes out needs no further checks.
//!
//! Never reads a file, an interface or a clock; never panics, whatever the bytes; never stops at the first error. Files are
//! small trusted-but-fallible input: every error says where, what and what to do, all at once, in the order of the file.
//!
//! | module | what it reads |
//! |---|---|
//! | [`LbConfig`] | the LB node's file |
//! | [`NodeConfig`] | the worker agent's file |
//! | [`reload`] | decides what a new file means for a running LB node |
//! | `raw`, `read` | text to tree, tree to values, noting every error |
//! | `errors`, `problem`, `words` | what is wrong, and how it is said |
//! | `warning` | what is allowed and said loudly |
//! | the others | one key each |

mod address;
mod bfd;
mod bgp;
mod capacity;
mod encap;
mod errors;
mod health;
mod interface;
mod l2;
mod lb;
mod metrics;
mod node;
mod problem;
mod raw;
mod read;
pub mod reload;
mod seed;
mod sets;
mod slow_path;
mod transit;
mod tunnel;
mod vips;
mod warning;
mod words;

use std::path::{Path, PathBuf};

pub use address::not_unicast;
pub use bfd::BfdConfig;
pub use bgp::{BGP_PORT, BgpConfig, BgpPeer, BgpProblem, MAX_BGP_PEERS, Password, Reach};
pub use capacity::{Capacity, MAX_CAPACITY_BACKENDS, MAX_CAPACITY_RANGES, MAX_CAPACITY_SEGMENTS, MAX_CAPACITY_VIPS};
pub use encap::{Encap, PREFIX_LENGTHS_V4, PREFIX_LENGTHS_V6, PrefixLengths};
pub use errors::{ConfigError, ConfigErrors, MAX_KEPT_ERRORS, MAX_PRINTED_ERRORS, Place};
pub use health::{MAX_PROBE_BODY_BYTES, MAX_PROBE_HOST_BYTES, MAX_PROBE_PATH_BYTES};
pub use interface::{AttachMode, Interface, MAX_INTERFACE_NAME_BYTES};
pub use l2::{L2Config, L2Group, MAX_GROUP_MEMBERS};
pub use lb::{DEFAULT_LB_SOCKET, LbConfig, Protection};
pub use node::{DEFAULT_NODE_SOCKET, NodeConfig};
pub use problem::Problem;
pub use raw::MAX_CONFIG_BYTES;
pub use seed::{SEED_DIGITS, Seed, SeedError, SeedKey, parse_seed};
pub use sets::MAX_NAME_BYTES;
pub use slow_path::{
    FRAME_BYTES, MAX_BUSY_POLL_US, MAX_CPU, MAX_FRAGMENT_BYTES, MAX_FRAGMENT_DATAGRAMS, MAX_FRAMES_PER_QUEUE,
    MAX_HELD_FRAMES, MAX_SLOW_RATE, MAX_SLOW_TIMEOUT_MS, MIN_FRAGMENT_BYTES, MIN_FRAMES_PER_QUEUE, MIN_SLOW_TIMEOUT_MS,
    SlowPathConfig, XskMode, xdp_budgets,
};
pub use transit::{MAX_FLOW_RECORDS, MAX_IDLE_TIMEOUT_S, MAX_TRANSIT_S, MIN_FLOW_RECORDS, TransitConfig};
pub use warning::Warning;
pub use words::{Kind, LaterMode, NotUnicast, QUOTED_CHARS, Quoted};

use read::{At, Report};

/// Longest path of a Unix socket: `sun_path` without the closing zero (unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A file's bytes as text.
///
/// # Errors
///
/// Longer than [`MAX_CONFIG_BYTES`], or not UTF-8. Read no more than `MAX_CONFIG_BYTES + 1` bytes to find out.
pub fn text(bytes: &[u8]) -> Result<&str, ConfigErrors> {
    let whole_file = |problem| {
        ConfigErrors::one(ConfigError {
            path: String::new(),
            place: None,
            problem,
        })
    };
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(whole_file(Problem::TooLarge { bytes: bytes.len() }));
    }
    str::from_utf8(bytes).map_err(|error| {
        whole_file(Problem::NotUtf8 {
            valid_bytes: error.valid_up_to(),
        })
    })
}

fn read_file<T>(yaml: &str, read: impl FnOnce(&At<'_>) -> Option<T>) -> Result<T, ConfigErrors> {
    let tree = raw::parse(yaml)?;
    let report = Report::default();
    let value = read(&At::root(&tree, &report));
    report.finish(yaml, value)
}

fn absolute_path(at: &At<'_>) -> Option<PathBuf> {
    let text = at.text()?;
    let path = Path::new(text);
    if path.is_absolute() && !text.contains('\0') {
        Some(path.to_owned())
    } else {
        at.fail(Problem::NotAbsolute {
            value: Quoted::new(text),
        })
    }
}

fn socket_path(at: &At<'_>) -> Option<PathBuf> {
    let path = absolute_path(at)?;
    let bytes = path.as_os_str().len();
    if bytes > MAX_SOCKET_PATH_BYTES {
        at.fail(Problem::SocketPathTooLong { bytes })
    } else {
        Some(path)
    }
}
