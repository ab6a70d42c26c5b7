//! A running capture: the thread that carries samples from the program's rings to the client.
//!
//! Never touches tables, and never makes the main loop wait: a client that takes nothing lets the rings run full, which the program
//! counts, and is given up after [`STALLED`]. The program is put in place and taken away by the main loop (`lb/capture.rs`).

mod work;

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender};
use lb_core::desired::{BackendId, VipKey};
use tokio::sync::oneshot;

use crate::{
    control::{CaptureEnd, CaptureEvent},
    datapath::SampleRing,
};
use work::Work;

/// Longest that a client may take nothing.
const STALLED: Duration = Duration::from_secs(30);
/// What indices in samples mean. It changes with the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// VIPs by their index.
    pub(super) vips: BTreeMap<u64, VipKey>,
    /// Backends by their index.
    pub(super) backends: BTreeMap<u64, BackendId>,
    /// Interfaces by theirs.
    pub(super) interfaces: BTreeMap<u64, String>,
}

/// News for the thread.
pub(super) struct Update {
    /// What indices mean from now on.
    pub(super) names: Names,
    /// Rings of a program that took over; those before it have nothing more to say.
    pub(super) rings: Option<Vec<SampleRing>>,
}

/// How the thread ended.
pub(super) struct Ended {
    /// Where the end can be told, if anywhere.
    pub(super) client: Option<UnixStream>,
    /// Samples sent.
    pub(super) samples: u64,
    /// Why, where it was not the client who had enough.
    pub(super) error: Option<String>,
}

/// The thread before it runs: dropping it ends the capture as well.
pub(super) struct Pump {
    updates: Receiver<Update>,
    ended: oneshot::Sender<Ended>,
    /// Only packets of this address.
    address: Option<IpAddr>,
    /// Most samples.
    count: u64,
}

/// The main loop's end of the thread.
pub(super) struct Handle {
    /// News.
    pub(super) updates: Sender<Update>,
    /// Its end; an error when it could not even begin.
    pub(super) ended: oneshot::Receiver<Ended>,
}

impl Pump {
    /// One that sends samples of this address only, and no more than `count`.
    pub(super) fn new(address: Option<IpAddr>, count: Option<u64>) -> (Self, Handle) {
        // Few: one per reload, each taken within the time that a client may stall.
        let (sender, updates) = crossbeam::channel::unbounded();
        let (ended, receiver) = oneshot::channel();
        let pump = Self {
            updates,
            ended,
            address,
            count: count.unwrap_or(u64::MAX),
        };
        let handle = Handle {
            updates: sender,
            ended: receiver,
        };
        (pump, handle)
    }

    /// Starts the thread, which sends to `client` until it has enough, hangs up or stalls.
    pub(super) fn start(self, client: UnixStream) {
        let run = move || {
            let mut work = Work::new(self.address, self.count);
            let error = match work.run(&client, &self.updates) {
                Ok(()) => None,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    Some(format!("the client took nothing for {} s", STALLED.as_secs()))
                }
                Err(error) => Some(error.to_string()),
            };
            let ended = Ended {
                client: Some(client),
                samples: work.samples(),
                error,
            };
            // Without a main loop there is nothing to clean up.
            drop(self.ended.send(ended));
        };
        if let Err(error) = thread::Builder::new().name("capture".to_owned()).spawn(run) {
            tracing::error!(%error, "no thread for a capture");
        }
    }
}

/// Tells a client how its capture ended, without waiting for it here.
pub(super) fn tell_end(client: UnixStream, end: CaptureEnd) {
    let tell = move || {
        let mut line = serde_json::to_vec(&CaptureEvent::End(end)).unwrap_or_default();
        line.push(b'\n');
        // One that has gone away or takes nothing does not want to know.
        drop((&client).write_all(&line));
    };
    if let Err(error) = thread::Builder::new().name("capture-end".to_owned()).spawn(tell) {
        tracing::error!(%error, "no thread to end a capture");
    }
}
