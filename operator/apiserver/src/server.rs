//! The server as tests hold it: starting, listening, and short cuts past HTTP.
//!
//! Never on the caller's runtime: it has its own threads, so that it works from plain tests too.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};

use crate::chores;
use crate::counts::Counts;
use crate::endpoint::Endpoint;
use crate::events;
use crate::failure::Failure;
use crate::faults::Faults;
use crate::identity::Identity;
use crate::patch::Patch;
use crate::paths::Target;
use crate::resource::{Registry, Resource};
use crate::service::Cluster;
use crate::store::State;
use crate::tls::Authority;
use crate::writes::{self, DeleteOptions, FieldValidation, Outcome, Request};

/// What all connections share.
pub(crate) struct Shared {
    state: Mutex<State>,
    latest: watch::Sender<u64>,
    pub(crate) faults: Faults,
    pub(crate) writes: Counts,
    pub(crate) reads: Counts,
    pub(crate) identities: Mutex<BTreeMap<String, Identity>>,
    /// Something for the controllers to do.
    pub(crate) chores: Notify,
    pub(crate) bookmark_interval: Duration,
    pub(crate) chore_delay: Duration,
    /// Whether Role and ClusterRole are heeded.
    pub(crate) authorizes: bool,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told of every write.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// Does something to the objects, and tells watches and controllers if it wrote.
    pub(crate) fn write<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let before = state.revision;
        let result = f(&mut state);
        if state.revision != before {
            self.latest.send_replace(state.revision);
            self.chores.notify_one();
        }
        result
    }
}

struct Inner {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    first: Mutex<Option<Endpoint>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last handle may go on another runtime's thread, which must not wait.
            runtime.shutdown_background();
        }
    }
}

/// A handle of the server. Clones are the same server, which ends with the last of them.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    bare: bool,
    history: usize,
    bookmark_interval: Duration,
    chore_delay: Duration,
    authorizes: bool,
    cluster: Cluster,
}

impl Builder {
    /// Without the custom resource definitions of `operator-api`.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Changes of one kind that are remembered: a watch from before them gets 410. 65,536 unless said otherwise.
    #[must_use]
    pub fn history(mut self, changes: usize) -> Self {
        self.history = changes;
        self
    }

    /// Time between bookmarks of a watch; 5 s unless said otherwise (a real server: about a minute).
    #[must_use]
    pub fn bookmark_interval(mut self, interval: Duration) -> Self {
        self.bookmark_interval = interval;
        self
    }

    /// How long the controllers (garbage, namespaces, definitions) wait before they act; 20 ms unless said otherwise.
    #[must_use]
    pub fn chore_delay(mut self, delay: Duration) -> Self {
        self.chore_delay = delay;
        self
    }

    /// A cluster whose Services have IPv4 only; otherwise it is a dual-stack one, IPv4 first.
    #[must_use]
    pub fn single_stack(mut self) -> Self {
        self.cluster = Cluster::Ipv4;
        self
    }

    /// Heed Role and ClusterRole: whoever is not in `system:masters` may only do what these allow.
    #[must_use]
    pub fn rbac(mut self) -> Self {
        self.authorizes = true;
        self
    }

    /// Starts it, on a port of 127.0.0.1.
    ///
    /// # Panics
    /// Without threads or ports there is nothing to test with.
    #[expect(
        clippy::expect_used,
        reason = "without threads or ports there is nothing to test with"
    )]
    pub fn start(self) -> ApiServer {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("apiserver")
            .enable_all()
            .build()
            .expect("a runtime");
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(Registry::builtin(), self.history, self.cluster)),
            latest: watch::Sender::new(1),
            faults: Faults::default(),
            writes: Counts::default(),
            reads: Counts::default(),
            identities: Mutex::default(),
            chores: Notify::new(),
            bookmark_interval: self.bookmark_interval,
            chore_delay: self.chore_delay,
            authorizes: self.authorizes,
        });
        runtime.spawn(chores::run(Arc::downgrade(&shared)));
        let inner = Inner {
            shared,
            runtime: Some(runtime),
            first: Mutex::default(),
        };
        let server = ApiServer { inner: Arc::new(inner) };
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            server.create(namespace).expect("the namespaces that are always there");
        }
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}});
        server.create(service).expect("the Service of the server itself");
        if !self.bare {
            for definition in operator_api::crds() {
                let value = serde_json::to_value(&definition).expect("a definition is JSON");
                server.create(value).expect("our definitions are good");
            }
            server.inner.shared.write(chores::establish_all);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let endpoint = server.listen(listener);
        *server.inner.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint);
        server
    }
}

impl ApiServer {
    /// With builtin kinds and the definitions of `operator-api`, on a port of 127.0.0.1.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// To say how it is to be.
    pub fn builder() -> Builder {
        Builder {
            bare: false,
            history: 65_536,
            bookmark_interval: Duration::from_secs(5),
            chore_delay: Duration::from_millis(20),
            authorizes: false,
            cluster: Cluster::Dual,
        }
    }

    /// Serves on one more listener, which may be of another network namespace.
    pub fn listen(&self, listener: TcpListener) -> Endpoint {
        self.open(listener, None)
    }

    /// As [`Self::listen`], by TLS: who asks is known by a certificate of this authority or by a token, or is nobody.
    pub fn listen_tls(&self, listener: TcpListener, authority: &Authority) -> Endpoint {
        self.open(listener, Some(authority.clone()))
    }

    fn open(&self, listener: TcpListener, authority: Option<Authority>) -> Endpoint {
        let handle = match &self.inner.runtime {
            Some(runtime) => runtime.handle().clone(),
            None => unreachable!("there is a runtime until the last handle is gone"),
        };
        Endpoint::open(Arc::clone(&self.inner.shared), handle, (listener, authority))
    }

    /// The endpoint on 127.0.0.1: it can be closed and opened again.
    pub fn endpoint(&self) -> Endpoint {
        let first = self.inner.first.lock().unwrap_or_else(PoisonError::into_inner);
        match &*first {
            Some(endpoint) => endpoint.clone(),
            None => unreachable!("made when the server was started"),
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.endpoint().url()
    }

    /// Address and port on 127.0.0.1.
    pub fn address(&self) -> SocketAddr {
        self.endpoint().address()
    }

    /// A kubeconfig for 127.0.0.1, as an administrator.
    pub fn kubeconfig(&self) -> String {
        self.endpoint().kubeconfig(None)
    }

    /// A kubeconfig for 127.0.0.1 with a token of [`Self::identity`].
    pub fn kubeconfig_as(&self, token: &str) -> String {
        self.endpoint().kubeconfig(Some(token))
    }

    /// Says who a bearer token is. Unknown tokens get 401; requests without one are an administrator's.
    pub fn identity(&self, token: &str, identity: Identity) {
        let mut identities = self
            .inner
            .shared
            .identities
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        identities.insert(token.to_owned(), identity);
    }

    /// Faults that requests over HTTP meet.
    pub fn faults(&self) -> &Faults {
        &self.inner.shared.faults
    }

    /// Writes over HTTP.
    pub fn writes(&self) -> &Counts {
        &self.inner.shared.writes
    }

    /// `get`, `list` and `watch` over HTTP.
    pub fn reads(&self) -> &Counts {
        &self.inner.shared.reads
    }

    /// Revision of the last write to anything.
    pub fn revision(&self) -> u64 {
        self.inner.shared.lock().revision
    }

    /// Forgets all history: a watch from an older revision gets 410.
    pub fn compact(&self) {
        self.inner.shared.write(State::compact);
    }

    /// One object; `resource` is a plural name (`services`), `namespace` empty for what is cluster-scoped.
    pub fn read(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.inner.shared.lock();
        let resource = state.registry.named(resource)?;
        state
            .find(&resource.table, namespace, name)
            .map(|stored| stored.value.clone())
    }

    /// All objects of a kind, in the order of namespace and name.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.inner.shared.lock();
        let Some(resource) = state.registry.named(resource) else {
            return Vec::new();
        };
        let table = state.tables.get(&resource.table);
        table
            .into_iter()
            .flat_map(|table| table.objects.values())
            .map(|stored| stored.value.clone())
            .collect()
    }

    /// Creates an object, as an administrator.
    ///
    /// # Errors
    /// As over HTTP.
    pub fn create(&self, object: Value) -> Result<Value, Failure> {
        let object = events::stored_form(object);
        self.do_with(&object, "", |state, request| writes::create(state, request, &object))
    }

    /// Replaces an object; its `resourceVersion`, if there is one, must be the current one.
    ///
    /// # Errors
    /// As over HTTP.
    pub fn update(&self, object: Value) -> Result<Value, Failure> {
        let object = events::stored_form(object);
        self.do_with(&object, "", |state, request| writes::update(state, request, &object))
    }

    /// Replaces an object's status.
    ///
    /// # Errors
    /// As over HTTP.
    pub fn update_status(&self, object: Value) -> Result<Value, Failure> {
        let object = events::stored_form(object);
        self.do_with(&object, "status", |state, request| {
            writes::update(state, request, &object)
        })
    }

    /// Applies an object server-side with force, creating it where it is not there.
    ///
    /// # Errors
    /// As over HTTP.
    pub fn apply(&self, object: Value, manager: &str) -> Result<Value, Failure> {
        let object = events::stored_form(object);
        self.do_with(&object, "", |state, request| {
            let request = Request {
                manager: manager.to_owned(),
                ..request.again()
            };
            writes::patch(state, &request, &Patch::Apply(object.clone()), true)
        })
    }

    /// Merge-patches an object; `subresource` is `status` or empty.
    ///
    /// # Errors
    /// As over HTTP.
    pub fn merge(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: Value,
    ) -> Result<Value, Failure> {
        self.named(resource, namespace, name, subresource, |state, request| {
            writes::patch(state, request, &Patch::Merge(patch), false)
        })
    }

    /// Deletes an object; with finalizers, it is only marked.
    ///
    /// # Errors
    /// As over HTTP.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<Value, Failure> {
        self.named(resource, namespace, name, "", |state, request| {
            writes::delete(state, request, &DeleteOptions::default())
        })
    }

    fn do_with(
        &self,
        object: &Value,
        subresource: &str,
        f: impl FnOnce(&mut State, &Request<'_>) -> Result<Outcome, Failure>,
    ) -> Result<Value, Failure> {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let found = self
            .inner
            .shared
            .lock()
            .registry
            .of_kind(&text(&object["apiVersion"]), &text(&object["kind"]));
        let resource = found.ok_or_else(Failure::no_resource)?;
        let namespace = match text(&object["metadata"]["namespace"]) {
            namespace if resource.namespaced && namespace.is_empty() => "default".to_owned(),
            namespace => namespace,
        };
        let name = text(&object["metadata"]["name"]);
        self.with(&resource, &namespace, &name, subresource, f)
    }

    fn named(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        subresource: &str,
        f: impl FnOnce(&mut State, &Request<'_>) -> Result<Outcome, Failure>,
    ) -> Result<Value, Failure> {
        let found = self.inner.shared.lock().registry.named(resource);
        let resource = found.ok_or_else(Failure::no_resource)?;
        self.with(&resource, namespace, name, subresource, f)
    }

    fn with(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        f: impl FnOnce(&mut State, &Request<'_>) -> Result<Outcome, Failure>,
    ) -> Result<Value, Failure> {
        let target = Target {
            group: resource.group.clone(),
            version: resource.version.clone(),
            plural: resource.plural.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        };
        let request = Request {
            resource,
            namespace: &target.namespace,
            name: &target.name,
            subresource: &target.subresource,
            manager: "in-process".into(),
            now: now(),
            user: Identity::admin(),
            dry_run: false,
            field_validation: FieldValidation::Strict,
        };
        self.inner
            .shared
            .write(|state| f(state, &request))
            .map(|outcome| outcome.object.value.clone())
    }
}

/// RFC 3339, seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
