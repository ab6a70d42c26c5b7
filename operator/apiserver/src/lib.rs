//! A double of the Kubernetes API server, for tests and benchmarks.
//!
//! Never a part of what is shipped, and never more lenient than a real server in what it knows: tests that pass on it are to
//! pass on a real one. What it does not do (webhooks, conversion, aggregated discovery, protobuf, controllers other than those
//! of [`Builder::chore_delay`]) is refused or absent.
//!
//! | room | what |
//! |---|---|
//! | `server`, `endpoint`, `tls` | the handle, listeners |
//! | `http`, `paths`, `answer`, `discovery`, `view`, `table` | the protocol |
//! | `store` | objects, history, the counter of revisions |
//! | `list`, `watch`, `selector` | reading |
//! | `writes`, `metadata`, `patch` | writing |
//! | `apply`, `merge`, `fields`, `shape` | server-side apply |
//! | `resource`, `typed`, `kinds`, `service`, `events` | builtin kinds |
//! | `definition`, `crd`, `schema`, `cel` | custom resources |
//! | `admission`, `rbac`, `identity` | who may |
//! | `chores` | what controllers do: garbage, namespaces |
//! | `faults`, `counts` | what tests ask for |

#![forbid(unsafe_code)]

mod admission;
mod answer;
mod apply;
mod cel;
mod chores;
mod counts;
mod crd;
mod definition;
mod discovery;
mod endpoint;
mod events;
mod failure;
mod faults;
mod fields;
mod http;
mod identity;
mod kinds;
mod list;
mod merge;
mod metadata;
mod patch;
mod paths;
mod rbac;
mod resource;
mod schema;
mod selector;
mod server;
mod service;
mod shape;
mod store;
mod table;
mod tls;
mod typed;
mod view;
mod watch;
mod writes;

pub use counts::{Asked, Counts};
pub use endpoint::Endpoint;
pub use failure::Failure;
pub use faults::Faults;
pub use identity::Identity;
pub use server::{ApiServer, Builder};
pub use tls::Authority;
