//! A cluster as a source: VipTables, NodeSets and the TunnelConfig of the operator's namespace.
//!
//! Never changes a table because the API server is away, forbids or does not find: what was said last holds. Never decides about
//! packets, and never writes a VipTable or a NodeSet.
//!
//! | file | what it is | IO |
//! |---|---|---|
//! | `object` | one object, as far as it is read | none |
//! | `index` | all that is watched, and what it asks of the maps | none |
//! | `guard` | a list that drops too much is not believed at once | none |

pub mod guard;
pub mod index;
pub mod object;
