//! The operator end to end: through the API alone, against the double of the API server, or against the cluster of `KUBECONFIG`.
//!
//! Never assumes what only the double fulfils: no resourceVersions, no ranges of cluster IPs, no nodes of its own making. Each
//! test has namespaces, class, pools and addresses of its own, and removes them, also when it has failed.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what was skipped and what a failed test saw is for whoever runs it"
)]

mod announcing;
mod changes;
mod cluster;
mod families;
mod installations;
#[path = "../support/lb_node.rs"]
mod lb_node;
mod leaving;
mod life;
mod look;
mod policies;
mod pools;
mod requests;
mod sharing;
