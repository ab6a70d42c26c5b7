//! The way to the API server.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{cache::Origin, watch::WATCH_SECONDS};

/// Longest wait for a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Longest silence of a connection that is read from. A watch ends before; without this, a request to a server that died without a
/// word would wait for ever.
const READ_PATIENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 3);

/// What a node is told of its cluster on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeSettings {
    /// Where the way to the API server stands; without it, what a pod has, or the usual places.
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts.
    pub context: Option<String>,
    /// The operator's namespace.
    pub namespace: String,
    /// This node's name.
    pub node: Arc<str>,
    /// Where it keeps what it was told.
    pub cache: PathBuf,
}

/// Why there is no way to the API server. That it does not answer is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Neither a pod nor a kubeconfig.
    #[error("no way to the API server: give --kubeconfig, or run in a pod with a service account: {0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// What it says of certificates or the like cannot be used.
    #[error("cannot make a client for the API server: {0}")]
    Client(#[from] kube::Error),
    /// No runtime, no thread.
    #[error("cannot start the cluster's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The way, as a kubeconfig or the surroundings say.
pub(super) async fn config(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Config, ConnectError> {
    let mut config = match (kubeconfig, context) {
        (None, None) => Config::infer().await?,
        (path, context) => {
            let kubeconfig = match path {
                Some(path) => Kubeconfig::read_from(path)?,
                None => Kubeconfig::read()?,
            };
            let options = KubeConfigOptions {
                context: context.map(ToOwned::to_owned),
                ..KubeConfigOptions::default()
            };
            Config::from_custom_kubeconfig(kubeconfig, &options).await?
        }
    };
    config.connect_timeout = Some(CONNECT_PATIENCE);
    Ok(config)
}

/// A client, and whose words it will bring.
pub(super) async fn connect(settings: &KubeSettings) -> Result<(Client, Origin), ConnectError> {
    let mut config = config(settings.kubeconfig.as_deref(), settings.context.as_deref()).await?;
    config.read_timeout = Some(READ_PATIENCE);
    // Who asks again, and when, is decided where it is asked.
    config.default_retry = false;
    let origin = Origin {
        server: config.cluster_url.to_string(),
        namespace: settings.namespace.clone(),
    };
    Ok((Client::try_from(config)?, origin))
}
