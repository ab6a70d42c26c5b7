//! Listeners and their connections.
//!
//! Never drains: a closed endpoint cuts its connections, as a server that died does.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};

use crate::http::{self, Caller};
use crate::server::Shared;
use crate::tls::Authority;

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
    authority: Option<Authority>,
    accepting: Mutex<Option<AbortHandle>>,
}

impl Endpoint {
    pub(crate) fn open(
        shared: Arc<Shared>,
        runtime: Handle,
        (listener, authority): (TcpListener, Option<Authority>),
    ) -> Self {
        let address = match listener.local_addr() {
            Ok(address) => address,
            Err(error) => unreachable!("a listener has an address: {error}"),
        };
        let inner = Inner {
            shared,
            runtime,
            listener,
            address,
            authority,
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
        let authority = self.inner.authority.clone();
        let task = self.inner.runtime.spawn(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, (shared, authority), serve).await,
                Err(error) => tracing::error!(%error, "a listener that tokio does not take"),
            }
        });
        let mut accepting = self.inner.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = accepting.replace(task.abort_handle()) {
            before.abort();
        }
    }

    /// `http://ADDRESS:PORT`, or `https://`
    pub fn url(&self) -> String {
        let scheme = self.inner.authority.as_ref().map_or("http", |_| "https");
        format!("{scheme}://{}", self.inner.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// A kubeconfig; without a token, as an administrator (over TLS: as nobody). The token is in the path too, since `kubectl` sends
    /// none over plain HTTP.
    pub fn kubeconfig(&self, token: Option<&str>) -> String {
        let path = token.filter(|_| self.inner.authority.is_none());
        let path = path.map(|token| format!("/as/{token}")).unwrap_or_default();
        let user = token.map_or_else(|| "{}".to_owned(), |token| format!("{{token: {token}}}"));
        self.kubeconfig_of(&path, &user)
    }

    /// A kubeconfig with this user: what [`Authority::client`] says.
    pub fn kubeconfig_with(&self, user: &str) -> String {
        self.kubeconfig_of("", user)
    }

    fn kubeconfig_of(&self, path: &str, user: &str) -> String {
        let authority = self
            .inner
            .authority
            .as_ref()
            .and_then(|authority| authority.certificate().ok());
        let authority = authority.map(|data| format!(", certificate-authority-data: {data}"));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: double\n\
             clusters: [{{name: double, cluster: {{server: \"{}{path}\"{}}}}}]\n\
             contexts: [{{name: double, context: {{cluster: double, user: double}}}}]\n\
             users: [{{name: double, user: {user}}}]\n",
            self.url(),
            authority.unwrap_or_default()
        )
    }
}

async fn accept(listener: tokio::net::TcpListener, (shared, authority): (Arc<Shared>, Option<Authority>), serve: bool) {
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
        let (shared, authority) = (Arc::clone(&shared), authority.clone());
        connections.spawn(async move {
            match authority {
                None => serve_one(shared, stream, Caller::Local).await,
                Some(authority) => match authority.accept(stream).await {
                    Ok((stream, identity)) => serve_one(shared, stream, Caller::Shown(identity)).await,
                    Err(error) => tracing::debug!(%error, "handshake"),
                },
            }
        });
    }
}

async fn serve_one(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin, caller: Caller) {
    let service = service_fn(move |request| http::handle(Arc::clone(&shared), caller.clone(), request));
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection");
    }
}
