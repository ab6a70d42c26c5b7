//! Next hops under a real kernel: every change of routes, links and neighbours reaches the view, and in what time.

mod bed;
mod changes;
mod neighbours;
mod scale;
