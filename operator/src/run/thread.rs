//! The operator on a thread of its own, for whoever is not async.
//!
//! Never shares a runtime: killing it stops all of it.

use std::{net::SocketAddr, sync::mpsc, thread::JoinHandle, time::Duration};

use kube::{Client, Config};
use tokio::sync::oneshot;

use super::{Error, Options, serve_with};

/// A running operator. Dropping it kills it.
#[derive(Debug)]
pub struct Operator {
    stop: Option<oneshot::Sender<Stop>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    address: Option<SocketAddr>,
}

#[derive(Debug)]
enum Stop {
    Gracefully,
    AtOnce,
}

impl Operator {
    /// Starts it; returns when the HTTP port is open, where there is one.
    pub fn start(config: Config, options: Options) -> Result<Self, Error> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("vipline-operator".to_owned())
            .spawn(move || run(config, options, stopped, tell))
            .map_err(Error::Start)?;
        let mut operator = Self {
            stop: Some(stop),
            thread: Some(thread),
            address: None,
        };
        match told.recv() {
            Ok(address) => operator.address = address,
            // It ended before it listened.
            Err(_) => return Err(operator.join().err().unwrap_or(Error::Stopped)),
        }
        Ok(operator)
    }

    /// Where its HTTP server is.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Whether it runs still: a fault point or a lost Lease ends it.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until it ends of itself.
    pub fn join(mut self) -> Result<(), Error> {
        self.ended()
    }

    /// Stops it as SIGTERM does: writes in flight are finished, the Lease is given back.
    pub fn shut_down(mut self) -> Result<(), Error> {
        self.send(Stop::Gracefully);
        self.ended()
    }

    /// Stops it at once, as SIGKILL does: nothing is finished and nothing is given back.
    pub fn kill(mut self) {
        self.send(Stop::AtOnce);
        drop(self.ended());
    }

    fn send(&mut self, stop: Stop) {
        if let Some(channel) = self.stop.take() {
            // It may have ended already.
            drop(channel.send(stop));
        }
    }

    fn ended(&mut self) -> Result<(), Error> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(end)) => end,
            Some(Err(_)) => Err(Error::Stopped),
            None => Ok(()),
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.send(Stop::AtOnce);
        drop(self.ended());
    }
}

fn run(
    config: Config,
    options: Options,
    stopped: oneshot::Receiver<Stop>,
    tell: mpsc::Sender<Option<SocketAddr>>,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let end = runtime.block_on(async {
        // A client belongs to the runtime that it was made in.
        let client = Client::try_from(config).map_err(|error| Error::Start(std::io::Error::other(error)))?;
        let (graceful, shutdown) = oneshot::channel();
        let serve = serve_with(
            client,
            options,
            async { drop(shutdown.await) },
            // Whoever started it waits for this, or has panicked.
            move |address| _ = tell.send(address),
        );
        let mut serve = std::pin::pin!(serve);
        tokio::select! {
            end = &mut serve => return end,
            stop = stopped => match stop {
                Ok(Stop::Gracefully) => drop(graceful.send(())),
                Ok(Stop::AtOnce) | Err(_) => return Ok(()),
            },
        }
        serve.await
    });
    runtime.shutdown_timeout(Duration::ZERO);
    end
}
