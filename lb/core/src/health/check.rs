//! What is asked of a backend, how often, and how many answers it takes.
//!
//! Never knows who asks for it: equal checks of one backend are one, and are probed once.

use std::{fmt, sync::Arc};

use super::outcome::Failure;

/// Least share of a set's weight that must be eligible, in percent, unless a set says otherwise; below it the overlay is not
/// believed. So that of one to four equal members a single one may be left, and of more no quarter has to carry all.
pub const DEFAULT_PANIC_PERCENT: u8 = 25;

/// Everything that is asked of the backends of a VIP. One of them failing is enough.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checks {
    /// Each once.
    pub list: Vec<Arc<Check>>,
    /// Least share of the set's weight that must be eligible, 0 to 100; see [`DEFAULT_PANIC_PERCENT`].
    pub panic_percent: u8,
    /// What becomes of new flows when nobody is eligible.
    pub when_none: WhenNone,
}

/// What becomes of a VIP's new flows when none of its backends is eligible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenNone {
    /// They are refused, as where there is no backend.
    #[default]
    Reject,
    /// All backends are used, as below the panic threshold: the probes may err, and whoever is behind them may be well.
    UseAll,
}

impl Checks {
    /// With the default threshold; with nobody left, flows are refused.
    pub fn new(list: impl IntoIterator<Item = Check>) -> Self {
        Self {
            list: list.into_iter().map(Arc::new).collect(),
            panic_percent: DEFAULT_PANIC_PERCENT,
            when_none: WhenNone::default(),
        }
    }
}

/// One thing that is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Check {
    /// What.
    pub probe: Probe,
    /// When, and how many answers count.
    pub timing: Timing,
    /// While no backend has answered it lately, its failures count against nobody: it is not known that it can be answered at all.
    /// So with what nobody has configured by hand, or what the network between may not let through.
    pub needs_proof: bool,
}

/// How it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// A TCP connection to the backend's address.
    Tcp {
        /// Its port.
        port: u16,
    },
    /// A request to the backend's address.
    Http(HttpProbe),
    /// A SYN to a TCP VIP, encapsulated as the VIP's packets are. Of all VIPs that the backend serves another one each time.
    Tunnel,
}

/// `GET` over HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpProbe {
    /// Port at the backend's address.
    pub port: u16,
    /// Over TLS. Certificates are not verified: a probe asks whether somebody serves, and sends no secret.
    pub tls: bool,
    /// `Host`, and the name that TLS asks for; `None`: the backend's address.
    pub host: Option<Arc<str>>,
    /// Origin form: begins with `/`.
    pub path: Arc<str>,
    /// Statuses that count as success.
    pub statuses: Statuses,
    /// What the first [`HttpProbe::MAX_BODY_BYTES`] of the body must contain.
    pub body: Option<Arc<str>>,
}

impl HttpProbe {
    /// Bytes of a body that are read: 64 KiB per probe in flight at most.
    pub const MAX_BODY_BYTES: usize = 64 << 10;

    /// What is wrong with an answer; `body` is as much of it as was read.
    ///
    /// # Errors
    ///
    /// The status first, then the body.
    pub fn judge(&self, status: u16, body: &[u8]) -> Result<(), Failure> {
        if !self.statuses.contains(status) {
            return Err(Failure::Status(status));
        }
        match &self.body {
            Some(wanted) if !contains(body, wanted.as_bytes()) => Err(Failure::Body),
            Some(_) | None => Ok(()),
        }
    }
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| window == wanted)
}

/// A range of HTTP statuses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Statuses {
    /// Least.
    pub first: u16,
    /// Largest.
    pub last: u16,
}

impl Statuses {
    /// What Kubernetes takes for success: 200 to 399.
    pub const SUCCESS: Self = Self { first: 200, last: 399 };
    /// 200 alone, which the health ports of kube-proxy answer.
    pub const OK: Self = Self { first: 200, last: 200 };

    /// Whether it is one of them.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// When a probe runs, and how many outcomes it takes to believe one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timing {
    /// From one probe to the next, more or less a tenth; longer where there is more to do than the rate allows.
    pub interval_ms: u32,
    /// How long a probe waits for its answer; no longer than the interval.
    pub timeout_ms: u32,
    /// Successes in a row that make a backend healthy again; at least 1.
    pub rise: u16,
    /// Failures in a row that make it unhealthy; at least 1.
    pub fall: u16,
    /// Least time between two changes of its health.
    pub damping_ms: u32,
    /// How long an unhealthy backend must have been silent to be dead.
    pub dead_after_ms: u32,
    /// How long failures do not count while there was no success yet.
    pub startup_ms: u32,
}

impl Default for Timing {
    /// Every 2 s: unhealthy 4 to 6 s after it fails, dead 10 s later; back after 2 to 4 s.
    fn default() -> Self {
        Self {
            interval_ms: 2000,
            timeout_ms: 1000,
            rise: 2,
            fall: 3,
            damping_ms: 5000,
            dead_after_ms: 10_000,
            startup_ms: 0,
        }
    }
}

/// Of the health ports of nodes: 5,000 of them are 1,000 probes a second.
pub const KUBE_TIMING: Timing = Timing {
    interval_ms: 5000,
    timeout_ms: 2000,
    rise: 1,
    fall: 2,
    damping_ms: 5000,
    dead_after_ms: 10_000,
    startup_ms: 0,
};

/// Of probes through the tunnel: 5,000 nodes are 500 a second. A kube-proxy takes its time to take up a node's VIPs, hence the
/// start.
pub const TUNNEL_TIMING: Timing = Timing {
    interval_ms: 10_000,
    timeout_ms: 2000,
    rise: 1,
    fall: 3,
    damping_ms: 10_000,
    dead_after_ms: 10_000,
    startup_ms: 30_000,
};

/// Any port of a node: who refuses the connection is there, too.
const ANY_PORT: u16 = 10_256;

impl Check {
    /// Whether a host is there at all: of interest is only how long it has been silent.
    pub fn presence() -> Self {
        Self {
            probe: Probe::Tcp { port: ANY_PORT },
            timing: Timing::default(),
            needs_proof: false,
        }
    }

    /// `GET http://NODE:port/healthz` as kube-proxy answers it: its own port (KEP-3836), or a Service's `healthCheckNodePort`.
    pub fn kube(port: u16) -> Self {
        Self {
            probe: Probe::Http(HttpProbe {
                port,
                tls: false,
                host: None,
                path: "/healthz".into(),
                statuses: Statuses::OK,
                body: None,
            }),
            timing: KUBE_TIMING,
            needs_proof: true,
        }
    }

    /// Through the tunnel.
    pub const fn tunnel() -> Self {
        Self {
            probe: Probe::Tunnel,
            timing: TUNNEL_TIMING,
            needs_proof: true,
        }
    }
}

impl Probe {
    /// As configuration and counters write it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Http(HttpProbe { tls: false, .. }) => "http",
            Self::Http(HttpProbe { tls: true, .. }) => "https",
            Self::Tunnel => "tunnel",
        }
    }
}

impl fmt::Display for Check {
    /// `tcp :80`, `https :8443/healthz`, `tunnel`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.probe.name();
        match &self.probe {
            Probe::Tcp { port } => write!(f, "{name} :{port}"),
            Probe::Http(http) => write!(f, "{name} :{}{}", http.port, http.path),
            Probe::Tunnel => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> HttpProbe {
        match Check::kube(10256).probe {
            Probe::Http(http) => http,
            Probe::Tcp { .. } | Probe::Tunnel => unreachable!("kube's are HTTP"),
        }
    }

    #[test]
    fn an_answer_is_judged_by_its_status_and_then_by_its_body() {
        let probe = HttpProbe {
            statuses: Statuses { first: 200, last: 299 },
            body: Some("ready".into()),
            ..http()
        };
        assert_eq!(probe.judge(204, b"all ready now"), Ok(()));
        assert_eq!(probe.judge(503, b"ready"), Err(Failure::Status(503)));
        assert_eq!(probe.judge(200, b"read"), Err(Failure::Body));
        assert_eq!(http().judge(200, b""), Ok(()));
        assert_eq!(http().judge(201, b""), Err(Failure::Status(201)));
    }

    #[test]
    fn checks_say_what_they_ask() {
        let tcp = Check {
            probe: Probe::Tcp { port: 80 },
            timing: Timing::default(),
            needs_proof: false,
        };
        let https = Check {
            probe: Probe::Http(HttpProbe { tls: true, ..http() }),
            ..tcp.clone()
        };
        let texts = [tcp, https, Check::tunnel()].map(|check| check.to_string());
        assert_eq!(texts, ["tcp :80", "https :10256/healthz", "tunnel"]);
        assert_eq!(Statuses::SUCCESS.to_string(), "200-399");
        assert_eq!(Statuses::OK.to_string(), "200");
    }
}
