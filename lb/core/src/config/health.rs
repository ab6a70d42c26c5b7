//! `health`: how an LB node learns whether backends serve; at the top for all sets, in a set for that one.
//!
//! Never probes anything. What a set does not say is as the top says it, key by key.

use std::{ops::RangeInclusive, sync::Arc};

use super::{
    problem::Problem,
    read::{At, Fields, Spot},
    words::{Kind, Quoted},
};
use crate::health::{
    Check, Checks, DEFAULT_PANIC_PERCENT, HttpProbe, Probe, Statuses, TUNNEL_TIMING, Timing, WhenNone,
};

/// Longest [`HttpProbe::path`], in bytes.
pub const MAX_PROBE_PATH_BYTES: usize = 1024;
/// Longest [`HttpProbe::host`], in bytes: a name of DNS and a port.
pub const MAX_PROBE_HOST_BYTES: usize = 259;
/// Longest [`HttpProbe::body`], in bytes.
pub const MAX_PROBE_BODY_BYTES: usize = 1024;
/// [`Timing::interval_ms`]: with shorter ones a few thousand backends take more than the rate of all probes.
const INTERVALS_MS: RangeInclusive<u32> = 100..=3_600_000;
/// [`Timing::timeout_ms`]: shorter ones measure the network.
const TIMEOUTS_MS: RangeInclusive<u32> = 10..=60_000;
/// [`Timing::damping_ms`]: every change moves flows.
const DAMPINGS_MS: RangeInclusive<u32> = 0..=3_600_000;
/// [`Timing::dead_after_ms`]: a death breaks what may only be slow.
const DEATHS_MS: RangeInclusive<u32> = 1000..=86_400_000;
/// [`Timing::rise`] and [`Timing::fall`].
const COUNTS: RangeInclusive<u16> = 1..=100;

/// Kinds of probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Type {
    #[default]
    None,
    Tcp,
    Http,
    Https,
}

impl Type {
    const NAMES: [&str; 4] = ["tcp", "http", "https", "none"];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Whether it is asked for over HTTP.
    const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

/// What one `health` says. Values with errors are as if they were not there.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    kind: Option<Type>,
    port: Option<u16>,
    path: Option<Arc<str>>,
    host: Option<Arc<str>>,
    statuses: Option<Statuses>,
    body: Option<Arc<str>>,
    interval_ms: Option<u32>,
    timeout_ms: Option<u32>,
    rise: Option<u16>,
    fall: Option<u16>,
    damping_ms: Option<u32>,
    dead_after_ms: Option<u32>,
    panic_percent: Option<u8>,
    when_none: Option<WhenNone>,
    tunnel: Option<bool>,
}

/// `health` at the top.
pub(super) fn defaults(at: &At<'_>) -> Option<Health> {
    read(at, &Health::default(), true).map(|(health, _)| health)
}

/// `health` of a set.
pub(super) fn checks(at: &At<'_>, defaults: &Health) -> Option<Option<Checks>> {
    read(at, defaults, false).map(|(_, checks)| checks)
}

impl Health {
    /// Those of a set that says nothing of its own.
    pub(super) fn checks(&self) -> Option<Checks> {
        let http = |port, tls| {
            Probe::Http(HttpProbe {
                port,
                tls,
                host: self.host.clone(),
                path: self.path.clone().unwrap_or_else(|| "/".into()),
                statuses: self.statuses.unwrap_or(Statuses::SUCCESS),
                body: self.body.clone(),
            })
        };
        let probe = match (self.kind.unwrap_or_default(), self.port) {
            (Type::None, _) | (_, None) => None,
            (Type::Tcp, Some(port)) => Some(Probe::Tcp { port }),
            (Type::Http, Some(port)) => Some(http(port, false)),
            (Type::Https, Some(port)) => Some(http(port, true)),
        };
        let timing = self.timing();
        let itself = probe.map(|probe| Check {
            probe,
            timing,
            needs_proof: false,
        });
        let tunnel = self.tunnel.unwrap_or_default().then_some(Check {
            probe: Probe::Tunnel,
            timing: Timing {
                startup_ms: TUNNEL_TIMING.startup_ms,
                ..timing
            },
            needs_proof: true,
        });
        let checks: Vec<Check> = itself.into_iter().chain(tunnel).collect();
        (!checks.is_empty()).then(|| Checks {
            panic_percent: self.panic_percent.unwrap_or(DEFAULT_PANIC_PERCENT),
            when_none: self.when_none.unwrap_or_default(),
            ..Checks::new(checks)
        })
    }

    fn timing(&self) -> Timing {
        let default = Timing::default();
        let interval_ms = self.interval_ms.unwrap_or(default.interval_ms);
        Timing {
            interval_ms,
            timeout_ms: self.timeout_ms.unwrap_or(default.timeout_ms.min(interval_ms)),
            rise: self.rise.unwrap_or(default.rise),
            fall: self.fall.unwrap_or(default.fall),
            damping_ms: self.damping_ms.unwrap_or(default.damping_ms),
            dead_after_ms: self.dead_after_ms.unwrap_or(default.dead_after_ms),
            startup_ms: default.startup_ms,
        }
    }
}

/// What stands here over `defaults`, and what it comes to. `is_top`: without `type` the keys are for sets that have one.
fn read(at: &At<'_>, defaults: &Health, is_top: bool) -> Option<(Health, Option<Checks>)> {
    at.fields(|fields| {
        let kind = Key::new(fields, "type", |at| kind(&at));
        let port = Key::new(fields, "port", |at| at.within(1, u16::MAX));
        let path = Key::new(fields, "path", |at| path(&at));
        let host = Key::new(fields, "host", |at| host(&at));
        let statuses = Key::new(fields, "status", |at| statuses(&at));
        let body = Key::new(fields, "body", |at| body(&at));
        let interval_ms = number(fields, "interval_ms", INTERVALS_MS);
        let timeout_ms = number(fields, "timeout_ms", TIMEOUTS_MS);
        let rise = number(fields, "rise", COUNTS);
        let fall = number(fields, "fall", COUNTS);
        let damping_ms = number(fields, "damping_ms", DAMPINGS_MS);
        let dead_after_ms = number(fields, "dead_after_ms", DEATHS_MS);
        let panic_percent = number(fields, "panic_percent", 0..=100);
        let when_none = Key::new(fields, "when_none", |at| when_none(&at));
        let tunnel = Key::new(fields, "tunnel", |at| at.bool());

        // One that cannot be read has noted it: what depends on it is not looked at.
        if kind.spot.is_some() && kind.value.is_none() {
            return None;
        }
        let kind_is = kind.over(defaults.kind).unwrap_or_default();
        let may_be_any = is_top && kind.spot.is_none();
        let is_own = kind_is != Type::None || may_be_any;
        let is_http = kind_is.is_http() || may_be_any;
        let is_any = is_own || tunnel.over(defaults.tunnel).unwrap_or_default();
        let meaningless = [
            (&port.spot, is_own),
            (&path.spot, is_http),
            (&host.spot, is_http),
            (&statuses.spot, is_http),
            (&body.spot, is_http),
            (&interval_ms.spot, is_any),
            (&timeout_ms.spot, is_any),
            (&rise.spot, is_any),
            (&fall.spot, is_any),
            (&damping_ms.spot, is_any),
            (&dead_after_ms.spot, is_any),
            (&panic_percent.spot, is_any),
            (&when_none.spot, is_any),
        ];
        let mut right = true;
        for (spot, _) in meaningless.into_iter().filter(|(_, has_meaning)| !has_meaning) {
            if let Some(spot) = spot {
                let type_is = kind_is.name();
                fields.note(spot, Problem::OtherHealthType { type_is });
                right = false;
            }
        }
        let health = Health {
            kind: kind.over(defaults.kind),
            port: port.over(defaults.port),
            path: path.over(defaults.path.clone()),
            host: host.over(defaults.host.clone()),
            statuses: statuses.over(defaults.statuses),
            body: body.over(defaults.body.clone()),
            interval_ms: interval_ms.over(defaults.interval_ms),
            timeout_ms: timeout_ms.over(defaults.timeout_ms),
            rise: rise.over(defaults.rise),
            fall: fall.over(defaults.fall),
            damping_ms: damping_ms.over(defaults.damping_ms),
            dead_after_ms: dead_after_ms.over(defaults.dead_after_ms),
            panic_percent: panic_percent.over(defaults.panic_percent),
            when_none: when_none.over(defaults.when_none),
            tunnel: tunnel.over(defaults.tunnel),
        };
        if kind_is != Type::None && health.port.is_none() && port.spot.is_none() {
            let type_is = kind_is.name();
            fields.fail_at::<()>("port", Problem::ProbeWithoutPort { type_is });
            right = false;
        }
        let timing = health.timing();
        if timing.timeout_ms > timing.interval_ms {
            let spot = timeout_ms.spot.as_ref().or(interval_ms.spot.as_ref());
            let problem = Problem::TimeoutOverInterval {
                timeout_ms: timing.timeout_ms,
                interval_ms: timing.interval_ms,
            };
            fields.note(spot.unwrap_or(fields.spot()), problem);
            right = false;
        }
        let checks = health.checks();
        right.then_some((health, checks))
    })
}

/// A key, and where it stands if it does.
struct Key<T> {
    value: Option<T>,
    spot: Option<Spot>,
}

impl<T> Key<T> {
    fn new<'a>(fields: &mut Fields<'a>, key: &'static str, read: impl FnOnce(At<'a>) -> Option<T>) -> Self {
        match fields.optional(key) {
            Some(at) => Self {
                spot: Some(at.spot().clone()),
                value: read(at),
            },
            None => Self {
                spot: None,
                value: None,
            },
        }
    }

    /// What it says; where it says nothing, what holds otherwise. One with an error has noted it.
    fn over(&self, default: Option<T>) -> Option<T>
    where
        T: Clone,
    {
        self.value.clone().or(default)
    }
}

fn number<T: Into<u64> + TryFrom<i128> + Copy + PartialOrd>(
    fields: &mut Fields<'_>,
    key: &'static str,
    bounds: RangeInclusive<T>,
) -> Key<T> {
    Key::new(fields, key, |at| at.within(*bounds.start(), *bounds.end()))
}

fn kind(at: &At<'_>) -> Option<Type> {
    match at.text()? {
        "none" => Some(Type::None),
        "tcp" => Some(Type::Tcp),
        "http" => Some(Type::Http),
        "https" => Some(Type::Https),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &Type::NAMES,
        }),
    }
}

fn when_none(at: &At<'_>) -> Option<WhenNone> {
    match at.text()? {
        "reject" => Some(WhenNone::Reject),
        "use_all" => Some(WhenNone::UseAll),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["reject", "use_all"],
        }),
    }
}

/// In origin form (RFC 9112 3.2.1): nothing that could end the line.
fn path(at: &At<'_>) -> Option<Arc<str>> {
    let text = at.text()?;
    if text.starts_with('/') && text.len() <= MAX_PROBE_PATH_BYTES && text.chars().all(|c| c.is_ascii_graphic()) {
        return Some(text.into());
    }
    at.fail(Problem::NotAProbePath {
        value: Quoted::new(text),
    })
}

/// A name or an address, with or without a port (RFC 9110 7.2).
fn host(at: &At<'_>) -> Option<Arc<str>> {
    let text = at.text()?;
    let is_host = !text.is_empty()
        && text.len() <= MAX_PROBE_HOST_BYTES
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-:[]".contains(c));
    if is_host {
        return Some(text.into());
    }
    at.fail(Problem::NotAProbeHost {
        value: Quoted::new(text),
    })
}

/// `200` or `200-399`.
fn statuses(at: &At<'_>) -> Option<Statuses> {
    if at.kind() == Kind::Integer {
        let status = at.within(100, 599)?;
        return Some(Statuses {
            first: status,
            last: status,
        });
    }
    let text = at.text()?;
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Some(Statuses { first, last }),
        (_, _) => at.fail(Problem::NotStatuses {
            value: Quoted::new(text),
        }),
    }
}

fn body(at: &At<'_>) -> Option<Arc<str>> {
    let text = at.text()?;
    if (1..=MAX_PROBE_BODY_BYTES).contains(&text.len()) {
        Some(text.into())
    } else {
        at.fail(Problem::BadProbeBody { bytes: text.len() })
    }
}
