//! Watching one kind of object: a list, then changes, and what goes wrong.
//!
//! Never ends, never gives a list before it is whole, and never takes an error for a change.

use std::{fmt, pin::pin, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource,
    api::ListParams,
    runtime::watcher::{self, Event, watcher},
};
use operator_api::Lean;
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::object::{Object, Received, Says, revision};

/// Shortest and longest wait before the API server is asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Longest wait for a page of a list.
const LIST_PATIENCE: Duration = Duration::from_secs(30);
/// A watch that was taken up again says nothing by itself: as long after an error, the API server is asked whether it answers.
const HEALED: Duration = Duration::from_secs(2);
/// Longest wait for that answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// A watch is renewed so often: a server that died without a word is noticed a few seconds later. On 5,000 nodes that is 83 requests a
/// second.
pub(super) const WATCH_SECONDS: u32 = 60;
/// Objects of a page of a list: 10,000 tables are ten requests, one after another.
const PAGE: u32 = 1000;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// VipTables.
    Tables,
    /// NodeSets.
    NodeSets,
    /// The TunnelConfig.
    Tunnel,
    /// Announcements.
    Announcements,
    /// BgpPeers.
    Peers,
    /// LbNodes.
    LbNodes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Tables,
        Self::NodeSets,
        Self::Tunnel,
        Self::Announcements,
        Self::Peers,
        Self::LbNodes,
    ];

    /// In the words of the API.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Tables => "viptables",
            Self::NodeSets => "nodesets",
            Self::Tunnel => "tunnelconfigs",
            Self::Announcements => "announcements",
            Self::Peers => "bgppeers",
            Self::LbNodes => "lbnodes",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tables => "VipTables",
            Self::NodeSets => "NodeSets",
            Self::Tunnel => "the TunnelConfig",
            Self::Announcements => "Announcements",
            Self::Peers => "BgpPeers",
            Self::LbNodes => "LbNodes",
        })
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Told<S> {
    /// A whole list.
    List(Vec<Object<S>>),
    /// New or changed.
    Apply(Object<S>),
    /// Gone, by name, with the revision at which it went.
    Delete(String, u64),
    /// Nothing can be learnt at the moment.
    Away(String),
    /// It can again.
    Back,
}

/// How everything is watched.
pub(super) fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
}

/// Watches until nobody listens.
pub(super) async fn follow<K, S, T>(
    api: Api<Lean<Received<K>>>,
    config: watcher::Config,
    wrap: fn(Told<S>, Instant) -> T,
    to: mpsc::Sender<T>,
) where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + Send + Sync + 'static,
    S: Says,
{
    let mut wait = BACKOFF.0;
    'anew: loop {
        let mut stream = pin!(watcher(api.clone(), config.clone()));
        let mut list: Option<Vec<Object<S>>> = Some(Vec::new());
        let mut away = false;
        // It did not even refuse: what was asked since then may wait on a connection that is dead.
        let mut silent = false;
        loop {
            let patience = match (&list, away) {
                (Some(_), _) => LIST_PATIENCE,
                (None, true) => HEALED,
                (None, false) => Duration::MAX,
            };
            let told = match timeout(patience, stream.next()).await {
                Err(_) if list.is_some() => Told::Away(format!("no answer for {} s", LIST_PATIENCE.as_secs())),
                Err(_) => match probe(&api, &config).await {
                    None if silent => continue 'anew,
                    None => Told::Back,
                    Some(why) => {
                        silent = true;
                        Told::Away(why)
                    }
                },
                Ok(None) => continue 'anew,
                Ok(Some(Err(error))) => Told::Away(say(&error)),
                Ok(Some(Ok(Event::Init))) => {
                    list = Some(Vec::new());
                    continue;
                }
                Ok(Some(Ok(Event::InitApply(Lean(object))))) => {
                    list.get_or_insert_default().push(Object::read(object));
                    continue;
                }
                Ok(Some(Ok(Event::InitDone))) => Told::List(list.take().unwrap_or_default()),
                Ok(Some(Ok(Event::Apply(Lean(object))))) => Told::Apply(Object::read(object)),
                Ok(Some(Ok(Event::Delete(mut object)))) => {
                    let metadata = std::mem::take(object.meta_mut());
                    let revision = revision(metadata.resource_version.as_deref());
                    Told::Delete(metadata.name.unwrap_or_default(), revision)
                }
            };
            let failed = matches!(told, Told::Away(_));
            away = failed;
            if to.send(wrap(told, Instant::now())).await.is_err() {
                return;
            }
            if failed {
                sleep(wait).await;
                wait = (wait * 2).min(BACKOFF.1);
                if list.is_some() {
                    continue 'anew;
                }
            } else {
                wait = BACKOFF.0;
            }
        }
    }
}

/// Whether the API server answers at all; why not.
async fn probe<K>(api: &Api<K>, config: &watcher::Config) -> Option<String>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    let one = ListParams {
        field_selector: config.field_selector.clone(),
        ..ListParams::default().limit(1)
    };
    match timeout(PROBE_PATIENCE, api.list_metadata(&one)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(say_client(&error)),
        Err(_) => Some(format!("no answer for {} s", PROBE_PATIENCE.as_secs())),
    }
}

/// An error in the words of who has to do something about it.
fn say(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => say_client(error),
        watcher::Error::WatchError(status) => format!("{} ({})", status.message, status.code),
        watcher::Error::NoResourceVersion => "its list has no resourceVersion".to_owned(),
    }
}

/// As [`say`], of a single request.
pub(super) fn say_client(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => format!(
                "forbidden: {} (does the role of this node's account allow it?)",
                status.message
            ),
            404 => format!(
                "not found: {} (are the CRDs installed, and is --namespace right?)",
                status.message
            ),
            code => format!("{} ({code})", status.message),
        },
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                cause = error.source();
            }
            text
        }
    }
}
