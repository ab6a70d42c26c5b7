//! What a worker does with frames. Never IO: the worker receives before it and sends after it.

use lb_core::slow::{Input, Output};

use super::XskInterface;

/// One worker's packet logic. It lives as long as its worker: a restarted one gets a new one.
pub trait Handler: Send {
    /// Handles packets that have come, in order, at most [`BATCH`](super::BATCH). `now_ns` is [`monotonic_ns`](super::monotonic_ns).
    fn batch(&mut self, now_ns: u64, inputs: &[Input<'_>], output: &mut Output);

    /// Does what is due: called when the deadline has passed, and when the slow path was poked.
    fn turn(&mut self, now_ns: u64, output: &mut Output);

    /// When something is due next; asked after every call.
    fn deadline(&self) -> Option<u64>;
}

/// Makes the handler of the worker of a queue.
pub type MakeHandler = dyn Fn(&XskInterface, u32) -> Box<dyn Handler> + Send + Sync;
