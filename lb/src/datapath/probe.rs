//! Running a loaded program on one frame, without an interface: BPF_PROG_TEST_RUN.
//!
//! Never resets the packet between repeats, and the kernel does not either: with `repeat > 1` an encapsulating program
//! sees its own output after the first run. Redirects and `XDP_TX` are reported, not carried out.

use std::time::Duration;

use aya::programs::{TestRun as _, TestRunOptions};
use zerocopy::{Immutable, IntoBytes};

use super::{DatapathError, Program, program::io_error};

/// Room for what a program puts in front of a frame: XDP has 256 bytes of headroom.
const HEADROOM: usize = 256;

/// What came of a test run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned: an `XDP_*` action.
    pub retval: u32,
    /// The frame as the program left it, metadata in front of it included.
    pub data_out: Vec<u8>,
    /// Mean time of one run, by the kernel's own clock; meaningful with many repeats only.
    pub duration: Duration,
}

/// Where a test frame pretends to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Interface index in the calling thread's network namespace; 0: the loopback device, as without this.
    pub ifindex: u32,
    /// Receive queue.
    pub queue: u32,
}

/// `struct xdp_md` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Program {
    /// Runs the program `repeat` times on a frame (at least 14 bytes) that seems to come from nowhere in particular.
    ///
    /// # Errors
    ///
    /// [`DatapathError::TestRun`].
    pub fn test_run(&self, frame: &[u8], repeat: u32) -> Result<TestRun, DatapathError> {
        self.run(frame, repeat, None)
    }

    /// As [`Program::test_run`], with a frame that seems to come from an interface.
    ///
    /// # Errors
    ///
    /// [`DatapathError::TestRun`], also when there is no such interface or queue.
    pub fn test_run_from(&self, ingress: Ingress, frame: &[u8], repeat: u32) -> Result<TestRun, DatapathError> {
        let context = XdpMd {
            data: 0,
            data_end: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            data_meta: 0,
            ingress_ifindex: ingress.ifindex,
            rx_queue_index: ingress.queue,
            egress_ifindex: 0,
        };
        self.run(frame, repeat, Some(context.as_bytes()))
    }

    fn run(&self, frame: &[u8], repeat: u32, context: Option<&[u8]>) -> Result<TestRun, DatapathError> {
        let mut data_out = vec![0; frame.len() + HEADROOM];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut data_out),
            ctx_in: context,
            repeat,
            ..TestRunOptions::default()
        };
        let result = self.xdp()?.test_run(options).map_err(|error| DatapathError::TestRun {
            program: self.name(),
            length: frame.len(),
            source: io_error(error),
        })?;
        data_out.truncate(result.data_size_out as usize);
        Ok(TestRun {
            retval: result.return_value,
            data_out,
            duration: result.duration,
        })
    }
}
