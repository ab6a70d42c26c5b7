//! Listeners and their connections.
//!
//! Never drains: a closed endpoint cuts its connections, as a server that died does.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

use crate::http;
use crate::server::Shared;

/// A place where the server listens. Clones are the same place; it stays open when they are dropped.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Kept while closed, so that nobody else takes the port and the network namespace stays the same.
    listener: TcpListener,
    address: SocketAddr,
    accepting: Mutex<Option<AbortHandle>>,
}

impl Endpoint {
    pub(crate) fn open(shared: Arc<Shared>, runtime: Handle, listener: TcpListener) -> Self {
        let address = match listener.local_addr() {
            Ok(address) => address,
            Err(error) => unreachable!("a listener has an address: {error}"),
        };
        let inner = Inner {
            shared,
            runtime,
            listener,
            address,
            accepting: Mutex::default(),
        };
        let endpoint = Self { inner: Arc::new(inner) };
        if let Err(error) = endpoint.reopen() {
            tracing::error!(%error, "a listener that cannot be listened on");
        }
        endpoint
    }

    /// Cuts all connections. While closed, connections are cut as soon as they are made.
    pub fn close(&self) {
        let mut accepting = self.inner.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accepting) = accepting.take() {
            accepting.abort();
        }
        drop(accepting);
        self.accept(false);
    }

    /// Serves again after [`Self::close`].
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn reopen(&self) -> io::Result<()> {
        self.inner.listener.set_nonblocking(true)?;
        self.accept(true);
        Ok(())
    }

    fn accept(&self, serve: bool) {
        let Ok(listener) = self.inner.listener.try_clone() else {
            return;
        };
        let shared = Arc::clone(&self.inner.shared);
        let task = self.inner.runtime.spawn(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, shared, serve).await,
                Err(error) => tracing::error!(%error, "a listener that tokio does not take"),
            }
        });
        let mut accepting = self.inner.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = accepting.replace(task.abort_handle()) {
            before.abort();
        }
    }

    /// `http://ADDRESS:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// A kubeconfig; without a token, as an administrator. The token is in the path too, since `kubectl` sends none over
    /// plain HTTP.
    pub fn kubeconfig(&self, token: Option<&str>) -> String {
        let (path, user) = match token {
            Some(token) => (format!("/as/{token}"), format!("{{token: {token}}}")),
            None => (String::new(), "{}".to_owned()),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: double\n\
             clusters: [{{name: double, cluster: {{server: \"{}{path}\"}}}}]\n\
             contexts: [{{name: double, context: {{cluster: double, user: double}}}}]\n\
             users: [{{name: double, user: {user}}}]\n",
            self.url()
        )
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>, serve: bool) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if !serve {
            continue;
        }
        let _small_answers_at_once = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| http::handle(Arc::clone(&shared), request));
            let served = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "connection");
            }
        });
    }
}
