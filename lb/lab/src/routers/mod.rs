//! Real BGP routers in a namespace: Debian's BIRD 2, FRR and GoBGP, started from one description, asked in parsed answers.
//! Never touches the host: each router has a mount and a PID namespace of its own, with `/run` and `/var/tmp` empty and in
//! memory, so that daemons use their usual paths and nothing is left when they go.
//!
//! ```no_run
//! use lab::routers::{Family, Injected, Neighbour, RouterConfig, RouterKind};
//!
//! # fn main() -> anyhow::Result<()> {
//! # let ns = lab::Netns::new("router")?;
//! let config = RouterConfig::new(65_001, [10, 0, 0, 1].into())
//!     .neighbour(Neighbour::new([10, 0, 0, 2].into(), 65_002))
//!     .inject(Injected::new("192.0.2.0/24".parse()?));
//! let mut router = config.start(&ns, RouterKind::Bird)?;
//! router.established([10, 0, 0, 2].into(), std::time::Duration::from_secs(10))?;
//! for route in router.routes(Family::V4)? {
//!     println!("{} via {:?}", route.prefix, route.next_hops);
//! }
//! router.kill()?;
//! # Ok(())
//! # }
//! ```
//!
//! BIRD and FRR write what they learn into the namespace's kernel table, with ECMP. **GoBGP writes nothing into it**: it has no
//! forwarding of its own, and no BFD.

mod bird;
mod config;
mod daemons;
mod frr;
mod gobgp;
mod kernel;
mod seen;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;

pub use config::{BfdPeer, BfdTimers, Family, Injected, Neighbour, RouterConfig, RouterKind};
pub use seen::{BfdSession, BfdState, Route, Session, SessionState};

use crate::Netns;
use daemons::Daemons;

/// How long a router may take until it answers questions, on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(50);

/// A router: its daemons run until [`stop`](Self::stop), [`kill`](Self::kill) or drop, and may be started again.
#[derive(Debug)]
pub struct Router {
    ns: Netns,
    kind: RouterKind,
    config: RouterConfig,
    daemons: Option<Daemons>,
}

impl RouterConfig {
    /// Starts daemons of `kind` in `ns` and waits until they answer questions.
    ///
    /// # Errors
    ///
    /// What `kind` cannot do (GoBGP: BFD), and daemons that end or do not answer, with what they said.
    pub fn start(self, ns: &Netns, kind: RouterKind) -> Result<Router> {
        let mut router = Router {
            ns: ns.clone(),
            kind,
            config: self,
            daemons: None,
        };
        router.start()?;
        Ok(router)
    }
}

impl Router {
    /// Which daemons it is made of.
    #[must_use]
    pub fn kind(&self) -> RouterKind {
        self.kind
    }

    /// Starts it again, after [`stop`](Self::stop) or [`kill`](Self::kill), and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it runs already, and those of [`RouterConfig::start`].
    pub fn start(&mut self) -> Result<()> {
        ensure!(
            self.daemons.is_none(),
            "{} in {} runs already",
            self.kind,
            self.ns.name()
        );
        let recipe = match self.kind {
            RouterKind::Bird => bird::recipe(&self.config),
            RouterKind::Frr => frr::recipe(&self.config, self.ns.name()),
            RouterKind::Gobgp => gobgp::recipe(&self.config)?,
        };
        let mut daemons = Daemons::start(&self.ns, &recipe)?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Err(error) = daemons.alive() {
                return Err(error).with_context(|| format!("{} in {}", self.kind, self.ns.name()));
            }
            let Err(error) = self.answers(&daemons) else { break };
            if Instant::now() > deadline {
                let said = daemons.said();
                return Err(error)
                    .with_context(|| format!("{} in {} does not answer; it said:\n{said}", self.kind, self.ns.name()));
            }
            std::thread::sleep(POLL);
        }
        match self.kind {
            RouterKind::Bird => {}
            RouterKind::Frr => frr::understood(&daemons)?,
            RouterKind::Gobgp => gobgp::inject(&daemons, &self.config)?,
        }
        self.daemons = Some(daemons);
        Ok(())
    }

    fn answers(&self, daemons: &Daemons) -> Result<()> {
        match self.kind {
            RouterKind::Bird => bird::sessions(daemons).map(drop),
            RouterKind::Frr => frr::answers(daemons),
            RouterKind::Gobgp => gobgp::sessions(daemons).map(drop),
        }
    }

    /// Ends it as an operator does (SIGTERM): sessions are closed with a NOTIFICATION, routes leave the kernel.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end in time (it is killed then).
    pub fn stop(&mut self) -> Result<()> {
        self.take()?.stop(STOP_LIMIT)
    }

    /// Ends all its daemons at once, without a word to anyone (SIGKILL). What is in the kernel's table stays until it starts again.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        drop(self.take()?);
        Ok(())
    }

    fn take(&mut self) -> Result<Daemons> {
        let daemons = self.daemons.take();
        daemons.with_context(|| format!("{} in {} does not run", self.kind, self.ns.name()))
    }

    fn running(&self) -> Result<&Daemons> {
        let daemons = self.daemons.as_ref();
        daemons.with_context(|| format!("{} in {} does not run", self.kind, self.ns.name()))
    }

    /// What its daemons have written to standard output and error, since the last start.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn log(&self) -> Result<String> {
        Ok(self.running()?.said())
    }

    /// Says something to its operator's program and returns the answer: the words of one `birdc` or `gobgp` command; whole lines for
    /// `vtysh`, one after the other.
    ///
    /// # Errors
    ///
    /// When it does not run, or the program fails. BIRD's and FRR's fail seldom: they answer that they do not understand.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let mut all = match self.kind {
            RouterKind::Bird => vec!["birdc", "-s", "/run/bird/bird.ctl"],
            RouterKind::Frr => vec!["vtysh"],
            RouterKind::Gobgp => vec!["gobgp"],
        };
        for word in words {
            if self.kind == RouterKind::Frr {
                all.push("-c");
            }
            all.push(word);
        }
        self.running()?.ask(&all)
    }

    /// Its BGP sessions, by the neighbour's address.
    ///
    /// # Errors
    ///
    /// When it does not run or answer, or answers in a way that is not understood.
    pub fn sessions(&self) -> Result<BTreeMap<IpAddr, Session>> {
        let daemons = self.running()?;
        let sessions = match self.kind {
            RouterKind::Bird => bird::sessions(daemons),
            RouterKind::Frr => frr::sessions(daemons),
            RouterKind::Gobgp => gobgp::sessions(daemons),
        };
        sessions.with_context(|| format!("sessions of {} in {}", self.kind, self.ns.name()))
    }

    /// All paths of its BGP table, its own injected ones left out.
    ///
    /// # Errors
    ///
    /// As [`Self::sessions`].
    pub fn routes(&self, family: Family) -> Result<Vec<Route>> {
        let daemons = self.running()?;
        let routes = match self.kind {
            RouterKind::Bird => bird::routes(daemons, &self.config, family),
            RouterKind::Frr => frr::routes(daemons, family),
            RouterKind::Gobgp => gobgp::routes(daemons, family),
        };
        routes.with_context(|| format!("routes of {} in {}", self.kind, self.ns.name()))
    }

    /// Its BFD sessions, by the peer's address.
    ///
    /// # Errors
    ///
    /// As [`Self::sessions`], and always for GoBGP, which has none.
    pub fn bfd_sessions(&self) -> Result<BTreeMap<IpAddr, BfdSession>> {
        let daemons = self.running()?;
        let sessions = match self.kind {
            RouterKind::Bird => bird::bfd_sessions(daemons),
            RouterKind::Frr => frr::bfd_sessions(daemons),
            RouterKind::Gobgp => bail!("GoBGP has no BFD"),
        };
        sessions.with_context(|| format!("BFD sessions of {} in {}", self.kind, self.ns.name()))
    }

    /// The next hops, by prefix, of what the kernel of its namespace forwards by: whoever wrote it, but the kernel itself.
    /// With GoBGP that is nothing.
    ///
    /// # Errors
    ///
    /// ip's.
    pub fn kernel_routes(&self, family: Family) -> Result<BTreeMap<IpNet, BTreeSet<IpAddr>>> {
        kernel::routes(&self.ns, family)
    }

    /// Waits until the session with `neighbour` is established.
    ///
    /// # Errors
    ///
    /// When it is not after `limit`: how it stands instead.
    pub fn established(&self, neighbour: IpAddr, limit: Duration) -> Result<()> {
        self.wait_for(limit, |router| {
            let session = router.sessions()?.remove(&neighbour);
            let session = session.with_context(|| format!("no session with {neighbour}"))?;
            ensure!(
                session.state == SessionState::Established,
                "session with {neighbour}: {session:?}"
            );
            Ok(())
        })
    }

    /// Asks again and again until the answer is `Ok`, and returns it.
    ///
    /// # Errors
    ///
    /// The last answer, when none was `Ok` within `limit`.
    pub fn wait_for<T>(&self, limit: Duration, mut question: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = question(self);
            if answer.is_ok() || Instant::now() > deadline {
                return answer.with_context(|| format!("{} in {}, after {limit:?}", self.kind, self.ns.name()));
            }
            std::thread::sleep(POLL);
        }
    }
}
