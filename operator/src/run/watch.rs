//! The watches: one for each kind, for ever.
//!
//! Never decides and never gives up: what the API server refuses is said, counted and tried again.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource,
    core::ObjectMeta,
    runtime::watcher::{self, Config, Event},
};
use operator_api::{Lean, SEED_SECRET};
use serde::de::DeserializeOwned;
use tokio::{task::JoinSet, time::Instant};

use super::{
    explain::Target,
    room::{Name, Room},
};
use crate::index::{Kind, Object};

/// Objects of a page: 10,000 Services are ten requests.
const PAGE: u32 = 1000;
/// A watch is renewed so often: one whose connection died silently is noticed 5 s later.
const WATCH_SECONDS: u32 = 60;
/// First wait after an error.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Longest wait after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The same error is said so often.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Label of EndpointSlices that belong to a Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// What `kubectl apply` leaves behind: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Starts all watches.
pub(super) fn start(tasks: &mut JoinSet<()>, room: &Arc<Room>, client: &Client, namespace: &str) {
    let all = Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
    let seed = all.clone().fields(&format!("metadata.name={SEED_SECRET}"));
    let slices = all.clone().labels(SERVICE_NAME);
    let (to, own) = (|| client.clone(), namespace);
    tasks.spawn(follow(room, Api::all(to()), &all, Kind::Service, Object::Service));
    tasks.spawn(follow(
        room,
        Api::all(to()),
        &slices,
        Kind::EndpointSlice,
        Object::EndpointSlice,
    ));
    tasks.spawn(follow(room, Api::all(to()), &all, Kind::Node, slim_node));
    tasks.spawn(follow(room, Api::all(to()), &all, Kind::Namespace, Object::Namespace));
    tasks.spawn(follow(room, Api::all(to()), &all, Kind::Pool, Object::Pool));
    tasks.spawn(follow(room, Api::all(to()), &all, Kind::Claim, Object::Claim));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &all,
        Kind::Table,
        Object::Table,
    ));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &all,
        Kind::NodeSet,
        Object::NodeSet,
    ));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &all,
        Kind::Tunnel,
        Object::Tunnel,
    ));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &all,
        Kind::LbNode,
        Object::LbNode,
    ));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &all,
        Kind::Lease,
        Object::Lease,
    ));
    tasks.spawn(follow(room, Api::namespaced(to(), own), &all, Kind::Peer, Object::Peer));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &all,
        Kind::Announcement,
        Object::Announcement,
    ));
    tasks.spawn(follow(
        room,
        Api::namespaced(to(), own),
        &seed,
        Kind::Seed,
        Object::Seed,
    ));
}

/// Takes out what nobody reads, before it is kept.
pub(super) fn slim(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// A node lists the images on its disk: most of its bytes.
fn slim_node(mut node: Node) -> Object {
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
    Object::Node(node)
}

fn follow<K>(
    room: &Arc<Room>,
    api: Api<Lean<K>>,
    config: &Config,
    kind: Kind,
    wrap: fn(K) -> Object,
) -> impl Future<Output = ()> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let follower = Follower {
        room: room.clone(),
        api,
        kind,
        wrap,
        listed: Vec::new(),
    };
    follower.run(config.clone())
}

struct Follower<K> {
    room: Arc<Room>,
    api: Api<Lean<K>>,
    kind: Kind,
    wrap: fn(K) -> Object,
    /// The list so far, while one is read.
    listed: Vec<Object>,
}

impl<K> Follower<K>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(mut self, config: Config) {
        let mut events = std::pin::pin!(watcher::watcher(self.api.clone(), config));
        let mut trouble = Trouble::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if !matches!(event, Event::Init) && trouble.end() {
                        tracing::info!(kind = ?self.kind, "watching again");
                    }
                    self.take(event).await;
                }
                Err(error) => {
                    self.room.metrics.watch_failed(self.kind);
                    trouble.say(self.kind, &error);
                    tokio::time::sleep(trouble.wait()).await;
                }
            }
        }
    }

    async fn take(&mut self, event: Event<Lean<K>>) {
        self.room.metrics.watch_event(self.kind);
        match event {
            Event::Init => {
                self.listed.clear();
                self.room.listing(self.kind);
            }
            Event::InitApply(object) => {
                let object = self.object(object);
                self.listed.push(object);
            }
            Event::InitDone => self.init_done().await,
            Event::Apply(object) => self.room.apply(self.object(object)),
            Event::Delete(object) => self.room.delete(self.object(object)),
        }
    }

    /// The list is complete. It may be older than what this operator wrote since it was asked for: an object that was created then
    /// would vanish, and one that was deleted by others would stay for ever if it were simply kept. So those few are asked for.
    async fn init_done(&mut self) {
        let objects = std::mem::take(&mut self.listed);
        let mut fresh = Vec::new();
        let mut checked: Vec<Name> = Vec::new();
        for name in self.room.missing(self.kind, &objects) {
            // A Service is never created by us: one that is not in the list is gone.
            if self.kind == Kind::Service {
                checked.push(name);
                continue;
            }
            match self.api.get_opt(&name.1).await {
                Ok(Some(object)) => {
                    fresh.push(self.object(object));
                    checked.push(name);
                }
                Ok(None) => checked.push(name),
                // Kept as written: the watch goes on from the list and says what became of it.
                Err(error) => tracing::debug!(kind = ?self.kind, name = name.1, %error, "not asked for"),
            }
        }
        let count = objects.len() + fresh.len();
        let objects = objects.into_iter().chain(fresh).collect();
        self.room.reset(self.kind, objects, &checked);
        self.room.metrics.watch_listed(self.kind);
        tracing::debug!(kind = ?self.kind, count, "listed");
    }

    fn object(&self, Lean(mut object): Lean<K>) -> Object {
        slim(object.meta_mut());
        (self.wrap)(object)
    }
}

/// Errors in a row.
#[derive(Default)]
struct Trouble {
    count: u32,
    said: Option<(String, Instant)>,
}

impl Trouble {
    /// Says an error, the same one only now and then.
    fn say(&mut self, kind: Kind, error: &watcher::Error) {
        self.count = self.count.saturating_add(1);
        let text = error.to_string();
        let now = Instant::now();
        if let Some((said, when)) = &self.said
            && *said == text
            && now < *when + SAY_AGAIN
        {
            return;
        }
        let target = Target::of_kind(kind);
        match remedy(&target, error) {
            Some(remedy) => tracing::error!(resource = target.resource, "{remedy}: {text}; tried again"),
            // The normal end of an old watch.
            None if is_expired(error) => tracing::debug!(resource = target.resource, "{text}"),
            None => tracing::warn!(resource = target.resource, "{text}; tried again"),
        }
        self.said = Some((text, now));
    }

    fn wait(&self) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.count.saturating_sub(1).min(10));
        doubled.min(BACKOFF_MAX).mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// It works again; whether it had not.
    fn end(&mut self) -> bool {
        let ended = self.count > 0 && self.said.is_some();
        *self = Self::default();
        ended
    }
}

fn remedy(target: &Target, error: &watcher::Error) -> Option<String> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => target.remedy(error),
        watcher::Error::WatchError(status) => target.remedy(&kube::Error::Api(status.clone())),
        watcher::Error::NoResourceVersion => None,
    }
}

fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}
